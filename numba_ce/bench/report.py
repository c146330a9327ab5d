"""From results to a table, for the terminal or a page, and to the one picture."""

from __future__ import annotations

import importlib
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from numba_ce.bench.cases import OPERATIONS, Case
from numba_ce.bench.measure import COMPARED, OURS
from numba_ce.bench.results import replacing

COLOURS = {
    OURS: "#d1495b",
    "torch.compile": "#30638e",
    "JAX": "#5b8e7d",
    "torch": "#8d99ae",
    "scikit-learn": "#edae49",
    "NumPy": "#777777",
    "Numba": "#2a9d8f",
    "SciPy": "#9c6bae",
}
HEADINGS = (
    "case", "time", "GB/s", "limit", "of the limit", "best peer", "over it", "time over compared",
)  # fmt: skip
#: What the columns of the terminal mean
NOTES = {
    "limit": "GB/s of a bare sweep over the same arrays, in turns with the case",
    "share": "of the time that the limit allows for all bytes",
    "gain": "time of the fastest peer over ours",
    "compared": "our time over that of the plain case (row_stats: of loss; 16 bits: of float32)",
}
PICTURES = (".png", ".svg")
#: A limit measured on arrays smaller than this may be that of a cache
BEYOND_CACHES = 70_000_000


class Line(NamedTuple):
    """An entry of the results as a person reads it; None where there is no such figure."""

    case: str
    seconds: float
    gb_per_second: float
    limit: float  # GB/s of the sweep
    share: float | None  # of the time that the limit leaves for all bytes, over ours
    peer: str | None  # the fastest
    peer_seconds: float | None
    ratio: float | None  # of its time over ours
    compared: float | None  # our time over that of the case compared with


def line(entry: dict[str, Any]) -> Line:
    """The figures of an entry."""
    seconds, counted = entry["seconds"], entry["counted_bytes"]
    ours, limit = seconds[OURS], seconds[OPERATIONS[entry["op"]].limit]
    peers = peers_of(entry)
    in_cache = _fits_a_cache(entry["op"], counted)
    peer = min(peers, key=lambda name: peers[name]) if peers else None
    return Line(
        entry["case"],
        ours,
        counted / ours / 1e9,
        counted / limit / 1e9,
        None if in_cache else limit * entry["all_bytes"] / counted / ours,
        peer,
        None if peer is None else peers[peer],
        None if peer is None else peers[peer] / ours,
        ours / seconds[COMPARED] if COMPARED in seconds else None,
    )


def _fits_a_cache(op: str, counted_bytes: int) -> bool:
    return counted_bytes / OPERATIONS[op].arrays < BEYOND_CACHES


def peers_of(entry: dict[str, Any]) -> dict[str, float]:
    """Seconds of the other libraries."""
    own = (OURS, COMPARED, OPERATIONS[entry["op"]].limit)
    return {name: value for name, value in entry["seconds"].items() if name not in own}


def duration(seconds: float) -> str:
    """In the unit that suits."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def cells(entry: dict[str, Any]) -> list[str]:
    """A line of the table, in the order of HEADINGS."""
    found = line(entry)
    return [
        found.case,
        duration(found.seconds),
        f"{found.gb_per_second:.1f}",
        f"{found.limit:.1f}",
        "" if found.share is None else f"{found.share:.2f}",
        "" if found.peer_seconds is None else f"{found.peer} {duration(found.peer_seconds)}",
        "" if found.ratio is None else f"{found.ratio:.1f} x",
        "" if found.compared is None else f"{found.compared:.2f}",
    ]


def columns(entries: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The table of the terminal, without the columns that are empty."""
    lines = [line(entry) for entry in entries]
    found = {
        "case": [a.case for a in lines],
        "time": [duration(a.seconds) for a in lines],
        "GB/s": [f"{a.gb_per_second:.1f}" for a in lines],
        "limit": [f"{a.limit:.1f}" for a in lines],
        "share": ["" if a.share is None else f"{a.share:.0%}" for a in lines],
        "fastest peer": [a.peer or "" for a in lines],
        "gain": ["" if a.ratio is None else f"{a.ratio:.1f} x" for a in lines],
        "compared": ["" if a.compared is None else f"{a.compared:.2f} x" for a in lines],
    }
    return {heading: cells for heading, cells in found.items() if any(cells)}


def markdown_table(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def libraries_table(entries: list[dict[str, Any]]) -> str:
    """GB/s of every library, as Markdown."""
    names = [name for name in COLOURS if any(name in entry["seconds"] for entry in entries)]
    rows = []
    for entry in entries:
        speeds = [
            f"{entry['counted_bytes'] / entry['seconds'][name] / 1e9:.1f}"
            if name in entry["seconds"]
            else ""
            for name in names
        ]
        rows.append([entry["case"], f"{line(entry).limit:.1f}", *speeds])
    return markdown_table(("case", "limit", *names), rows)


def _in_picture(case: Case) -> bool:
    """Whether it is a gradient of float32 rows, plain, beyond the caches."""
    plain = Case("grad", case.shape)
    return case == plain and len(case.shape) == 2 and not _fits_a_cache("grad", case.counted_bytes)


def _case(entry: dict[str, Any]) -> Case:
    return Case(entry["op"], tuple(entry["shape"]), entry["dtype"], entry["axis"], entry["variant"])


def check_plot(path: Path) -> None:
    """Whether there is something to draw with, and a format."""
    if path.suffix not in PICTURES:
        raise ValueError(f"plot = {str(path)!r}: expected a name that ends in .png or .svg")
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise ImportError("the picture needs matplotlib: pip install 'numba-ce[bench]'") from None


def pyplot() -> Any:
    """Of matplotlib, which needs no screen here and writes the same bytes every time."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "numba_ce"
    return importlib.import_module("matplotlib.pyplot")


def save_figure(figure: Any, path: Path) -> None:
    """Complete or not at all, by the name's ending."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:], dpi=150, metadata=metadata)
    pyplot().close(figure)


def check_picture(cases: list[Case], path: Path) -> None:
    """Whether there is something to draw, something to draw with, and a format."""
    if not any(map(_in_picture, cases)):
        raise ValueError(
            "no case for the picture: expected cases of op grad, float32, two axes, axis -1, "
            f"without a variant, of {BEYOND_CACHES / 1e6:.0f} MB or more"
        )
    check_plot(path)


def picture(data: dict[str, Any], path: Path) -> None:
    """Share of the memory limit over the number of classes, a line for each library."""
    check_picture([_case(entry) for entry in data["results"]], path)
    entries = [entry for entry in data["results"] if _in_picture(_case(entry))]
    entries.sort(key=lambda entry: int(entry["shape"][1]))
    from matplotlib.ticker import NullLocator, PercentFormatter

    figure, axes = pyplot().subplots(figsize=(8, 4), layout="constrained")
    for name, colour in COLOURS.items():
        points = [(e["shape"][1], share_of(e, name)) for e in entries if name in e["seconds"]]
        if points:
            ours = name == OURS
            axes.plot(
                *zip(*points, strict=True),
                label=name, color=colour, marker="o", ms=4, lw=2.5 if ours else 1.3,
                zorder=3 if ours else 2,
            )  # fmt: skip
    axes.axhline(1.0, color="black", lw=1)
    axes.set_xscale("log")
    classes = [entry["shape"][1] for entry in entries]
    axes.set_xticks(ticks_of(classes), [str(n) for n in ticks_of(classes)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0.0, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_xlabel("classes (rows so that there are some 40 million float32 logits)")
    axes.set_ylabel("share of the memory limit")
    machine = f"{data['machine']['processor']}, {data['machine']['threads']} threads"
    ratios = [ratio for entry in entries if (ratio := line(entry).ratio) is not None]
    gain = f"; median {statistics.median(ratios):.1f} x the fastest peer" if ratios else ""
    axes.set_title(f"Loss and gradient, {machine}{gain}", fontsize=10)
    axes.legend(frameon=False, loc="upper left", ncols=2, bbox_to_anchor=(0.0, 0.95))
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def share_of(entry: dict[str, Any], name: str) -> float:
    """Of the limit, for one library."""
    limit = entry["seconds"][OPERATIONS[entry["op"]].limit]
    return float(limit * entry["all_bytes"] / entry["counted_bytes"] / entry["seconds"][name])


def ticks_of(classes: list[int]) -> list[int]:
    """Some of them, so far apart that the labels, longer with more digits, do not touch."""
    ticks: list[int] = []
    for n in classes:
        if not ticks or n >= (1.7 + 0.15 * len(str(n))) * ticks[-1]:
            ticks.append(n)
    return ticks
