"""The vector registers of the processor that Numba compiles for, and what follows from them."""

import os

from llvmlite import binding
from numba.core.registry import cpu_target

VARIABLE = "NUMBA_CE_VECTOR_BITS"
# Registers by which an x86 processor shows how long its vectors are; all others have 128 bits
REGISTERS = {512: "zmm", 256: "ymm", 128: ""}


def _of_target():
    """Bits of a register, from what LLVM makes of a longer vector: features may be implied."""
    text = """define <16 x float> @f(<16 x float> %x) {
      %y = fadd <16 x float> %x, %x
      ret <16 x float> %y
    }"""
    machine = cpu_target.target_context.codegen()._tm
    assembly = machine.emit_assembly(binding.parse_assembly(text))
    return next(bits for bits, name in REGISTERS.items() if name in assembly)


def _chosen():
    asked = os.environ.get(VARIABLE)
    if not asked:
        return _of_target()
    if asked not in map(str, REGISTERS):
        known = ", ".join(map(str, REGISTERS))
        raise ValueError(f"environment variable {VARIABLE}: {asked!r} is not one of {known}")
    return int(asked)


VECTOR_BITS = _chosen()
# Lanes, of either type, of a vector across rows, in as many registers as that takes. Fewer rows for
# shorter registers take as many instructions, and the loops over classes have fewer chains of them
# to work on at once: eight rows of ten classes took 1.1 times as long with AVX2
ROWS_ACROSS = 16
# Whether access to some lanes of a vector is one cheap instruction. AVX2 has one for stores that is
# microcode on many processors; without any there is a branch for each lane
CHEAP_MASKS = VECTOR_BITS == 512
