"""Help that nobody reads to its end is no failure."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_help_into_a_pipe_that_is_closed_says_nothing_more() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fakedet", "train", "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    assert errors == ""
