"""Statements on disk: CSV or JSON lines, row by row, so that an interrupted run goes on."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fakedet.errors import UserError

COLUMNS = (
    "path", "verdict", "score", "p_value", "stability", "reason", "logit", "tile_score", "width", "height",
    "format", "jpeg_quality", "error",
)  # fmt: skip


class Sink:
    """Append rows to a CSV (``.csv``) or JSON lines (``.jsonl``) file; a context manager.

    Args:
        path: of the file. Rows that are there already are kept, and their paths are :attr:`done`.
        resume: go on with a file that is there; else it is refused.

    Raises:
        UserError: another ending, a file that is not ours, or one that cannot be written.
    """

    def __init__(self, path: Path, resume: bool = True) -> None:
        if path.suffix not in (".csv", ".jsonl"):
            raise UserError(f"output={path}: name a .csv or a .jsonl file")
        self.path, self._lines = path, path.suffix == ".jsonl"
        self.done: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.first_error = ""
        self.written = path.stat().st_mtime if path.exists() else math.inf
        """When the rows that were there already were written, in seconds since the epoch."""
        if path.exists() and path.stat().st_size:
            if not resume:
                raise UserError(f"output={path} is there already; name another one, or pass resume=true")
            self._read()

    def __enter__(self) -> Sink:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists() or not self.path.stat().st_size
            self._file = open(self.path, "a", newline="", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"output={self.path} cannot be written: {error.strerror}") from error
        self._writer = csv.DictWriter(self._file, COLUMNS)
        if new and not self._lines:
            self._writer.writeheader()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows and see to it that they are on the disk.

        Raises:
            UserError: the disk is full; the rows before are whole.
        """
        try:
            for row in rows:
                plain = {key: _plain(row.get(key)) for key in COLUMNS}
                if self._lines:
                    self._file.write(json.dumps(plain) + "\n")
                else:
                    self._writer.writerow(plain)
                self.counts["error" if row.get("error") else str(row["verdict"])] += 1
                if row.get("error") and not self.first_error:
                    self.first_error = str(row["path"])
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"output={self.path} cannot be written: {error.strerror}; free space and run the same command again"
            ) from error

    def _read(self) -> None:
        """Take the rows that are there; what a kill left of a last line is cut off."""
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        try:
            # Not by lines: a name may hold a line break.
            lines = io.StringIO(whole, newline="")
            rows = [json.loads(line) for line in lines] if self._lines else list(csv.DictReader(lines))
            for row in rows:
                self.done.add(row["path"])
                self.counts["error" if row["error"] else row["verdict"]] += 1
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(
                f"output={self.path} is there and not of `fakedet predict`; name another file"
            ) from error
        if len(whole) < len(text):
            self.path.write_bytes(whole.encode())


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return float(f"{value:.6g}") if isinstance(value, float) else value
