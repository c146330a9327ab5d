"""What kernels use of `numba.core`, which is not among Numba's documented interfaces."""

from llvmlite import binding, ir
from numba.core.cgutils import get_or_insert_function, pack_array, raw_memcpy, unpack_tuple
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

__all__ = [
    "assembly",
    "call_named",
    "global_compiler_lock",
    "pack_array",
    "raw_memcpy",
    "target_facts",
    "unpack_tuple",
]


def call_named(builder, name, result, *args):
    """Build a call of a function by its name: one of LLVM, or one that the process has."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(get_or_insert_function(builder.module, kind, name), args)


def assembly(module):
    """What becomes of a module in LLVM's language on the processor that Numba compiles for."""
    machine = cpu_target.target_context.codegen()._tm
    return machine.emit_assembly(binding.parse_assembly(module))


def target_facts():
    """The triple of the processor that Numba compiles for, its name and its features."""
    return cpu_target.target_context.codegen().magic_tuple()
