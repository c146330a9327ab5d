"""The vector registers of the processor that Numba compiles for, and what follows from them."""

import os

from numba_ce.cpu.compile.numba_core import assembly

VARIABLE = "NUMBA_CE_VECTOR_BITS"
# Registers by which an x86 processor shows how long its vectors are; all others have 128 bits
REGISTERS = {512: "zmm", 256: "ymm", 128: ""}


def _of_target():
    """Bits of a register, from what LLVM makes of a longer vector: features may be implied."""
    text = """define <16 x float> @f(<16 x float> %x) {
      %y = fadd <16 x float> %x, %x
      ret <16 x float> %y
    }"""
    code = assembly(text)
    return next(bits for bits, name in REGISTERS.items() if name in code)


def _chosen():
    asked = os.environ.get(VARIABLE)
    if not asked:
        return _of_target()
    if asked not in map(str, REGISTERS):
        known = ", ".join(map(str, REGISTERS))
        raise ValueError(f"environment variable {VARIABLE}: {asked!r} is not one of {known}")
    return int(asked)


VECTOR_BITS = _chosen()
# Lanes, of either type, of a vector across rows, in as many registers as that takes. Eight rows for
# AVX2 took as many instructions an element, and of ten classes 1.1 times as long on a Zen 5
ROWS_ACROSS = 16
# Whether access to some lanes of a vector is one cheap instruction. AVX2 has one for stores that is
# microcode on many processors; without any there is a branch for each lane
CHEAP_MASKS = VECTOR_BITS == 512
