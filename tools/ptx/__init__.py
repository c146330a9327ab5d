"""Executes PTX on the CPU.

    from tools.ptx import Device

    device = Device()
    x = device.put(np.arange(100, dtype=np.float32))
    y = device.empty(400)
    device.launch(ptx_text, grid=1, block=128, args=[x, y, 100])
    result = device.get(y, like=np.empty(100, np.float32))

It stands in for a GPU where there is none: it executes what the compiler made of a kernel, with
the divergence, barriers, shuffles and clusters of the real thing, and raises Fault where a GPU
would return nonsense or hang (see Fault's users in memory.py, races.py, schedule.py).
It models neither time nor the reordering of memory accesses.

Speed, on one core (AMD EPYC, 2 shared cores), softmax kernels of a few hundred instructions with 64
to 256 threads per row: 130 to 270 million instructions of threads per second in step, 25 to 120
million in a random order; 60 ms once per kernel of 3000 lines to decode it.

| module | |
|---|---|
| `device.py`, `launch.py` | what a test uses |
| `parse.py` | text to statements |
| `program.py`, `flow.py`, `control.py` | statements to blocks of closures, and what flows between |
| `apply.py`, `arithmetic.py`, `bits.py`, `select.py` | values |
| `convert.py`, `half.py`, `floats.py` | conversions, and floats beyond NumPy |
| `access.py`, `memory.py`, `races.py` | loads, stores, atomics and their checks |
| `collective.py`, `barriers.py`, `mbarriers.py` | where lanes meet |
| `schedule.py`, `batch.py`, `slots.py` | who runs when, on which registers |
"""

from .device import Device
from .fault import Fault, Unsupported
from .launch import Counts

__all__ = ["Counts", "Device", "Fault", "Unsupported"]
