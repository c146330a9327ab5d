"""The table of options is what signatures, docstrings, checks, command line and README follow."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import numba_ce as nc
from numba_ce.options import (
    TABLE,
    Keywords,
    LossOptions,
    check_options,
    documented,
    with_defaults,
)

README = Path(__file__).resolve().parents[2] / "README.md"
KEYWORDS = list(Keywords.__annotations__)
# Those of a whole loss, and those that take some of the options
WHOLE = {
    "cross_entropy": {"axis", "reduction"},
    "cross_entropy_and_grad": {"axis", "reduction"},
    "row_record": {"axis"},
    "grad_from_record": {"axis"},
    "linear_cross_entropy": {"reduction"},
    "linear_cross_entropy_and_grad": {"reduction"},
    "stream": {"axis", "reduction"},
}
PARTIAL = {
    "cross_entropy_grad_and_hess": {"axis", "sample_weight"},
    "row_stats": {"axis", "ignore_index"},
    "linear_row_stats": {"ignore_index", "temperature"},
    "logsumexp": {"axis"},
    "softmax": {"axis"},
    "log_softmax": {"axis"},
    "multinomial_objective": {"sample_weight"},
}
INTEGRATIONS = {
    "dask": {
        "cross_entropy": {"axis", "reduction", *KEYWORDS},
        "cross_entropy_and_grad": {"axis", "reduction", *KEYWORDS},
        "logsumexp": {"axis"},
        "row_stats": {"axis", "ignore_index"},
    },
    "mpi": {
        "cross_entropy_and_grad": {"axis", "reduction", *KEYWORDS},
        "row_sharded_cross_entropy_and_grad": {"axis", "reduction", *KEYWORDS},
    },
    "torch": {"cross_entropy": {"ignore_index", "reduction", "label_smoothing"}},
}
EXPECTED = {name: own | set(KEYWORDS) for name, own in WHOLE.items()} | PARTIAL


def public_functions():
    return [name for name in nc.__all__ if inspect.isfunction(getattr(nc, name))]


def parameters_of(function):
    return inspect.signature(function).parameters


def described(function):
    """The names that the section Parameters describes, each with its text."""
    text = inspect.getdoc(function)
    section = text.partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    found = {}
    for entry in re.split(r"\n(?! )", section):
        head, _, body = entry.partition("\n")
        for name in head.partition(" : ")[0].split(", "):
            found[name] = " ".join(body.split())
    return found


def check_function(function, expected):
    parameters, texts = parameters_of(function), described(function)
    taken = {name for name in parameters if name in TABLE}
    assert taken == expected
    for name in taken:
        assert parameters[name].default == TABLE[name].default, name
    assert list(texts) and set(texts) == set(parameters)
    for name, text in texts.items():
        assert text, f"{name} has no text"
        assert not re.match(r"As (they were )?(`|for )", text), f"{name}: {text}"


def integration(name):
    try:
        return importlib.import_module(f"numba_ce.integrations.{name}")
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI
        pytest.skip(str(error))


@pytest.mark.parametrize("name", public_functions())
def test_public_function(name):
    function = getattr(nc, name)
    if not any(p in TABLE for p in parameters_of(function)):
        assert name not in EXPECTED
        return
    check_function(function, EXPECTED[name])


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_integration(name):
    module = integration(name)
    for function, expected in INTEGRATIONS[name].items():
        check_function(getattr(module, function), expected)


@pytest.mark.parametrize("name", WHOLE)
def test_unknown_name_is_the_error_of_python(name):
    """After what is required, and in the words that Python has for a function without `**`."""
    logits, record = np.zeros((2, 4)), np.zeros((2, 9))
    required = {
        "logits": logits,
        "hidden": logits,
        "weight": np.zeros((3, 4)),
        "targets": [0, 1],
        "record": record,
        "class_offset": 0,
        "n_classes": 4,
    }
    function = getattr(nc, name)
    arguments = {n: required[n] for n, p in parameters_of(function).items() if p.default is p.empty}

    def plain(*, temperature=1.0): ...

    plain.__name__ = plain.__qualname__ = name
    with pytest.raises(TypeError) as expected:
        plain(temprature=2.0)
    with pytest.raises(TypeError) as caught:
        function(**arguments, temprature=2.0)
    assert str(caught.value) == str(expected.value).partition(". Did")[0]


def test_the_three_declarations_agree():
    assert set(TABLE) == {"axis", "reduction", *KEYWORDS}
    values = [name for name in KEYWORDS if TABLE[name].check is not None]
    assert list(LossOptions._fields) == values
    for name in values:
        assert LossOptions._field_defaults[name] == TABLE[name].default
        assert TABLE[name].check(TABLE[name].default) == TABLE[name].default


def test_options_that_are_given():
    assert check_options({}, "f") == (None, None, LossOptions())
    weight = [1.0]
    arrays = {"sample_weight": weight, "ignore_index": np.int8(3), "z_loss": 2}
    given = check_options(arrays, "f")
    assert given == (None, weight, LossOptions(ignore_index=3, z_loss=2.0))
    assert type(given[2].ignore_index) is int and type(given[2].z_loss) is float
    assert with_defaults({"softcap": 2.0}) == {
        **{name: TABLE[name].default for name in KEYWORDS},
        "softcap": 2.0,
    }


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        (
            "label_smoothing",
            "a",
            TypeError,
            "'a' is not a number: expected 0 <= label_smoothing <= 1",
        ),
        ("label_smoothing", 1.5, ValueError, "1.5: expected 0 <= label_smoothing <= 1"),
        ("z_loss", None, TypeError, "None is not a number: expected z_loss >= 0"),
        ("z_loss", -1, ValueError, "-1.0: expected a finite z_loss >= 0"),
        ("softcap", True, TypeError, "True is not a number: expected softcap > 0 or None"),
        ("softcap", 0.0, ValueError, "0.0: expected a finite softcap > 0, or None"),
        ("temperature", [1.0], TypeError, "[1.0] is not a number: expected temperature > 0"),
        ("temperature", np.inf, ValueError, "inf: expected a finite temperature > 0"),
        ("ignore_index", 1.0, TypeError, "1.0: expected an integer or None"),
        ("check_targets", 1, TypeError, "1: expected True or False"),
    ],
)
def test_messages(name, value, kind, message):
    with pytest.raises(kind) as caught:
        nc.cross_entropy(np.zeros((1, 2)), [0], **{name: value})
    assert str(caught.value) == f"{name} = {message}"


def test_a_line_of_ones_own_stays():
    @documented
    def function(logits, *, z_loss=0.0, extra=None, **options):
        """Nothing.

        Parameters
        ----------
        logits
        z_loss : float
            Something else.
        extra : object
            Of its own.
        **options

        Returns
        -------
        axis
        """

    texts = described(function)
    assert set(texts) == {"logits", "extra", *KEYWORDS} == set(parameters_of(function))
    assert texts["z_loss"] == "Something else."
    assert texts["softcap"].startswith(TABLE["softcap"].meaning)
    assert inspect.getdoc(function).endswith("Returns\n-------\naxis")


def test_readme():
    rows = [f"| `{o.name}={o.default!r}` | {o.meaning} |" for o in TABLE.values()]
    table = "\n".join(["| option | meaning |", "|---|---|", *rows]).replace("'", '"')
    assert table in README.read_text("utf-8")


def test_command_line():
    typer = pytest.importorskip("typer")
    from numba_ce.cli import NOT_IN_EVAL, app

    command = typer.main.get_command(app).commands["eval"]
    options = {option.name: option for option in command.params}
    assert set(TABLE) - set(NOT_IN_EVAL) <= set(options)
    assert not set(NOT_IN_EVAL) & set(options)
    for name in set(TABLE) - set(NOT_IN_EVAL):
        assert options[name].default == TABLE[name].default
        if name in KEYWORDS:
            assert TABLE[name].meaning.replace("`", "") in options[name].help
