"""From the figures of versus_peers.py to docs/speed.md and docs/speed.svg.

python benchmarks/speed_report.py benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
NAMES = ("numba_ce", "torch.compile", "JAX", "torch", "scikit-learn", "NumPy")
COLOURS = ("#d1495b", "#30638e", "#5b8e7d", "#8d99ae", "#edae49", "#cccccc")

HEAD = """# Speed

Loss and gradient of float32 logits, {threads} threads, in GB/s of 8 bytes per element (logits read,
gradient written): medians of one run of `python benchmarks/versus_peers.py`, in which the streaming
copy and every contender take turns, one call each. Virtual machine with 2 cores of an AMD EPYC
(AVX-512), shared with others: figures and ratios move by tens of percent between runs. {versions}.

"copy" is a copy of the logits with stores that go around the caches, the limit of this memory. At
1048576 x 10 the arrays fit the cache of the host and their copy is no limit: no share is given.
"""

CASES = {
    "normal": "N(0, 1) logits, int64 targets",
    "trained": "The target ahead by 8 to 16",
    "30% ignored": "30% of the rows ignored",
    "int32 targets": "int32 targets",
}


def shape_name(shape: list[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def table(results: list[dict[str, Any]]) -> str:
    names = [n for n in ("copy", *NAMES) if any(n in r["gb_per_second"] for r in results)]
    lines = [
        "| rows x classes | " + " | ".join(names) + " | of the copy | over the best peer |",
        "|---|" + "---:|" * (len(names) + 2),
    ]
    for result in results:
        speed = result["gb_per_second"]
        best = max(v for n, v in speed.items() if n not in ("copy", "numba_ce"))
        cells = [f"{speed[n]:.1f}" if n in speed else "" for n in names]
        ours = speed["numba_ce"]
        fits_cache = result["shape"][0] * result["shape"][1] * 4 < 100e6
        share = "" if fits_cache else f"{ours / speed['copy']:.2f}"
        cells += [share, f"{ours / best:.1f} x"]
        lines.append(f"| {shape_name(result['shape'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "numba_ce"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.4), layout="constrained")
    width = 0.8 / len(NAMES)
    for i, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True)):
        places = [j + (i - (len(NAMES) - 1) / 2) * width for j in range(len(results))]
        speeds = [r["gb_per_second"].get(name, 0.0) for r in results]
        axes.bar(places, speeds, width, label=name, color=colour)
    for j, result in enumerate(results):
        if result["shape"][0] * result["shape"][1] * 4 < 100e6:
            continue  # in the cache of the host: no limit
        limit = result["gb_per_second"]["copy"]
        label = "streaming copy" if j == 1 else None
        axes.plot([j - 0.42, j + 0.42], [limit, limit], color="black", lw=1, label=label)
    axes.set_xticks(range(len(results)), [shape_name(r["shape"]) for r in results])
    axes.set_xlabel("rows x classes, float32, 2 threads")
    axes.set_ylabel("loss and gradient, GB/s")
    axes.legend(frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    data = json.loads(parser.parse_args().results.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    parts = [HEAD.format(threads=data["threads"], versions=versions)]
    for case, title in CASES.items():
        rows = [r for r in data["results"] if r["case"] == case]
        if rows:
            parts.append(f"## {title}\n\n{table(rows)}\n")
    (DOCS / "speed.md").write_text("\n".join(parts))
    picture([r for r in data["results"] if r["case"] == "normal"], DOCS / "speed.svg")


if __name__ == "__main__":
    main()
