"""The options of the loss, each in one place: name, default, range and meaning.

Checks, signatures, docstrings and the command line follow from `TABLE`. A new option is one row of
it, one key of `Keywords` and one field of `LossOptions`, which type checkers need.
"""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, TypeVar, get_args, get_type_hints

from numpy.typing import ArrayLike

from numba_ce._validate import check_choice, check_flag, check_integer, check_number

F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[Any], Any]
Reduction = Literal["mean", "sum", "none"]


class DeviceArray(Protocol):
    """An array of CuPy, Numba or torch on a GPU; results are of its kind."""

    @property
    def __cuda_array_interface__(self) -> Any:
        """Address, shape and dtype."""


class _DLPack(Protocol):
    def __dlpack__(self) -> Any: ...


HostArray = ArrayLike | _DLPack
AnyArray = HostArray | DeviceArray


class Keywords(TypedDict, total=False):
    """The keywords of every function that computes a loss; what is absent has its default."""

    class_weight: AnyArray | None
    sample_weight: AnyArray | None
    label_smoothing: float
    ignore_index: int | None
    z_loss: float
    softcap: float | None
    temperature: float
    check_targets: bool


class Option(NamedTuple):
    """An option, as it is documented and checked."""

    name: str
    default: Any
    form: str  # as numpydoc writes it
    meaning: str  # in the README, the docstrings and the help of the command line
    detail: str = ""  # what docstrings add
    check: Check | None = None  # None: an array or an axis, which is checked with the logits


def _real(
    name: str, accepts: str, holds: Callable[[float], bool], end: str = "", start: str = "a finite "
) -> Check:
    """A check of a number; an `end` of "or None" allows None."""
    fits, expected = f"{accepts} {end}".rstrip(), start + accepts + (end and f", {end}")

    def check(value: Any) -> float | None:
        if value is None and end:
            return None
        number = check_number(value, name, fits)
        if not holds(number):
            raise ValueError(f"{name} = {number}: expected {expected}")
        return number

    return check


def check_ignore_index(value: Any) -> int | None:
    """An integer or None."""
    return None if value is None else check_integer(value, "ignore_index", "an integer or None")


def check_reduction(reduction: Any) -> str:
    """One of three names."""
    return check_choice(reduction, "reduction", get_args(Reduction))


# fmt: off
TABLE = {option.name: option for option in (
    Option("axis", -1, "int", "The class axis."),
    Option("class_weight", None, "array_like of shape (C,), optional",
           "One weight per class, of any sign.", "Floats; w in the formula."),
    Option("sample_weight", None, "array_like, optional",
           "One weight per row, of any sign; a row of weight 0 counts as ignored.",
           "Floats; s in the formula."),
    Option("label_smoothing", 0.0, "float",
           "The share that all classes divide, from 0 to 1; as in PyTorch.",
           "e in the formula. At 1 probabilities have no share and are not looked at, NaN or not.",
           _real("label_smoothing", "0 <= label_smoothing <= 1", lambda e: 0.0 <= e <= 1.0,
                 start="")),
    Option("ignore_index", -100, "int or None",
           "Rows with this class index have loss 0 and gradient 0, whatever they hold.",
           "Index targets only.", check_ignore_index),
    Option("z_loss", 0.0, "float", "Adds `z_loss * lse**2`.",
           "Times the weight of the class of the target, for class indices.",
           _real("z_loss", "z_loss >= 0", lambda factor: 0.0 <= factor < math.inf)),
    Option("softcap", None, "float, optional",
           "First `z = softcap * tanh(z / softcap)`; infinite logits stay infinite.",
           check=_real("softcap", "softcap > 0", lambda cap: 0.0 < cap < math.inf, "or None")),
    Option("temperature", 1.0, "float", "Then `z = z / temperature`.",
           check=_real("temperature", "temperature > 0", lambda T: 0.0 < T < math.inf)),
    Option("check_targets", True, "bool",
           "Raise for a class index outside [0, C); if False its row is NaN and does not count.",
           check=lambda value: check_flag(value, "check_targets")),
    Option("reduction", "mean", '{"mean", "sum", "none"}',
           '"mean" divides by the weights of the rows, "sum" does not, "none" is one loss per row.',
           "The weight of a row is s * w_y for class indices and s for probabilities, 0 if it is "
           'ignored. The gradient of "none" is that of the sum.', check_reduction),
)}
_SHARED = TABLE | {array.name: array for array in (
    Option("logits", None, "array_like",
           "Unnormalised scores, classes along `axis`: float16, bfloat16, float32 or float64, at "
           "least 1-D, any strides and byte order."),
    Option("targets", None, "array_like",
           "Class indices y of any integer dtype, in the shape of `logits` without `axis`; or "
           "probabilities t of any float dtype in the shape of `logits`, which need not sum to 1."),
    Option("out", None, "ndarray, optional",
           "Where the result goes: shape and dtype of `logits`, or float32 for 16-bit logits. "
           "``out=logits`` works in place."),
)}
# fmt: on


class LossOptions(NamedTuple):
    """The options that are single values, checked."""

    label_smoothing: float = TABLE["label_smoothing"].default
    ignore_index: int | None = TABLE["ignore_index"].default
    z_loss: float = TABLE["z_loss"].default
    softcap: float | None = TABLE["softcap"].default
    temperature: float = TABLE["temperature"].default
    check_targets: bool = TABLE["check_targets"].default


_DEFAULTS = LossOptions()
_CHECKS = {name: TABLE[name].check for name in Keywords.__annotations__}


def check_options(options: Keywords, function: str) -> tuple[Any, Any, LossOptions]:
    """`class_weight` and `sample_weight` as they are, and the other options, each in its range.

    function : the name of the public function that was called, for an option that there is not
    """
    if not options:
        return None, None, _DEFAULTS
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _CHECKS:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        check = _CHECKS[name]
        checked[name] = value if check is None else check(value)
    weights = checked.pop("class_weight", None), checked.pop("sample_weight", None)
    return *weights, LossOptions(**checked)


def with_defaults(options: Keywords | dict[str, Any]) -> dict[str, Any]:
    """All options, those that are absent with their defaults."""
    return {name: TABLE[name].default for name in Keywords.__annotations__} | options


# ---------------------------------------------------------------- signatures and docstrings


def relate(namespace: dict[str, Any], *groups: str) -> None:
    """Put a section See Also into the docstrings of the functions that some groups name."""
    related: dict[str, dict[str, None]] = {}
    for group in map(str.split, groups):
        for name in group:
            related.setdefault(name, {}).update(dict.fromkeys(group))
    for name, names in related.items():
        if namespace[name].__doc__:  # python -OO has none
            section = f"See Also\n--------\n{', '.join(n for n in names if n != name)}\n\n"
            text = inspect.cleandoc(namespace[name].__doc__)
            text = re.sub(r"(?m)^(?=(Notes|Examples)\n-)", section, text, count=1)
            namespace[name].__doc__ = text


_HEADING = "Parameters\n----------\n"


_described: dict[str, dict[str, str]] = {}  # what functions say themselves, for each module


def documented(function: F) -> F:
    """A decorator: options in the signature, and in the docstring what functions share.

    In the section Parameters a name without a type has the text that an earlier function of the
    module gives it, or that of the tables; ``**options`` are those that have no line of their own.
    """
    fill_signature(function, lambda name, hint: hint)
    if function.__doc__:  # python -OO has none
        described = _described.setdefault(function.__module__, {})
        function.__doc__ = _filled(inspect.cleandoc(function.__doc__), described)
    return function


def fill_signature(
    function: Any,
    annotate: Callable[[str, Any], Any],
    without: tuple[str, ...] = (),
    eval_str: bool = False,
) -> None:
    """Put the options that a function has no argument for in the place of its `**options`.

    annotate : gives the annotation of an option, from its name and type
    eval_str : as in `inspect.signature`
    """
    signature = inspect.signature(function, eval_str=eval_str)
    *own, last = signature.parameters.values()
    if last.kind is last.VAR_KEYWORD:
        names = {parameter.name for parameter in own}.union(without)
        written = {name: hint.__forward_arg__ for name, hint in Keywords.__annotations__.items()}
        options = [
            last.replace(
                name=name,
                kind=last.KEYWORD_ONLY,
                default=TABLE[name].default,
                annotation=annotate(name, hint),
            )
            for name, hint in (get_type_hints(Keywords) if eval_str else written).items()
            if name not in names
        ]
        function.__signature__ = signature.replace(parameters=[*own, *options])


def _filled(text: str, described: dict[str, str]) -> str:
    before, heading, rest = text.partition(_HEADING)
    section, gap, after = rest.partition("\n\n")
    names = []
    for entry in re.split(r"\n(?! )", section):
        names.append(re.split(r" : |\n", entry)[0])
        if entry != names[-1]:
            described[names[-1]] = entry
    written = ", ".join(names).split(", ")
    options = [name for name in Keywords.__annotations__ if name not in written]
    wanted = [n for name in names for n in (options if name == "**options" else [name])]
    section = "\n".join(described.get(name) or _entry(name) for name in wanted)
    return before + heading + section + gap + after


def _entry(name: str) -> str:
    option = _SHARED[name]
    text = textwrap.fill(f"{option.meaning} {option.detail}", 92)
    return f"{name} : {option.form}\n" + textwrap.indent(text, "    ")
