"""Matching on disk: write all images of a manifest in one format, size and compression, and audit the result.

:class:`fakedet.data.match.Matcher` says what is done to an image; here it is done to all, with a new manifest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from fakedet.audit.features import Read, look, sample_rows
from fakedet.audit.shortcuts import Shortcut, audit_generators
from fakedet.data.datamodule import DataModule
from fakedet.data.dataset import cores
from fakedet.data.decode import DecodeError, parse_header, read_bytes
from fakedet.data.index import write_manifest, write_rejected
from fakedet.data.manifest_table import ROOT_KEY
from fakedet.data.match import Matcher
from fakedet.errors import UserError
from fakedet.metrics.pairing import Pairs
from fakedet.utils import bar, open_folder, provenance, replacing, write_json

log = logging.getLogger("fakedet")

IMAGES = "images"


@dataclass(frozen=True)
class Matched:
    """What matching did: header shortcuts of each generator, and the images left out by (class, generator)."""

    matcher: Matcher
    before: dict[str, Shortcut]
    after: dict[str, Shortcut]
    written: int
    lost: Counter[tuple[str, str]]


def match_manifest(
    datamodule: DataModule, settings: Mapping[str, Any], folder: Path, command: list[str], overwrite: bool = False
) -> Matched:
    """Write matched copies of all images of a manifest, their manifest, and the audit before and after.

    An interrupted run continues when it is called again with the same settings.

    Args:
        settings: of :class:`fakedet.data.match.Matcher`; size None or 0: that of 98 % of each generator's images.
        folder: where images, manifest.parquet, manifest.rejected.csv and match.json go.
        overwrite: whether the folder may hold other files.

    Raises:
        UserError: a wrong setting, no image that can be matched, an occupied folder, or a full disk.
    """
    frame = datamodule.manifest.frame
    before, sizes = _audited(frame, datamodule.read_bytes, datamodule.pairs, "before")
    matcher = Matcher(**{**settings, "size": settings["size"] or _common_size(sizes)})
    log.info("matching %s images to %d pixels", f"{len(frame):,}", matcher.size)
    begun = {"match": matcher.to_dict(), "manifest_sha256": datamodule.manifest.sha256}
    note = folder / "begun.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == begun:
        log.info("going on in %s", folder)
    else:
        open_folder(folder, overwrite)
        write_json(note, begun)
    rejected: list[tuple[str, str]] = []
    rows = _write_images(datamodule, matcher, folder / IMAGES, rejected)
    written = write_manifest(folder / "manifest.parquet", rows, {ROOT_KEY: IMAGES.encode()})
    write_rejected(folder / "manifest.rejected.csv", rejected)
    if not written:
        raise UserError(f"no image could be matched to {matcher.size} pixels, the first: {': '.join(rejected[0])}")
    new = pd.read_parquet(folder / "manifest.parquet")
    paths = [folder / IMAGES / path for path in new["path"]]
    after, _ = _audited(new, lambda row: read_bytes(paths[row]), datamodule.pairs, "after")
    left = frame[frame["path"].isin([path for path, _ in rejected])]
    lost = Counter(zip(left["label"].map({0: "real", 1: "fake"}), left["generator"], strict=True))
    write_json(folder / "match.json", {
        **begun, "written": written, "left_out": len(rejected),
        "left_out_of": {f"{kind} {name}": count for (kind, name), count in lost.items()},
        "before": {name: shortcut.to_dict() for name, shortcut in before.items()},
        "after": {name: shortcut.to_dict() for name, shortcut in after.items()}, "run": provenance(command),
    })  # fmt: skip
    return Matched(matcher, before, after, written, lost)


def _audited(
    frame: pd.DataFrame, read: Read, pairs: Pairs | None, when: str
) -> tuple[dict[str, Shortcut], pd.DataFrame]:
    """Audit the headers of a sample, and return the readable rows of the sample with their sizes."""
    ids = sample_rows(frame, 500)
    with bar(f"headers {when}", len(ids)) as shown:
        looks = look(ids, read, pixels=False, progress=shown.show)
    audits, _ = audit_generators(frame, looks, pairs)
    sizes = looks.frame.loc[looks.frame["problem"] == "", ["width", "height"]]
    return {entry.generator: entry.header for entry in audits}, sizes.join(frame[["label", "generator"]])


def _common_size(sizes: pd.DataFrame) -> int:
    """Choose the largest multiple of 8 that 98 % of the images of every generator and collection reach."""
    if sizes.empty:
        raise UserError("none of the images looked at can be read; run fakedet audit to see why")
    shorter = sizes[["width", "height"]].min(axis=1)
    cells = shorter.groupby([sizes["label"], sizes["generator"]])
    reached = cells.quantile(1 - 0.98, interpolation="lower")
    size = int(reached.min()) // 8 * 8
    if size < 32:
        label, name = list(reached.index)[int(reached.to_numpy().argmin())]
        raise UserError(
            f"{('real', 'fake')[label]} {name} has images of {int(reached.min())} pixels; choose the size below "
            "which images are left out with data.match.size=PIXELS"
        )
    return size


def _write_images(
    datamodule: DataModule, matcher: Matcher, folder: Path, rejected: list[tuple[str, str]]
) -> Iterator[tuple[Any, ...]]:
    """Write the matched images and yield their manifest rows; append those that cannot be matched to ``rejected``."""
    frame = datamodule.manifest.frame
    todo = iter(frame.itertuples())

    def match(row: Any) -> tuple[Any, ...] | str:
        name = f"{row.path}.jpg"
        if len(os.fsencode(posixpath.basename(name))) > 200:  # a name has 255 bytes at most, also while it is written
            name = posixpath.join(posixpath.dirname(name), f"{hashlib.sha256(name.encode()).hexdigest()}.jpg")
        try:
            try:
                data = read_bytes(folder / name)  # written, whole, by an interrupted run
            except DecodeError:
                data = matcher(datamodule.read_bytes(row.Index), row.path)
                with replacing(folder / name) as temporary:
                    temporary.write_bytes(data)
        except DecodeError as error:
            return error.reason
        header = parse_header(data)
        return (name, row.label, row.generator, row.source, row.split, row.group, row.family, header.width,
                header.height, header.format, header.jpeg_quality, header.jpeg_tables, len(data),
                hashlib.sha256(data).hexdigest())  # fmt: skip

    done = 0
    with bar("matching", len(frame)) as shown, ThreadPoolExecutor(cores()) as pool:
        while part := list(islice(todo, 512)):
            for row, result in zip(part, pool.map(match, part), strict=True):
                if isinstance(result, str):
                    rejected.append((str(row.path), result))
                else:
                    yield result
            done += len(part)
            shown.show(done)
