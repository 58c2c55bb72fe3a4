"""A running `fakedet serve`, for the tests of several folders."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path


class Served:
    """A running `fakedet serve`."""

    def __init__(self, temporary: Path, *more: str) -> None:
        temporary.mkdir(exist_ok=True)
        self.temporary = temporary
        environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fakedet", "serve", "checkpoint=demo", "threads=1", *more],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        self.said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"the page is at (\S+)", line):
                self.address = found.group(1)
                return
        raise AssertionError(f"it ended: {self.said}")

    def files(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file() and "fakedet-job" not in path.name]

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.said += self.process.communicate(timeout=120)[0]
        return self.process.returncode
