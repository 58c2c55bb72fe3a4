"""Help that nobody reads to its end is no failure."""

import subprocess
import sys
from pathlib import Path

import pytest

from fakedet.cli.app import launch


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


@pytest.mark.parametrize("verb", ["index", "train", "evaluate", "predict", "serve", "compare", "match"])
def test_help_says_what_each_value_is_for(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "conf" / f"{verb}.yaml").read_text()
    own = [line for line in text[: text.index("\nhydra:")].split("\n\n", 1)[1].splitlines() if line.strip()]
    with pytest.raises(SystemExit, match="0"):
        launch(verb, ["--help"])
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in own if line not in shown] == []
    assert any(line.startswith("#") for line in own)
    assert any(line.startswith("From ") and f"{verb}.yaml" in line for line in shown)
