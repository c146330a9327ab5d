"""From results of `numba-ce bench` to the figures of docs/speed.md and its picture.

python -m benchmarks.speed_page benchmarks/results/NAME.json [MORE.json ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from numba_ce.bench.cases import PARTS
from numba_ce.bench.report import HEADINGS, cells, libraries_table, markdown_table, picture
from numba_ce.bench.results import load

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- figures -->\n", "<!-- end of the figures -->\n"
TITLES = {
    "large": "Loss and gradient, many classes",
    "few": "Loss and gradient, few classes",
    "loss": "Loss only",
    "in_place": "Loss and gradient in place",
    "float64": "float64",
    "16bit": "bfloat16 and float16",
    "probabilities": "Probabilities as targets",
    "images": "Class axis 1 of images",
    "options": "Every option alone",
    "data": "Other data",
    "normalize": "softmax and log_softmax",
    "logsumexp": "logsumexp",
    "row_stats": "row_stats",
    "small": "Small calls",
    "threads": "One thread",
    "new_array": "Into a new array",
}
#: Where every library is shown, not only the fastest
IN_FULL = ("large", "few", "loss", "normalize", "logsumexp")


def figures(data: dict[str, Any]) -> str:
    """All tables, each under its title."""
    entries = {entry["case"]: entry for entry in data["results"]}
    machine, versions = data["machine"], data["versions"]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = (
        f"{machine['processor']}, {machine['threads']} threads; {data['date'][:10]}; {software}.\n"
    )
    for part, cases in PARTS.items():
        found = [entries[str(case)] for case in cases if str(case) in entries]
        if not found:
            continue
        text += f"\n### {TITLES[part]}\n\n"
        text += markdown_table(HEADINGS, [cells(entry) for entry in found]) + "\n"
        if part in IN_FULL:
            text += "\nGB/s of every library:\n\n" + libraries_table(found) + "\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    data = load(parser.parse_args().results)
    page = DOCS / "speed.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + figures(data) + END + after)
    picture(data, DOCS / "speed.svg")


if __name__ == "__main__":
    main()
