"""`fakedet predict`: find the images, judge them, and append a row for each to a CSV or JSON lines file.

Paths that have a row already are left out, so a stopped run goes on where it was; ``<output>.about.json`` holds what
the rows were made with, and a run with other settings adds none.
"""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import json
import logging
import math
import os
import stat
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import cv2
from omegaconf import DictConfig

from fakedet.cli.cards import MADE_BY, ReportSettings, guarded, read_rows, unguarded, write_folder_report
from fakedet.config import check_config
from fakedet.data import decode
from fakedet.data.decode import DecodeError
from fakedet.data.kinds import NOT_LOOKED_AT
from fakedet.data.scan import describe_left_behind, is_left_behind
from fakedet.detector import (
    COLUMNS,
    UNDECIDED,
    Detector,
    Pixels,
    Prediction,
    Rules,
    Verdict,
    files_below,
    load,
    shown_path,
)
from fakedet.errors import UserError
from fakedet.shipped import DEFAULT
from fakedet.utils import Bar, bar, plain, provenance, threads, write_json

log = logging.getLogger("fakedet")

ERROR = "error"  # stands for the verdict where counts are kept of files that cannot be read


def outcome(verdict: str | None, error: str | None) -> str:
    """Return what a row counts as: its verdict, "not looked at", or "error" for an image that cannot be read."""
    if error:
        return NOT_LOOKED_AT if error.startswith(NOT_LOOKED_AT) else ERROR
    return str(verdict)


def run_predict(config: DictConfig, overrides: list[str]) -> None:
    """Judge each image that ``source`` names and has no row yet, and write its row; status 1 if one cannot be read.

    Files that are plainly no images get a row that says so, and do not matter for the status.
    """
    detector, rules = open_detector(config, "batch_size", "images_at_a_time", "memory_mb", "heatmap_tiles")
    detector.memory_mb = config.memory_mb
    heatmaps = Path(config.heatmaps) if config.heatmaps else None
    sources = [config.source] if isinstance(config.source, str) else list(config.source)
    _check_places(config, sources)
    own = [str(path) for path in (config.report, config.heatmaps) if path]
    writer = Writer(Path(config.output), config.resume)
    done, errors, changed = 0, writer.counts[ERROR], list[str]()
    with threads(config.threads), writer, bar("judging images") as shown:
        _write_about(writer, detector, plain(config), overrides)
        _count_in_background(sources, own, writer, shown)
        todo = _without_row(sources, own, writer, changed)
        # The pixels under heatmaps stay in memory: one image at a time.
        while part := list(islice(todo, 1 if heatmaps else config.images_at_a_time)):
            found = []
            examined = detector.examine(part, rules, config.batch_size, config.heatmap_tiles if heatmaps else 0)
            for path, (prediction, drawn) in zip(part, examined, strict=True):
                found.append(prediction)
                if heatmaps is not None and drawn is not None:
                    _write_heatmap(heatmaps, path, drawn)
            writer.write(found)
            done += len(part)
            shown.show(done, ", ".join(f"{count} {what}" for what, count in sorted(writer.counts.items())))
    _tell_kept(writer, errors, changed, heatmaps is not None)
    if config.report:
        rows = read_rows(writer.path)
        wanted = min(config.report_cards, sum(row.verdict is not None for row in rows))
        with threads(config.threads), bar("cards of the report", wanted) as shown:
            write_folder_report(
                Path(config.report), rows, detector, rules,
                ReportSettings(config.report_cards, config.report_heatmaps, config.heatmap_tiles, config.prior,
                         config.batch_size), shown,
            )  # fmt: skip
        log.info("report      %s", config.report)
    for what in (*get_args(Verdict), NOT_LOOKED_AT, ERROR):
        if what in get_args(Verdict) or writer.counts[what]:
            told_in = {UNDECIDED: "reason", NOT_LOOKED_AT: "error"}.get(what)
            why = f"  (the column '{told_in}' says why)" if told_in and writer.counts[what] else ""
            log.info("%-14s %d%s", what, writer.counts[what], why)
    log.info("written to  %s", writer.path)
    if writer.counts[ERROR]:
        raise SystemExit(1)


def open_detector(config: DictConfig, *positive: str) -> tuple[Detector, Rules]:
    """Check the config of a verb that judges images, load its detector, and say what that knows and cannot promise.

    UserError for a value of the keys ``positive`` below 1, for rules out of range, for a checkpoint that does not exist
    or has no operating point, and for an unknown device.
    """
    check_config(config)
    for key in positive:
        if config[key] < 1:
            raise UserError(f"{key}={config[key]}: must be at least 1")
    rules = Rules(config.false_alarm, config.miss, tuple(str(view) for view in config.views), config.tiles,
                  config.get("frames", Rules.frames), config.all_views)  # fmt: skip
    if config.get("detector") and config.checkpoint != DEFAULT:
        raise UserError(f"checkpoint={config.checkpoint} and detector={config.detector.name}: name one of them")
    detector = load(config.checkpoint, config.device, config.trust, config.backbone,
                    detector=plain(config.get("detector")), weights=config.weights)  # fmt: skip
    point = detector.require_operating_point()
    log.info("detector '%s', trained on fakes of: %s", detector.info["name"],
             ", ".join(detector.generators) or "none (it knows real images only)")  # fmt: skip
    if data := detector.info.get("training_data"):
        log.info("and on real images of the sources: %s", ", ".join(data["real"]))
    if (card := detector.path.with_suffix(".md")).is_file():
        log.info("how well it does, and what it cannot do: %s", card)
    log.info("%s", point.promise(rules.false_alarm, rules.miss))
    if not 0 < config.prior < 1:
        raise UserError(f"prior={config.prior}: a share between 0 and 1, such as 0.05")
    if cost := point.cost(rules.false_alarm, rules.miss, config.prior):
        log.info("%s", cost)
    if point.reference and (lowest := point.reference.lowest) > rules.false_alarm:
        log.warning("with %d real validation images no p-value can be below %.3f: nothing will be called fake",
                    point.n_real, lowest)  # fmt: skip
    return detector, rules


def list_files(sources: Sequence[str]) -> Iterator[str]:
    """Yield the paths of files, each once, images or not; tell at the end what was left aside.

    Sources are files, folders (searched to all depths), globs (``**`` goes deep), or "-" for a list of paths on
    standard input, one a line. Raises UserError where one does not exist, or there are no files at all.
    """
    seen: set[str] = set()
    left_behind: Counter[str] = Counter()
    for source in sources:
        for path in _paths(source, left_behind):
            if path not in seen:
                seen.add(path)
                yield path
    if left := describe_left_behind(left_behind):
        log.warning("%s", left)
    if not seen:
        raise UserError(f"source={', '.join(sources)}: there are no images (jpg, png, heic, webp, tif, ...)")


def _paths(source: str, left_behind: Counter[str]) -> Iterator[str]:
    if source == "-":
        # A listed file that does not exist gets a row with its error; the others go on.
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # names are bytes, in any encoding
        yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        return
    try:
        found = os.stat(source)
    except OSError as error:
        found = None
        refused = error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
    if found is None and refused and not glob.has_magic(source):
        yield source  # a row with the reason; the other sources go on
    elif found is not None:
        yield from files_below(source, left_behind) if stat.S_ISDIR(found.st_mode) else [source]
    elif glob.has_magic(source):
        named = next(number for number, part in enumerate(Path(source).parts) if glob.has_magic(part))
        # Links may give a file many names; one of them is enough.
        files = {(os.path.realpath(os.path.dirname(path)), os.path.basename(path)): path
                 for path in sorted(_matches(source), reverse=True) if os.path.isfile(path)}  # fmt: skip
        for path in sorted(files.values()):
            below = [Path(path), *Path(path).parents][: len(Path(path).parts) - named]
            if left := next((one.name for one in reversed(below) if is_left_behind(one.name, str(one.parent))), None):
                left_behind["thumbnails" if left == Path(path).name else f"{left}/"] += 1
            else:
                yield path
    else:
        raise UserError(f"source={source}: there is no such file or folder")


def _matches(source: str) -> Iterator[str]:
    """Yield what a glob names; ``**`` enters each folder once, for a link can lead back to a folder that holds it."""
    parts, entered = source.split("/"), set[str]()
    if "**" not in parts:
        yield from glob.iglob(source)
        return
    place = parts.index("**")
    top, rest = "/".join([*parts[:place], ""]), "/".join(parts[place + 1 :]) or "*"
    for start in glob.iglob(top) if top else ("",):
        for folder, below, _ in os.walk(start or ".", followlinks=True):
            below[:] = sorted(name for name in below if not name.startswith("."))
            if (real := os.path.realpath(folder)) in entered:
                below.clear()
            else:
                entered.add(real)
                yield from _matches(os.path.join(glob.escape(folder if start else folder[2:]), rest))


class Writer:
    """Append predictions to a CSV (``.csv``) or JSON lines (``.jsonl``) file; a context manager.

    Args:
        path: of the file. Rows already in it are kept, and their paths are :attr:`done`.
        resume: go on with a file that is there; otherwise it is refused.

    Raises UserError for another ending, a file that `fakedet predict` did not write, or one that cannot be written.
    """

    def __init__(self, path: Path, resume: bool = True) -> None:
        if path.suffix not in (".csv", ".jsonl"):
            raise UserError(f"output={path}: name a .csv or a .jsonl file")
        self.path, self._is_json = path, path.suffix == ".jsonl"
        self.done: dict[str, str] = {}  # paths of the earlier rows → the beginning of their files' SHA-256, or ""
        self.counts: Counter[str] = Counter()  # what :func:`outcome` gives of all rows
        self.first_error = ""
        self.last_written = math.inf  # when the earlier rows were written, in seconds since the epoch
        if not path.exists() or not path.stat().st_size:
            return
        if not resume:
            raise UserError(f"output={path} is there already; name another one, or pass resume=true")
        self.last_written = path.stat().st_mtime
        text = path.read_bytes().decode("utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        try:
            lines = io.StringIO(whole, newline="")  # not by lines: a name may hold a line break
            table = csv.DictReader(lines)
            columns = set() if self._is_json else set(table.fieldnames or ())
            for row in map(json.loads, lines) if self._is_json else table:
                columns = columns or set(row)
                path_of = str(row["path"])
                self.done[path_of if self._is_json else unguarded(path_of)] = str(row.get("sha256") or "")[:16]
                self.counts[outcome(row["verdict"], row["error"])] += 1
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(f"output={path} was not written by `fakedet predict`; name another file") from error
        if "can't tell" in self.counts:
            raise UserError(f"output={path} is of fakedet 0.1, whose verdicts had other names; name another file")
        if columns and columns != set(COLUMNS):
            raise UserError(f"output={path} is of an older fakedet, whose columns were others; name another output")
        if len(whole) < len(text):  # a killed run left a part of its last line
            path.write_bytes(whole.encode())

    def __enter__(self) -> Writer:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists() or not self.path.stat().st_size
            self._file = open(self.path, "a", newline="", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"output={self.path} cannot be written: {error.strerror}") from error
        self._table = csv.DictWriter(self._file, COLUMNS)
        if new and not self._is_json:
            self._table.writeheader()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Append rows and make sure that they are on the disk; UserError if it is full: the rows before are whole."""
        try:
            for prediction in predictions:
                row = asdict(prediction)
                for key, value in row.items():
                    if isinstance(value, float):
                        row[key] = None if math.isnan(value) else float(f"{value:.6g}")
                if self._is_json:
                    self._file.write(json.dumps(row) + "\n")
                else:
                    self._table.writerow({key: guarded(value) if isinstance(value, str) else value
                                          for key, value in row.items()})  # fmt: skip
                self.counts[kind := outcome(prediction.verdict, prediction.error)] += 1
                if kind == ERROR and not self.first_error:
                    self.first_error = prediction.path
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"output={self.path} cannot be written: {error.strerror}; free space and run the same "
                            "command again") from error  # fmt: skip


def _check_places(config: DictConfig, sources: Sequence[str]) -> None:
    """Raise UserError where what is written would replace something else, or be judged the next time."""
    if (report := config.report) is not None:
        path = Path(report)
        if path.suffix not in (".html", ".htm"):
            raise UserError(f"report={report}: name a file that ends in .html")
        if path.is_dir():
            raise UserError(f"report={report} is a folder; name a file in it that ends in .html")
        if path.exists():
            with path.open("rb") as file:
                if MADE_BY.encode() not in file.read(2000):
                    raise UserError(f"report={report} is there already, and is no report of fakedet; name another file")
    if config.heatmaps is not None:
        folder = os.path.join(os.path.realpath(config.heatmaps), "")
        if over := next((one for one in sources if one != "-" and os.path.realpath(one) + os.sep == folder), None):
            raise UserError(
                f"heatmaps={config.heatmaps} is the folder of the pictures, source={over}; name another one"
            )


def _is_own(path: str, own: Collection[str]) -> bool:
    """Whether a file is, or lies below, what this run writes."""
    place = os.path.abspath(path)
    return any(place == one or place.startswith(one + os.sep) for one in own)


def _without_row(
    sources: Sequence[str], written_to: Sequence[str], writer: Writer, changed: list[str]
) -> Iterator[str]:
    """Yield the paths of files that have no row yet; those changed since their row was written go to ``changed``."""
    own = {os.path.abspath(str(path)) for path in (writer.path, _about(writer.path), *written_to)}
    for path in list_files(sources):
        if _is_own(path, own):
            continue
        if shown_path(path) not in writer.done:
            yield path
        elif _is_other(path, writer):
            changed.append(path)


def _is_other(path: str, writer: Writer) -> bool:
    """Whether a file is not the one that its row is of: read only if it was written, moved or copied there since."""
    try:
        found, known = os.stat(path), writer.done[shown_path(path)]
        if max(found.st_mtime, found.st_ctime) <= writer.last_written:
            return False
        return not known or decode.digest_of(path)[: len(known)] != known
    except (OSError, DecodeError):
        return False  # gone, or too large to have been read


def _count_in_background(sources: Sequence[str], written_to: Sequence[str], writer: Writer, shown: Bar) -> None:
    """Count the files to judge beside the work, so that the time left is known; standard input is read only once."""
    if "-" in sources:
        return
    own = {os.path.abspath(str(path)) for path in (writer.path, _about(writer.path), *written_to)}

    def count() -> None:
        with suppress(UserError, OSError):
            paths = {path for source in sources for path in _paths(source, Counter())}
            shown.set_total(sum(shown_path(path) not in writer.done and not _is_own(path, own) for path in paths))

    threading.Thread(target=count, daemon=True).start()


def _about(output: Path) -> Path:
    return output.with_name(f"{output.name}.about.json")


def _write_about(writer: Writer, detector: Detector, settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write down what the rows are made with; UserError if earlier rows were made with other settings."""
    about, point = _about(writer.path), detector.require_operating_point()
    content = {
        "config": settings,
        "detector": {key: value for key, value in detector.info.items() if key != "operating_point"},
        "checkpoint_sha256": hashlib.sha256(detector.path.read_bytes()).hexdigest(),
        "operating_point": {
            "rate": point.rate, "n_real": point.n_real, "n_fake": point.n_fake, "calibration": point.calibration.kind,
            "threshold": point.threshold if math.isfinite(point.threshold) else None,
            "left_out": point.left_out and point.left_out.to_dict()},
        "run": provenance(["fakedet", "predict", *overrides]),
    }  # fmt: skip
    if writer.done:
        try:
            earlier = json.loads(about.read_text(encoding="utf-8"))
            before = dict(earlier["config"])
        except (OSError, ValueError, LookupError, TypeError):
            log.warning("%s is missing or damaged: whether the rows in %s were made in the same way is not known",
                        about, writer.path)  # fmt: skip
            earlier, before = content, dict(settings)
        judged_by = ("false_alarm", "miss", "views", "tiles", "frames", "all_views")
        before.setdefault("frames", settings["frames"])  # rows of before videos were looked at
        other = [f"{key} was {before.get(key)}, is {settings[key]}" for key in judged_by
                 if before.get(key) != settings[key]]  # fmt: skip
        if earlier.get("checkpoint_sha256") != content["checkpoint_sha256"]:
            other.append("the checkpoint is another one")
        if other:
            raise UserError(f"output={writer.path} holds rows made with other settings ({'; '.join(other)}); name "
                            "another output, or give the earlier settings")  # fmt: skip
    write_json(about, content)


def _tell_kept(writer: Writer, errors: int, changed: list[str], heatmaps: bool) -> None:
    path, resumed = writer.path, len(writer.done)
    if changed:
        log.warning("%d images were changed after their rows in %s were written, the first: %s; the rows are of what "
                    "was there before: name another output to judge them again", len(changed), path,
                    changed[0])  # fmt: skip
    if errors:
        log.warning("%d of the rows in %s are errors of an earlier start, not tried again: name another output to try",
                    errors, path)  # fmt: skip
    if heatmaps and resumed:
        log.warning("heatmaps are drawn while an image is judged: of the %d done before there are none new; name "
                    "another output for theirs", resumed)  # fmt: skip
    if writer.first_error:
        files = "file" if writer.counts[ERROR] == 1 else "files"
        log.warning("%d %s could not be read, the first: %s; the column 'error' says why", writer.counts[ERROR], files,
                    writer.first_error)  # fmt: skip
    if resumed:
        log.info("%d images were done before", resumed)


def _write_heatmap(folder: Path, path: str, picture: Pixels) -> None:
    # Files of one name may lie in several folders.
    mark = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    target = folder / f"{shown_path(Path(path).stem)[:80]}_{mark}.jpg"
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.data if done else b"")
    except OSError as error:
        raise UserError(f"heatmaps={folder} cannot be written: {error.strerror}") from error
