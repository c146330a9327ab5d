"""Which types the functions take in compiled code; what they do not take is a typing error."""

from numba import types
from numba.core.errors import TypingError

from numba_ce.integrations.numba.glue import absent

FLOATS = (types.float32, types.float64)


def known(ty):
    """A default or a literal as its value; anything else as its type."""
    if isinstance(ty, types.Omitted):
        return ty.value
    if isinstance(ty, types.Literal):
        return ty.literal_value
    return None if isinstance(ty, types.NoneType) else ty


def check_array(ty, name, dtypes, accepts, ndim=(1,)):
    if not isinstance(ty, types.Array) or ty.dtype not in dtypes or ty.ndim not in ndim:
        axes = "one axis" if ndim == (1,) else "one or two axes" if len(ndim) > 1 else "two axes"
        raise TypingError(
            f"{name} is {ty}: in compiled code expected an array of {accepts} with {axes}"
        )


def check_logits(logits, axis):
    check_array(logits, "logits", FLOATS, "float32 or float64", (1, 2))
    value = known(axis)
    if value not in (-1, logits.ndim - 1) or isinstance(value, bool):
        raise TypingError(
            f"axis = {value}: in compiled code the classes are the last axis, "
            "axis = -1 (pass a transposed view)"
        )


def check_targets(targets, logits):
    if logits.ndim == 1:
        if isinstance(targets, types.Array) and targets.ndim == 0:
            raise TypingError(
                "targets is an array without axes: in compiled code expected an "
                "integer for a row of logits"
            )
        if not isinstance(types.unliteral(targets), types.Integer):
            raise TypingError(
                f"targets is {targets}: in compiled code expected an integer, the "
                "class index of the row"
            )
        return
    if isinstance(targets, types.Array) and isinstance(targets.dtype, types.Float):
        raise TypingError(
            f"targets is {targets}: probabilities are not supported in compiled "
            "code, expected class indices of an integer dtype"
        )
    integers = types.integer_domain
    check_array(targets, "targets", integers, "integers, the class indices")


def check_weight(ty, name):
    if not absent(ty):
        check_array(ty, name, (*FLOATS, *types.integer_domain), "float64, float32 or integers")


def check_number(ty, name, accepts_none=False):
    value = known(ty)
    if value is None and accepts_none:
        return
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return
    if not isinstance(value, (types.Float, types.Integer)):
        raise TypingError(f"{name} is {ty}: expected a number" + " or None" * accepts_none)


def check_options(
    class_weight,
    sample_weight,
    label_smoothing,
    ignore_index,
    z_loss,
    softcap,
    temperature,
    check_targets,
):
    check_weight(class_weight, "class_weight")
    check_weight(sample_weight, "sample_weight")
    for name, ty in (
        ("label_smoothing", label_smoothing),
        ("z_loss", z_loss),
        ("temperature", temperature),
    ):
        check_number(ty, name)
    check_number(softcap, "softcap", accepts_none=True)
    index = known(ignore_index)
    if not (index is None or type(index) is int or isinstance(index, types.Integer)):
        raise TypingError(f"ignore_index is {ignore_index}: expected an integer or None")
    checked = known(check_targets)
    if not isinstance(checked, (bool, types.Boolean)):
        raise TypingError(f"check_targets is {check_targets}: expected True or False")


def check_reduction(reduction):
    value = known(reduction)
    if not isinstance(value, str):
        raise TypingError(
            f"reduction is {reduction}: in compiled code expected a literal, "
            "'mean', 'sum' or 'none'"
        )
    if value not in ("mean", "sum", "none"):
        raise TypingError(f"reduction = {value!r}: expected 'mean', 'sum' or 'none'")
    return value


def check_out(out, logits, name="out"):
    if absent(out):
        return False
    if not isinstance(out, types.Array) or (out.dtype, out.ndim) != (logits.dtype, logits.ndim):
        raise TypingError(
            f"{name} is {out}: expected an array of the dtype and number of axes of "
            f"the logits, {logits}"
        )
    if not out.mutable:
        raise TypingError(f"{name} is {out}, read-only: expected a writeable array")
    return True


def loss_kind(logits, targets, axis, reduction, options):
    """What both losses ask of their types: the reduction, and whether there are row losses."""
    check_logits(logits, axis)
    check_targets(targets, logits)
    check_options(*options)
    reduction = check_reduction(reduction)
    return reduction == "mean", reduction == "none" and logits.ndim == 2
