"""`lowered`: the decorator of every operation that is LLVM instructions written here."""

from functools import wraps
from inspect import Parameter, Signature, get_annotations, signature

from numba import types
from numba.extending import intrinsic


class Literal:
    """Annotates an argument that has to be known to the compiler."""


def lowered(declare):
    """The intrinsic that a function of the types of its arguments declares.

    An argument is cast to the type that annotates it. Of one annotated Literal the function gets
    the value. It returns the type of the result, or a signature where casts depend on types, and
    what builds the result: a function of a builder and the LLVM values of all arguments.
    """
    hints = get_annotations(declare, eval_str=True)
    parameters = signature(declare).parameters
    wanted = [hints.get(name) for name in parameters]

    @wraps(declare)
    def define(typingctx, *given):
        pairs = list(zip(wanted, given, strict=True))
        known = [getattr(ty, "literal_value", None) for hint, ty in pairs if hint is Literal]
        if None in known:
            return None
        values = iter(known)
        result, build = declare(*(next(values) if hint is Literal else ty for hint, ty in pairs))
        if isinstance(result, types.Type):
            result = result(*(ty if hint in (None, Literal) else hint for hint, ty in pairs))

        def codegen(context, builder, sig, args):
            value = build(builder, *args)
            return context.get_dummy_value() if sig.return_type == types.none else value

        return result, codegen

    # Numba binds the arguments of a call to it
    context = Parameter("typingctx", Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = Signature([context, *parameters.values()])
    return intrinsic(prefer_literal=Literal in wanted)(define)
