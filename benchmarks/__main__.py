"""Run every benchmark and put its tables into docs/performance.md.

A section of that page names the command of its benchmark in its heading; its table is replaced by what was measured.

Run: python -m benchmarks [name ...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
NAMES = ("decode", "augmentation", "average_precision", "manifest", "walk", "shards", "robustness", "training",
         "transfer", "features", "predict", "evaluation", "startup", "export")  # fmt: skip


def is_result(line: str) -> bool:
    """Say whether a line is of a table or of a list below it."""
    return line.startswith(("|", "- "))


def tables(text: str) -> list[str]:
    """Take the results out of what a benchmark printed, with an empty line between tables."""
    lines: list[str] = []
    for line in text.splitlines():
        if is_result(line):
            if lines and lines[-1][:1] not in ("", line[0]):
                lines.append("")
            lines.append(line)
        elif lines and lines[-1]:
            lines.append("")
    return lines if lines[-1] else lines[:-1]


def replaced(page: str, name: str, found: list[str]) -> str:
    """Give the page with the results of one section replaced.

    Raises:
        SystemExit: the page has no such section, or the section has no table.
    """
    lines = page.splitlines()
    heading = f"`python -m benchmarks.{name}`"
    start = next(
        (number for number, line in enumerate(lines) if line.startswith("## ") and line.endswith(heading)),
        None,
    )
    if start is None:
        raise SystemExit(f"{PAGE.name} has no section for {heading}")
    end = next((n for n, line in enumerate(lines) if n > start and line.startswith("## ")), len(lines))
    results = [number for number in range(start, end) if is_result(lines[number])]
    if not results:
        raise SystemExit(f"{PAGE.name}: the section of {heading} has no table to replace")
    return "\n".join([*lines[: results[0]], *found, *lines[results[-1] + 1 :]]) + "\n"


def main() -> None:
    """Run the named benchmarks, or all."""
    for name in sys.argv[1:] or NAMES:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True, check=True
        )
        print(done.stdout, flush=True)
        PAGE.write_text(replaced(PAGE.read_text(), name, tables(done.stdout)))


if __name__ == "__main__":
    main()
