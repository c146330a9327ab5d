"""The commands demo, eval, bench and info."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

import numba_ce
from numba_ce import _cache
from numba_ce._backend import MODULES, VARIABLE
from numba_ce.demo import (
    Pair,
    bytes_of_loss,
    curve,
    picture,
    train_digits,
    train_words,
)
from numba_ce.evaluate import Evaluation, evaluate
from numba_ce.options import TABLE, fill_signature

errors = Console(stderr=True, soft_wrap=True, highlight=False)
NOT_IN_EVAL = ("sample_weight", "check_targets")
DIGIT_STEPS = 50
# What is wrong with files, options or this machine; anything else is a fault of ours
EXPECTED = (OSError, ValueError, TypeError, ImportError, RuntimeError, MemoryError)


class _Commands(TyperGroup):
    """Commands that say what is wrong in one line, with exit status 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # not errors, but some of EXPECTED
            raise
        except EXPECTED as error:
            errors.print(f"numba-ce {ctx.invoked_subcommand}: {_one_line(error)}", markup=False)
            raise typer.Exit(2) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"numba-ce {numba_ce.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Softmax cross-entropy for NumPy arrays."""


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=1, help="Steps of the word model.")] = 40,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves: .png or .svg.")] = None,
) -> None:
    """Train two models with the fused loss and with plain NumPy: the same curve, in less time."""
    from numba_ce.bench.report import check_plot
    from numba_ce.bench.results import check_output

    if plot is not None:
        check_output(plot, "plot")
        check_plot(plot)
    console = Console(soft_wrap=True, highlight=False)
    digits, accuracies = _with_bar("digits", DIGIT_STEPS, train_digits)
    console.print(
        f"1347 handwritten digits, {DIGIT_STEPS} steps: losses differ by at most "
        f"{digits.largest_difference:.1e}.\nTest accuracy: {accuracies[0]:.1%} with numba_ce, "
        f"{accuracies[1]:.1%} with plain NumPy.\n"
    )
    words = _with_bar("words", steps, train_words)
    _print_words(words, console)
    if plot is not None:
        picture(words, plot)
        errors.print(f"saved {plot}", markup=False)


def _with_bar(name: str, steps: int, train: Callable[[int, Callable[[float], None]], Any]) -> Any:
    with _progress() as bar:
        task = bar.add_task(name, total=steps)
        return train(
            steps,
            lambda loss: bar.update(task, advance=1, description=f"{name}, loss {loss:.3f}"),
        )


def _print_words(words: Pair, console: Console) -> None:
    fused, plain = words
    steps, (n_rows, n_classes) = len(fused.losses), fused.logits.shape
    console.print(curve(fused.losses))
    table = Table(title=f"\nPlays of Shakespeare, {n_rows} x {n_classes} logits, {steps} steps")
    for heading in ("", "numba_ce", "plain NumPy", "ratio"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    table.add_row("final loss", *(f"{model.losses[-1]:.6f}" for model in words), "")
    for name, a, b in (
        ("loss and gradient, ms per step", fused.seconds_in_loss, plain.seconds_in_loss),
        ("whole loop, ms per step", fused.seconds, plain.seconds),
    ):
        table.add_row(name, f"{a / steps * 1e3:.1f}", f"{b / steps * 1e3:.1f}", f"{b / a:.1f}")
    a, b = map(bytes_of_loss, words)
    table.add_row("logits and loss, MB", f"{a / 1e6:.0f}", f"{b / 1e6:.0f}", f"{b / a:.1f}")
    console.print(table)
    console.print(
        f"The same curve: losses of one step differ by at most {words.largest_difference:.1e}.\n"
        f"numba_ce: loss step {plain.seconds_in_loss / fused.seconds_in_loss:.1f} times faster, "
        f"whole loop {plain.seconds / fused.seconds:.1f} times, {1 - a / b:.0%} less memory."
    )


def _annotated(name: str, hint: Any) -> Any:
    """A loss option for typer; an array is an .npy file."""
    text = TABLE[name].meaning.replace("`", "")
    if TABLE[name].check is None:
        hint, text = Path | None, f".npy file. {text}"
    return Annotated[hint, typer.Option(help=text)]


def _with_loss_options(function: Any) -> Any:
    fill_signature(function, _annotated, NOT_IN_EVAL, eval_str=True)
    return function


@app.command(name="eval")
@_with_loss_options
def evaluate_files(
    logits: Annotated[Path, typer.Argument(help=".npy file or Zarr array, two axes or more.")],
    targets: Annotated[Path, typer.Argument(help=".npy file, class indices, no class axis.")],
    axis: Annotated[int, typer.Option(help="Class axis of the logits.")] = TABLE["axis"].default,
    reduction: Annotated[str, typer.Option(help="mean or sum.")] = TABLE["reduction"].default,
    grad_out: Annotated[Path | None, typer.Option(help="Write the gradient to this file.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="What |V2 in a file stands for, as bfloat16.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **options: Any,
) -> None:
    """Loss, perplexity, accuracy and entropy of stored logits."""
    with _progress() as bar:
        task = bar.add_task("rows", total=None)
        result = evaluate(
            logits,
            targets,
            axis=axis,
            reduction=reduction,
            grad_out=grad_out,
            dtype=dtype,
            progress=lambda done, rows: bar.update(task, completed=done, total=rows),
            **options,
        )
    if as_json:
        typer.echo(json.dumps(result.as_dict(), allow_nan=False))
    else:
        _print_evaluation(result, reduction)


def _print_evaluation(result: Evaluation, reduction: str) -> None:
    table = Table(show_header=False)
    table.add_row("rows, of these counted", f"{result.n_rows}, {result.n_kept}")
    table.add_row("classes", str(result.n_classes))
    table.add_row(f"{reduction} loss", f"{result.loss:.6f}")
    table.add_row("perplexity", f"{result.perplexity:.6g}")
    table.add_row("accuracy", f"{result.accuracy:.4%}")
    table.add_row("top-5 accuracy", f"{result.top5_accuracy:.4%}")
    table.add_row("mean entropy", f"{result.mean_entropy:.6f}")
    table.add_row("throughput", f"{result.gb_per_second:.3g} GB/s, {result.seconds:.3f} s")
    Console().print(table)


@app.command()
def bench(
    preset: Annotated[
        str | None, typer.Option(help="quick, full, or parts of full with commas; see --list.")
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(help="Instead of a preset: 4096x1000,1000 (so many classes, 40 M logits)."),
    ] = None,
    axis: Annotated[int, typer.Option(help="Class axis of --shapes.")] = -1,
    dtypes: Annotated[str | None, typer.Option(help="float32,float64,float16,bfloat16")] = None,
    ops: Annotated[str | None, typer.Option(help="grad,loss,softmax,...; see --list.")] = None,
    variants: Annotated[str | None, typer.Option(help="plain,class_weight,...")] = None,
    peers: Annotated[
        str | None, typer.Option(help="torch,JAX,... or none; all installed if not given.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="For each contender of a case.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the same JSON to this file, after each case.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the picture: .png or .svg.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only list the cases.")] = False,
    saved: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Measure nothing: show a file that --output wrote."),
    ] = None,
) -> None:
    """Time ours, the memory of this machine and other libraries, in turns in one run."""
    from numba_ce.bench import command, results
    from numba_ce.bench.report import picture

    if saved:
        others = (preset, shapes, ops, dtypes, variants, peers, output)
        if show or any(option is not None for option in others):
            raise ValueError("--from shows saved results: expected only --plot and --json with it")
        data = results.load(saved)
        if plot is not None:
            results.check_output(plot, "plot")
        _show_bench(data, as_json)
    else:
        cases = command.select(preset, shapes, axis, ops, dtypes, variants)
        if show:
            typer.echo("\n".join(map(str, cases)))
            return
        command.check(cases, seconds, output, plot)
        data = results.start({"seconds": seconds, "peers": command.select_peers(peers)})
        try:
            with _progress() as bar:
                task = bar.add_task("", total=len(cases))
                command.run(
                    data,
                    cases,
                    output,
                    lambda done, case: bar.update(task, completed=done, description=case),
                )
        finally:  # what is measured is shown, also of a run that ends early
            _show_bench(data, as_json)
    if plot is not None:
        picture(data, plot)
    for path in filter(None, (output, plot)):
        errors.print(f"saved {path}", markup=False)


def _show_bench(data: dict[str, Any], as_json: bool) -> None:
    from numba_ce.bench.results import as_json as text_of

    if data["results"] and as_json:
        typer.echo(text_of(data), nl=False)
    elif data["results"]:
        _print_bench(data)


def _print_bench(data: dict[str, Any]) -> None:
    """A table of 80 columns for most cases; a longer one is not cut, also in a pipe."""
    from numba_ce.bench.report import NOTES, columns

    machine, found = data["machine"], columns(data["results"])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in found:
        left = heading in ("case", "fastest peer")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in zip(*found.values(), strict=True):
        table.add_row(*row)
    console = Console(highlight=False)
    wide = console.options.update(width=1000)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(f"{machine['processor']}, {machine['threads']} threads", soft_wrap=True)
    console.print(table)
    for heading in filter(NOTES.__contains__, found):
        console.print(f"{heading}: {NOTES[heading]}", soft_wrap=True)
    for entry in data["results"]:
        for name, reason in entry["failures"].items():
            text = f"{entry['case']}: {name} failed: {reason}"
            console.print(text, soft_wrap=True, markup=False)


@app.command()
def info() -> None:
    """Versions, backend, threads, processor and compiled kernels on disk.

    Prints all that it can; the exit status is 2 if a part of it fails.
    """
    table = Table(show_header=False)
    failures = []

    def row(name: str, value: Callable[[], str]) -> str:
        try:
            text = value()
        except Exception as error:
            text = f"failed: {_one_line(error)}"
            failures.append(_one_line(error))
        table.add_row(name, escape(text))  # names extras in brackets
        return text

    row("numba_ce", lambda: numba_ce.__version__)
    row("numba", lambda: import_module("numba").__version__)
    row("numpy", lambda: np.__version__)
    row("Python", platform.python_version)
    row("backend", _backend_in_use)
    available = {name: row(f"  {name}", partial(_availability, name)) for name in MODULES}
    if available["cpu"] == "available":
        row("threads", _threads)  # first: it lets Numba find TBB
        row("threading layer", _threading_layer)
        row("compiler", _compiler)
    row("processor", _processor)
    row("compiled kernels", lambda: _cache.describe("cpu"))
    row("GPU", _gpu)
    Console().print(table)
    if failures:
        raise RuntimeError("; ".join(dict.fromkeys(failures)))


def _availability(name: str) -> str:
    return numba_ce.available_backends()[name] or "available"


def _backend_in_use() -> str:
    source = os.environ.get(VARIABLE)
    why = f"{VARIABLE}={source}" if source else "default: where the data lives"
    return f"{numba_ce.get_backend()} ({why})"


def _threads() -> str:
    from numba_ce.cpu.run.threads import n_threads

    return str(n_threads())


def _compiler() -> str:
    from numba_ce.cpu.compile.jit import WHY_PLAIN

    return f"plain, slower, nothing kept on disk ({WHY_PLAIN})" if WHY_PLAIN else "fast"


def _threading_layer() -> str:
    """Known once a call has used it."""
    with numba_ce.use_backend("cpu"):
        numba_ce.cross_entropy(np.zeros((4096, 64), np.float32), np.zeros(4096, np.int64))
    return str(import_module("numba").threading_layer())


def _gpu() -> str:
    if numba_ce.available_backends()["cuda"] is not None:
        return "none that can be used"
    from numba_ce.cuda.driver import current_driver
    from numba_ce.cuda.ptx import toolkit_version

    gpu = current_driver()
    device = gpu.device()
    return "{}, sm_{}{}, driver for CUDA {}, compilers of CUDA {}".format(
        gpu.name(device), *gpu.capability(device), gpu.version, toolkit_version()
    )


def _processor() -> str:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    wanted = ("avx512f", "avx2", "fma", "f16c", "neon", "sve")
    found = [name for name in wanted if features.get(name)]
    return f"{binding.get_host_cpu_name()}: {', '.join(found) or 'no vector features reported'}"
