"""Parts of a measurement as processes of their own, which report line by line."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

MARK = "@line "  # before what a part reports


def report_line(line: dict[str, Any]) -> None:
    """Hand a line to the process that asked for this part."""
    print(MARK + json.dumps(line), flush=True)


def _kill(process: subprocess.Popen[str]) -> None:
    """A command and what it has started."""
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def lines_of(command: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    """What a command reports, as it comes; its end, if it is not a good one, is a line too."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    written: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as texts:
            for text in texts:
                written.put(text)
        written.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    end, last = time.monotonic() + seconds, ""
    try:
        while True:
            try:
                text = written.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                _kill(process)
                yield {"failed": f"stopped after {seconds:.0f} s"}
                return
            if text is None:
                break
            if text.startswith(MARK):
                yield json.loads(text.removeprefix(MARK))
            else:
                print(text, end="", flush=True)
                last = text.strip() or last
        if process.wait() != 0:
            yield {"failed": f"exit status {process.returncode}: {last[:300]}"}
    finally:
        if process.poll() is None:  # whoever asked for the lines has been stopped
            _kill(process)
        reader.join()
