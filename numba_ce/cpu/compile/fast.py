"""Numba's private parts put to use: a kernel compiled as a whole, 4 to 6 times faster.

A kernel is some forty small functions. Numba would compile each of them to machine code, with
entry points for Python and C, and optimise it anew inside each of its callers: 4.7 s for the first
gradient. As parts of a kernel they need none of that. Here they are typed and lowered, and what
LLVM gets to see, once, is the whole kernel: 0.7 s. The passes left out handle what the kernels do
not use: objects that are counted, variables that change their type, with blocks, closures, literal
loops, exceptions.
"""

from typing import ClassVar

from llvmlite.binding import Linkage
from numba import _dynfunc, cfunc, njit
from numba.core import codegen, typed_passes, untyped_passes
from numba.core.cgutils import alloca_once
from numba.core.compiler import CompilerBase, _LowerResult
from numba.core.compiler_lock import require_global_compiler_lock
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.lowering import Lower


class PartLibrary(codegen.JITCodeLibrary):
    """Code of a function as it was lowered: not linked, not optimised, never executed."""

    def add_llvm_module(self, ll_module):
        self._final_module.link_in(ll_module)

    def finalize(self):
        require_global_compiler_lock()
        self._raise_if_finalized()
        self._finalized = True
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == Linkage.external:
                function.linkage = Linkage.linkonce_odr
        self._shared_module = self._final_module


class KernelLibrary(codegen.JITCodeLibrary):
    """Links each of its parts once and optimises the whole once."""

    def add_llvm_module(self, ll_module):
        self._final_module.link_in(ll_module)

    def finalize(self):
        needed = self._linking_libraries
        for library in needed:  # the list grows as parts name what they call
            if isinstance(library, PartLibrary):
                needed += [other for other in library._linking_libraries if other not in needed]
        super().finalize()

    def _optimize_final_module(self):
        # The vectors are explicit: looking for more costs 30 ms, level 3 another 60 ms for nothing
        passes, builder = self._codegen._module_pass_manager(
            opt=2, loop_vectorize=False, slp_vectorize=False
        )
        # What is declared only, as the counting of references that was optimised away, would count
        # as wanted: see `cache`
        passes.add_strip_dead_prototype_pass()
        passes.run(self._final_module, builder)


class PlainLower(Lower):
    """Lowering without debug information, whose preparation costs 30 ms."""

    def alloca_lltype(self, name, lltype, datamodel=None):
        return alloca_once(self.builder, lltype, name=name)

    def storevar(self, value, name, argidx=None):
        super().storevar(value, name)


class LowerInto(typed_passes.NativeLowering):
    """Lowering into a library of our own."""

    library_class: type
    lowering_class = PlainLower

    def run_pass(self, state):
        codegen, name = state.targetctx.codegen(), state.func_id.func_qualname
        state.library = self.library_class(codegen, name)
        state.library.enable_object_caching()
        return super().run_pass(state)


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerKernel(LowerInto):
    _name = "lower_kernel"
    library_class = KernelLibrary


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerPart(LowerInto):
    _name = "lower_part_of_a_kernel"
    library_class = PartLibrary

    def run_pass(self, state):
        flags = state.flags
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        super().run_pass(state)
        lowered = state["cr"]
        module, name = lowered.fndesc.lookup_module(), state.func_id.func_qualname
        # The handle by which Numba finds the function; it has no code to call
        handle = _dynfunc.make_function(module, name, "", 0, lowered.env, (state.library,))
        state.targetctx.insert_user_function(handle, lowered.fndesc, [state.library])
        state["cr"] = _LowerResult(lowered.fndesc, lowered.call_helper, handle, lowered.env)
        return True


class FreshContext:
    """A context that has been refreshed: Numba looks for new registrations at each function."""

    def __init__(self, context):
        self._context = context

    def __getattr__(self, name):
        return getattr(self._context, name)

    def refresh(self):
        pass


class RememberingContext(FreshContext):
    """A typing context that remembers which signature a function has for given arguments.

    Numba searches for it at each call, through some twenty templates for an operator.
    """

    def __init__(self, context, found):
        super().__init__(context)
        self._found = found

    def resolve_function_type(self, func, args, kws):
        if kws:
            return self._context.resolve_function_type(func, args, kws)
        key = func, tuple(args)
        if key not in self._found:
            self._found[key] = self._context.resolve_function_type(func, args, kws)
        return self._found[key]


class PartCompiler(CompilerBase):
    """The passes that a part of a kernel needs."""

    lowering: type = LowerPart
    _signatures: ClassVar[dict] = {}

    def __init__(self, typingctx, targetctx, *rest):
        # The kernel has refreshed them
        super().__init__(FreshContext(typingctx), FreshContext(targetctx), *rest)

    def define_pipelines(self):
        self.state.typingctx = RememberingContext(self.state.typingctx, self._signatures)
        manager = PassManager("part of a kernel")
        for step in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.DeadBranchPrune,
            untyped_passes.GenericRewrites,
            typed_passes.NopythonTypeInference,
            self.lowering,
            typed_passes.NoPythonBackend,
        ):
            manager.add_pass(step, step._name)
        manager.finalize()
        return [manager]


class KernelCompiler(PartCompiler):
    lowering = LowerKernel

    def __init__(self, typingctx, targetctx, *rest):
        typingctx.refresh()
        targetctx.refresh()
        super().__init__(typingctx, targetctx, *rest)


PART_OPTIONS = {"pipeline_class": PartCompiler}
KERNEL_OPTIONS = {"pipeline_class": KernelCompiler}


def try_out():
    """Compile a kernel of two parts; whatever this raises, Numba has other private parts."""
    part = njit(**PART_OPTIONS)(lambda x: x + 1)
    kernel = cfunc("intp(intp)", **KERNEL_OPTIONS)(lambda x: part(x) * 2)
    if kernel.ctypes(20) != 42:
        raise RuntimeError("the fast path computes something else")
