"""`python -m tests.fuzz`: many calls of the public functions, good ones and bad ones.

Each case must give the result of the reference, within the promised accuracy, or the documented
error that names the argument; inputs stay as they were; every array lies beside a forbidden page.
Cases run in processes of their own: one that crashes or hangs is named, and the run goes on.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import faulthandler
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
HANGS_AFTER, EVERY = 120, 0.2  # seconds without another case, and between looks


def worker(seed, numbers, n_flavours, status):
    """Run cases; a line of JSON for each wrong one, and counts now and then."""
    from fuzz.calls import flavours
    from fuzz.case import Tally, run
    from fuzz.judge import WrongError
    from fuzz.memory import Arenas

    faulthandler.enable()
    menu, arenas, tally = flavours()[:n_flavours], Arenas(), Tally()
    file = os.open(status, os.O_RDWR)
    done = 0
    for number in numbers:
        os.pwrite(file, struct.pack("q", number), 0)
        try:
            run(seed, number, menu, arenas, tally)
        except WrongError as wrong:
            print(json.dumps({"wrong": number, "why": str(wrong)}), flush=True)
        except Exception as error:  # of the fuzzer itself
            import traceback

            why = "".join(traceback.format_exception(error))
            print(json.dumps({"wrong": number, "why": why}), flush=True)
        done += 1
        if done % 50 == 0:
            print(json.dumps({"done": 50}), flush=True)
    print(
        json.dumps(
            {
                "done": done % 50,
                "counts": tally.counts,
                "raised": sorted(filter(None, tally.raised)),
            }
        )
    )


class Process:
    """A worker with its share of the cases; it is started again behind a case that ended it."""

    def __init__(self, options, start, found):
        self.options, self.numbers, self.found = (
            options,
            range(start, options.cases, options.jobs),
            found,
        )
        handle, self.status = tempfile.mkstemp()
        os.close(handle)
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self):
        while len(self.numbers):
            self.numbers = self.once()

    def once(self):
        """Runs until the end or a crash; returns what is left."""
        n = self.numbers
        arguments = [n.start, n.stop, n.step, self.options.flavours, self.options.seed]
        Path(self.status).write_bytes(struct.pack("q", n.start))
        # In a folder of their own: a name in the place of an array is one of a file, also to write
        with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(
                [sys.executable, __file__, "--worker", self.status, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
            )
            watch = threading.Thread(target=self.watch, args=(process,))
            watch.start()
            with process:
                for line in process.stdout:
                    self.found.add(json.loads(line))
            code = process.returncode
            watch.join()
            if code == 0:
                return range(0)
            errors.seek(0)
            last = struct.unpack("q", Path(self.status).read_bytes())[0]
            how = f"the process ended with {code}\n{errors.read()[-3000:]}"
            self.found.add({"wrong": last, "why": how, "crash": True})
            return range(last + n.step, n.stop, n.step)

    def watch(self, process):
        """End a process that hangs; looks are counted, so that suspended ones do not."""
        last, looks = None, 0
        while process.poll() is None:
            now = Path(self.status).read_bytes()
            last, looks = now, looks + 1 if now == last else 0
            if looks * EVERY > HANGS_AFTER:
                process.kill()
            time.sleep(EVERY)


class Found:
    """What the workers report."""

    def __init__(self, progress):
        self.lock = threading.Lock()
        self.progress = progress
        self.wrong, self.counts, self.raised = [], {}, set()

    def add(self, report):
        with self.lock:
            if "wrong" in report:
                self.wrong.append(report)
                self.progress(0, len(self.wrong))
            else:
                self.progress(report["done"], len(self.wrong))
                for key, n in report.get("counts", {}).items():
                    self.counts[key] = self.counts.get(key, 0) + n
                self.raised |= set(report.get("raised", ()))


def raise_sites():
    """file:line of every `raise` of the modules that check arguments."""
    package = Path(find_spec("numba_ce").origin).parent  # the installed one, where that is tested
    checked = "_validate options api normalize records linear objective"
    names = [f"{module}.py" for module in checked.split()]
    for name in names:
        for node in ast.walk(ast.parse((package / name).read_text())):
            if isinstance(node, ast.Raise):
                yield name, range(node.lineno, node.end_lineno + 1)


def run(options, progress):
    """All cases; returns what was found."""
    found = Found(progress)
    workers = [Process(options, i, found) for i in range(options.jobs)]
    for each in workers:
        each.thread.join()
        os.unlink(each.status)
    return found


def report(options, found, seconds):
    """Print what was found."""
    for case in sorted(found.wrong, key=lambda c: c["wrong"])[: options.show]:
        print(f"\ncase {case['wrong']}: {case['why']}")
        again = f"--seed {options.seed} --flavours {options.flavours} --only {case['wrong']}"
        print(f"again: python -m tests.fuzz {again}")
    kinds = {}
    for key, n in sorted(found.counts.items()):
        function, kind, outcome = key.split()
        kinds.setdefault(function, {})[f"{kind} {outcome}"] = n
    columns = ("good result", "good error", "fault error", "junk result", "junk error")
    print(f"\n{'':32}" + "".join(f"{c:>14}" for c in columns))
    for function, row in kinds.items():
        print(f"{function:32}" + "".join(f"{row.get(c, 0):14,}" for c in columns))
    sites = list(raise_sites())
    missed = [
        f"{name}:{lines.start}"
        for name, lines in sites
        if not any(f"{name}:{line}" in found.raised for line in lines)
    ]
    print(
        f"raised at {len(sites) - len(missed)} of {len(sites)} places; not at {', '.join(missed)}"
    )
    crashes = sum("crash" in case for case in found.wrong)
    cases = f"seed {options.seed}: {options.cases:,} cases in {seconds:.0f} s"
    print(f"{cases}, {len(found.wrong)} wrong, {crashes} crashes")


def parse(arguments=None):
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this case in this process, and show it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--flavours", type=int, default=48, help="kinds of kernels, at most 48")
    parser.add_argument("--show", type=int, default=10, help="wrong cases to print")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run, report, and return the exit status."""
    options = parse(arguments)
    if options.only is not None:
        return only(options)
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    begin = time.monotonic()
    with Progress(*columns) as bar:
        task = bar.add_task("0 wrong", total=options.cases)
        found = run(options, lambda n, w: bar.update(task, advance=n, description=f"{w} wrong"))
    report(options, found, time.monotonic() - begin)
    return 1 if found.wrong else 0


def only(options):
    """One case, shown."""
    from fuzz.calls import flavours
    from fuzz.case import Tally, make, run
    from fuzz.memory import Arenas

    faulthandler.enable()
    menu, arenas = flavours()[: options.flavours], Arenas()
    call, expected = make(options.seed, options.only, menu, arenas)
    print(call.describe(), f"\nexpected: {expected or 'a result'}", flush=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run(options.seed, options.only, menu, arenas, Tally())
    print("right")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        status, *rest = sys.argv[2:]
        start, stop, step, n_flavours, seed = map(int, rest)
        worker(seed, range(start, stop, step), n_flavours, status)
    else:
        sys.exit(main())
