"""cli/predict"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fakedet.checkpoint import locate
from fakedet.config import check_config
from fakedet.data.scan import walk
from fakedet.detector import make_examiner, open_detector, shown_path, write_heatmap
from fakedet.errors import UserError
from fakedet.methods.base import Detector
from fakedet.metrics.decisions import OperatingPoint
from fakedet.utils import bar, provenance, threads, write_json

STDIN = "-"


def list_images(
    sources: list[str], tell_left_out: Callable[[Counter[str]], None] | None = None
) -> Iterator[str]:
    """Yield the paths of images, each once, folders walked to all depths.

    Args:
        sources: files, folders, globs (``**`` goes deep), or "-" for a list of paths on standard input, one a
            line. A file that is named is yielded whatever its name; in folders only names of images are.
        tell_left_out: called at the end with how many files of which endings were left aside in folders.

    Raises:
        UserError: a source is not there, or all of them hold no images.
    """
    seen: set[str] = set()
    left_out: Counter[str] = Counter()
    for path in _expand(sources, left_out):
        if path not in seen:
            seen.add(path)
            yield path
    if tell_left_out is not None:
        tell_left_out(left_out)
    if not seen:
        raise UserError(f"source={', '.join(sources)}: there are no images (jpg, png, webp, bmp, tif, ...)")


def _expand(sources: list[str], left_out: Counter[str]) -> Iterator[str]:
    for source in sources:
        if source == STDIN:
            # A file that a list names and that is not there fails by itself; the others go on.
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif Path(source).is_dir():
            for listing in walk(Path(source)):
                left_out.update(listing.others)
                names = sorted(
                    [name for name, _, _ in listing.images] + [name for name, _ in listing.problems]
                )
                yield from (str(Path(source, listing.folder, name)) for name in names)
        elif Path(source).exists():
            yield source
        elif glob.has_magic(source):
            yield from sorted(path for path in glob.glob(source, recursive=True) if Path(path).is_file())
        else:
            raise UserError(f"source={source}: there is no such file or folder")


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


log = logging.getLogger("fakedet")


JUDGED_BY = ("false_alarm", "miss", "views", "tiles")
"""Settings that answers depend on."""


@dataclass(frozen=True)
class Predicted:
    """What a run said."""

    output: Path
    counts: Counter[str]
    resumed: int
    """Images that were done before."""


def predict_source(config: DictConfig, overrides: list[str]) -> Predicted:
    """Look at every image that ``source`` names, and write a row for each.

    Raises:
        UserError: anything wrong with checkpoint, source, settings or output; single files never.
    """
    check_config(config)
    if config.heatmaps and not config.tiles:
        raise UserError("heatmaps are made of tiles; tiles=0 leaves nothing to draw")
    sources = [config.source] if isinstance(config.source, str) else [str(item) for item in config.source]
    method, point = open_detector(config)
    draw = partial(write_heatmap, Path(config.heatmaps)) if config.heatmaps else None
    desk = make_examiner(config, method, point, draw)
    output = Path(config.output)
    with Sink(output, config.resume) as sink, threads(config.threads), bar("looking at images") as shown:
        changed: list[str] = []
        todo = _todo(list_images(sources, _tell_left_out), sink, changed)
        resumed, done, errors = len(sink.done), 0, sink.counts["error"]
        about = output.with_name(f"{output.name}.about.json")
        content = _about(config, overrides, method, point)
        if resumed:
            _check_same(about, content, output)
        write_json(about, content)
        while part := list(islice(todo, config.images_at_a_time)):
            sink.write(desk.rows(part))
            done += len(part)
            shown.show(done, ", ".join(f"{count} {what}" for what, count in sorted(sink.counts.items())))
    _tell_kept(output, resumed, errors, changed, bool(draw))
    if sink.first_error:
        log.warning("%d files could not be looked at, the first: %s; the column 'error' says why", sink.counts["error"],
                    sink.first_error)  # fmt: skip
    return Predicted(output, sink.counts, resumed)


def _todo(paths: Iterable[str], sink: Sink, changed: list[str]) -> Iterator[str]:
    """Give the images without a row; note those that were written after their row."""
    for path in paths:
        if shown_path(path) not in sink.done:
            yield path
        elif (file := Path(path)).exists() and file.stat().st_mtime > sink.written:
            changed.append(path)


def _tell_kept(output: Path, resumed: int, errors: int, changed: list[str], heatmaps: bool) -> None:
    """Say what the rows that were there before leave out."""
    if changed:
        log.warning("%d images were changed after their rows in %s were written, the first: %s; the rows are of "
                    "what was there before: name another output to look at them",
                    len(changed), output, changed[0])  # fmt: skip
    if errors:
        log.warning("%d of the rows in %s are errors of an earlier start, not tried again: name another output to try",
                    errors, output)  # fmt: skip
    if heatmaps and resumed:
        log.warning("heatmaps are drawn while an image is looked at: of the %d done before there are none new; name "
                    "another output for theirs", resumed)  # fmt: skip


def _tell_left_out(kinds: Counter[str]) -> None:
    """Say which files of the folders were not looked at for their names."""
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
        log.warning("%d files in the folders are not named like images this can read, and were not looked at: %s",
                    sum(kinds.values()), listed)  # fmt: skip


def _check_same(about: Path, content: dict[str, Any], output: Path) -> None:
    """Refuse to add rows to a file whose rows were made in another way.

    Raises:
        UserError: with what differs.
    """
    try:
        earlier = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        log.warning(
            "%s is missing: whether the rows in %s were made in the same way is not known", about, output
        )
        return
    changed = [
        f"{key} was {earlier['config'].get(key)}, is {content['config'][key]}"
        for key in JUDGED_BY
        if earlier["config"].get(key) != content["config"][key]
    ]
    if earlier.get("checkpoint_sha256") != content["checkpoint_sha256"]:
        changed.append("the checkpoint is another one")
    if changed:
        raise UserError(
            f"output={output} holds answers made in another way ({'; '.join(changed)}); name another output, or give "
            "the earlier settings"
        )


def _about(
    config: DictConfig, overrides: list[str], method: Detector, point: OperatingPoint
) -> dict[str, Any]:
    identity = {key: value for key, value in method.identity.items() if key != "operating_point"}
    return {
        "config": OmegaConf.to_container(config, resolve=True), "detector": identity,
        "checkpoint_sha256": hashlib.sha256(locate(config.checkpoint).read_bytes()).hexdigest(),
        "operating_point": {
            "rate": point.rate, "n_real": point.n_real, "n_fake": point.n_fake, "calibration": point.calibration.kind,
            "threshold": point.threshold if math.isfinite(point.threshold) else None,
        },
        "run": provenance(["fakedet", "predict", *overrides]),
    }  # fmt: skip
