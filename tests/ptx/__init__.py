"""Executes PTX on the CPU.

    from ptx import Device

    device = Device()
    x = device.put(np.arange(100, dtype=np.float32))
    y = device.empty(400)
    device.launch(ptx_text, grid=1, block=128, args=[x, y, 100])
    result = device.get(y, like=np.empty(100, np.float32))

It stands in for a GPU where there is none: it executes what the compiler made of a kernel, with
the divergence, barriers, shuffles and clusters of the real thing, and raises Fault where a GPU
would return nonsense or hang (see Fault's users in memory.py, races.py, schedule.py).
It models neither time nor the reordering of memory accesses.
"""

from .device import Device
from .fault import Fault, Unsupported
from .launch import Counts

__all__ = ["Counts", "Device", "Fault", "Unsupported"]
