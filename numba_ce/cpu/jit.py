"""`inner`: the decorator of everything that only kernels call.

A kernel is some forty small functions. Numba would compile each of them to machine code, with
entry points for Python and C, and optimise it anew inside each of its callers: 4.7 s for the first
gradient. As parts of a kernel they need none of that. Here they are typed and lowered, and what
LLVM gets to see, once, is the whole kernel. The passes left out handle Python features that the
kernels do not use (with blocks, closures, literal loops, exceptions).
"""

from typing import ClassVar

from numba import _dynfunc, njit
from numba.core import codegen, typed_passes, untyped_passes
from numba.core.compiler import CompilerBase, _LowerResult
from numba.core.compiler_lock import require_global_compiler_lock
from numba.core.compiler_machinery import PassManager, register_pass
from numba.extending import overload


class PartOfAKernel(codegen.JITCodeLibrary):
    """Unoptimised code that other libraries link and nobody executes."""

    def add_llvm_module(self, ll_module):
        self._final_module.link_in(ll_module)

    def finalize(self):
        require_global_compiler_lock()
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerPart(typed_passes.NativeLowering):
    """Lowering that stops before machine code."""

    _name = "lower_part_of_a_kernel"

    def run_pass(self, state):
        context = state.targetctx
        name = state.func_id.func_qualname
        library = state.library = PartOfAKernel(context.codegen(), name)
        flags = state.flags
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        super().run_pass(state)
        lowered = state["cr"]
        module = lowered.fndesc.lookup_module()
        # The handle by which Numba finds the function; it has no code to call
        handle = _dynfunc.make_function(module, name, "", 0, lowered.env, (library,))
        context.insert_user_function(handle, lowered.fndesc, [library])
        state["cr"] = _LowerResult(lowered.fndesc, lowered.call_helper, handle, lowered.env)
        return True


class RememberingContext:
    """A typing context that remembers which signature a function has for given arguments.

    Numba searches for it at each call, through some twenty templates for an operator.
    """

    def __init__(self, context, found):
        self._context, self._found = context, found

    def __getattr__(self, name):
        return getattr(self._context, name)

    def resolve_function_type(self, func, args, kws):
        if kws:
            return self._context.resolve_function_type(func, args, kws)
        key = func, tuple(args)
        if key not in self._found:
            self._found[key] = self._context.resolve_function_type(func, args, kws)
        return self._found[key]


class PartCompiler(CompilerBase):
    """The passes that a part of a kernel needs."""

    _signatures: ClassVar[dict] = {}

    def define_pipelines(self):
        self.state.typingctx = RememberingContext(self.state.typingctx, self._signatures)
        manager = PassManager("part of a kernel")
        for step in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.IRProcessing,
            untyped_passes.DeadBranchPrune,
            untyped_passes.GenericRewrites,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.IRLegalization,
            LowerPart,
            typed_passes.NoPythonBackend,
        ):
            manager.add_pass(step, step._name)
        manager.finalize()
        return [manager]


# error_model: a division by zero is an infinity, not an exception
OPTIONS = {"pipeline_class": PartCompiler, "error_model": "numpy"}
inner = njit(**OPTIONS)


def inner_overload(function):
    """`numba.extending.overload` for what only kernels call."""
    return overload(function, jit_options=OPTIONS)


@inner
def smaller(a, b):
    """min(a, b): Numba compiles a function of its own for each call of the builtin."""
    return a if a < b else b
