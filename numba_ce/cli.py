"""The commands demo, eval, bench and info."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import numba
import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import numba_ce
from numba_ce import _cache
from numba_ce.demo import compare
from numba_ce.evaluate import Evaluation, evaluate

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Softmax cross-entropy for NumPy arrays."
)
errors = Console(stderr=True, soft_wrap=True, highlight=False)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
    )


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient descent.")] = 2000,
) -> None:
    """Fit a softmax classifier to handwritten digits, fused and in plain NumPy."""
    with _progress() as bar:
        task = bar.add_task("training", total=2 * steps)

        def show(step: int, loss: float) -> None:
            if step % 20 == 19 or step == steps - 1:
                bar.update(task, advance=step % 20 + 1, description=f"training, loss {loss:.4f}")

        result = compare(steps, show)
    fused, plain = result.fused, result.plain
    table = Table(title=f"{result.n_train} digits, {steps} steps")
    for heading in ("", "numba_ce", "plain NumPy", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, a, b in (
        ("loss and gradient, us per step", fused.seconds_in_loss, plain.seconds_in_loss),
        ("whole loop, us per step", fused.seconds, plain.seconds),
    ):
        table.add_row(name, f"{a / steps * 1e6:.0f}", f"{b / steps * 1e6:.0f}", f"{b / a:.1f}")
    table.add_row("final loss", f"{fused.loss:.6f}", f"{plain.loss:.6f}", "")
    console = Console()
    console.print(table)
    console.print(f"test accuracy: {result.accuracy:.1%} of {result.n_test} digits not trained on")
    console.print(f"largest difference of the weights: {result.largest_difference:.1e}")


@app.command(name="eval")
def evaluate_files(
    logits: Annotated[Path, typer.Argument(help=".npy file or Zarr array, two axes, floats.")],
    targets: Annotated[Path, typer.Argument(help=".npy file, one axis, class indices.")],
    axis: Annotated[int, typer.Option(help="Class axis of the logits.")] = -1,
    reduction: Annotated[str, typer.Option(help="mean or sum.")] = "mean",
    label_smoothing: Annotated[float, typer.Option()] = 0.0,
    ignore_index: Annotated[int, typer.Option(help="Rows with this target do not count.")] = -100,
    z_loss: Annotated[float, typer.Option()] = 0.0,
    softcap: Annotated[float | None, typer.Option()] = None,
    temperature: Annotated[float, typer.Option()] = 1.0,
    class_weight: Annotated[Path | None, typer.Option(help=".npy file, one per class.")] = None,
    grad_out: Annotated[Path | None, typer.Option(help="Write the gradient to this file.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="What |V2 in a file stands for, as bfloat16.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Loss, perplexity, accuracy and entropy of stored logits."""
    try:
        with _progress() as bar:
            task = bar.add_task("rows")
            result = evaluate(
                logits,
                targets,
                axis=axis,
                reduction=reduction,
                label_smoothing=label_smoothing,
                ignore_index=ignore_index,
                z_loss=z_loss,
                softcap=softcap,
                temperature=temperature,
                class_weight=class_weight,
                grad_out=grad_out,
                dtype=dtype,
                progress=lambda done, rows: bar.update(task, completed=done, total=rows),
            )
    except (OSError, ValueError, TypeError, ImportError) as error:
        errors.print(f"numba-ce eval: {error}", markup=False)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
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
    table.add_row("throughput", f"{result.gb_per_second:.2f} GB/s, {result.seconds:.3f} s")
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
    as_json: Annotated[
        Path | None,
        typer.Option(
            "--json", help="The file for the results; benchmarks/results/DATE-TIME-cpu.json."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the picture: .png or .svg.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only list the cases.")] = False,
) -> None:
    """Time ours, the memory of this machine and other libraries, in turns in one run."""
    from numba_ce.bench import command, results

    try:
        cases = command.select(preset, shapes, axis, ops, dtypes, variants)
        if show:
            typer.echo("\n".join(map(str, cases)))
            return
        found = command.select_peers(peers)
        path = results.default_path() if as_json is None else as_json
        with _progress() as bar:
            task = bar.add_task("", total=len(cases))
            data = command.run(
                cases,
                found,
                seconds,
                path,
                lambda done, case: bar.update(task, completed=done, description=case),
            )
        _print_bench(data)
        Console().print(f"saved {path}", soft_wrap=True, highlight=False)
        if plot is not None:
            from numba_ce.bench.report import picture

            picture(data, plot)
    except (OSError, ValueError, TypeError, ImportError) as error:
        errors.print(f"numba-ce bench: {error}", markup=False)
        raise typer.Exit(2) from None


def _print_bench(data: dict[str, Any]) -> None:
    from numba_ce.bench.report import HEADINGS, cells

    machine = data["machine"]
    table = Table(title=f"{machine['processor']}, {machine['threads']} threads")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for entry in data["results"]:
        table.add_row(*cells(entry))
        for name, reason in entry["failures"].items():
            table.add_row(escape(f"  {name} failed: {reason}"))
    Console().print(table)


@app.command()
def info() -> None:
    """Versions, backend, threads, processor and compiled kernels on disk."""
    table = Table(show_header=False)
    table.add_row("numba_ce", numba_ce.__version__)
    for name, module in (("numba", numba), ("numpy", np)):
        table.add_row(name, module.__version__)
    table.add_row("Python", platform.python_version())
    try:
        name = numba_ce.get_backend()
    except (ValueError, RuntimeError) as error:
        name = f"none: {error}"
    source = os.environ.get("NUMBA_CE_BACKEND")
    why = f"NUMBA_CE_BACKEND={source}" if source else "default: where the data lives"
    table.add_row("backend", escape(f"{name} ({why})"))
    for backend, reason in numba_ce.available_backends().items():
        table.add_row(f"  {backend}", escape(reason or "available"))  # names extras in brackets
    if numba_ce.available_backends()["cpu"] is None:
        from numba_ce.cpu.threads import n_threads

        table.add_row("threads", str(n_threads()))  # first: it lets Numba find TBB
        numba_ce.cross_entropy(np.zeros((4096, 64), np.float32), np.zeros(4096, np.int64))
        table.add_row("threading layer", numba.threading_layer())  # type: ignore[attr-defined]
        table.add_row("processor", _processor())
        table.add_row("compiled kernels", escape(_cache.describe("cpu")))
    table.add_row("GPU", _gpu())
    Console().print(table)


def _gpu() -> str:
    if numba_ce.available_backends()["cuda"] is not None:
        return "none that can be used"
    from numba_ce.cuda.driver import current_driver

    gpu = current_driver()
    device = gpu.device()
    return "{}, sm_{}{}".format(gpu.name(device), *gpu.capability(device))


def _processor() -> str:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    wanted = ("avx512f", "avx2", "fma", "f16c", "neon", "sve")
    found = [name for name in wanted if features.get(name)]
    return f"{binding.get_host_cpu_name()}: {', '.join(found) or 'no vector features reported'}"
