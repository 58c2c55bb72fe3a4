"""audit/match"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fakedet.audit.features import look, sample_rows
from fakedet.audit.shortcuts import GeneratorAudit, audit_generators, generator_dict
from fakedet.build import build_augmentation, build_datamodule
from fakedet.config import check_config
from fakedet.data.datamodule import DataModule
from fakedet.data.dataset import cores
from fakedet.data.decode import DecodeError, parse_header, read_bytes
from fakedet.data.index import write_manifest, write_rejected
from fakedet.data.manifest_table import ROOT_KEY
from fakedet.data.match import Matcher
from fakedet.errors import UserError
from fakedet.utils import bar, open_folder, provenance, replacing, write_config, write_json

log = logging.getLogger("fakedet")

IMAGES = "images"
CHUNK = 512
FITTING = 0.98
"""Share of the images of every generator and collection that must be as large as the size chosen for all."""
SAMPLE = 500
"""Images of each cell whose headers are audited before and after."""


@dataclass(frozen=True)
class Matched:
    """What matching did."""

    folder: Path
    matcher: Matcher
    before: list[GeneratorAudit]
    after: list[GeneratorAudit]
    written: int
    reasons: Counter[str]
    lost: Counter[tuple[str, str]]
    """Images left out by (class, generator)."""


def match_manifest(config: DictConfig, overrides: list[str]) -> Matched:
    """Write matched copies of all images of a manifest, their manifest, and the audit before and after.

    An interrupted run goes on when it is called again with the same settings.

    Raises:
        UserError: anything wrong with manifest, settings or folder; the disk is full.
    """
    check_config(config)
    data: dict[str, Any] = OmegaConf.to_container(config.data, resolve=True)  # type: ignore[assignment]
    wanted = data.pop("match")
    datamodule = build_datamodule(data, augment=build_augmentation({"recipe": "none"}), seed=0)
    frame = datamodule.manifest.frame
    before, sizes = _audited(datamodule, "before")
    matcher = Matcher(**{**wanted, "size": wanted["size"] or _common_size(sizes)})
    log.info("matching %s images to %d pixels", f"{len(frame):,}", matcher.size)
    folder = _open(config, matcher, datamodule.manifest.sha256)
    write_config(folder, config, overrides)
    rejected: list[tuple[str, str]] = []
    rows = _write_images(datamodule, matcher, folder / IMAGES, rejected)
    write_manifest(folder / "manifest.parquet", rows, {ROOT_KEY: IMAGES.encode()})
    write_rejected(folder / "manifest.rejected.csv", rejected)
    after, _ = _audited(
        build_datamodule({**data, "manifest": str(folder / "manifest.parquet"), "root": None}), "after"
    )
    left = frame[frame["path"].isin([path for path, _ in rejected])]
    lost = Counter(zip(left["label"].map({0: "real", 1: "fake"}), left["generator"], strict=True))
    write_json(folder / "match.json", {
        "match": matcher.to_dict(), "manifest_sha256": datamodule.manifest.sha256,
        "written": len(frame) - len(rejected), "left_out": len(rejected),
        "left_out_of": {f"{kind} {name}": count for (kind, name), count in lost.items()},
        "before": {entry.generator: generator_dict(entry)["header"] for entry in before},
        "after": {entry.generator: generator_dict(entry)["header"] for entry in after},
        "run": provenance(["fakedet", "match", *overrides]),
    })  # fmt: skip
    reasons = Counter(reason.split(":")[0].split(" pixels")[-1].strip(", ") for _, reason in rejected)
    return Matched(folder, matcher, before, after, len(frame) - len(rejected), reasons, lost)


def _audited(datamodule: Any, when: str) -> tuple[list[GeneratorAudit], pd.DataFrame]:
    """Audit the headers of a sample, and give the sample with its sizes."""
    frame = datamodule.manifest.frame
    ids = sample_rows(frame, SAMPLE)
    with bar(f"headers {when}", len(ids)) as shown:
        looks = look(ids, datamodule.read_bytes, pixels=False, seen=shown.show)
    audits, _ = audit_generators(frame, looks, datamodule.pairs)
    return audits, frame.loc[looks.frame.index].join(looks.frame[looks.frame["problem"] == ""], how="inner")


def _common_size(sizes: pd.DataFrame) -> int:
    """Choose the largest multiple of 8 that nearly all images of every generator and collection reach."""
    if sizes.empty:
        raise UserError("none of the images looked at can be read; run fakedet audit to see why")
    shorter = sizes[["width", "height"]].min(axis=1)
    reached = shorter.groupby([sizes["label"], sizes["generator"]]).quantile(
        1 - FITTING, interpolation="lower"
    )
    size = int(reached.min()) // 8 * 8
    if size < 32:
        label, name = list(reached.index)[int(reached.to_numpy().argmin())]
        raise UserError(
            f"{('real', 'fake')[label]} {name} has images of {int(reached.min())} pixels; name the size that "
            "smaller images are left out below with data.match.size=PIXELS"
        )
    return size


def _open(config: DictConfig, matcher: Matcher, manifest: str) -> Path:
    """Open the folder; one that was begun with the same settings is gone on with."""
    folder = Path(config.output_dir)
    begun = {"match": matcher.to_dict(), "manifest_sha256": manifest}
    note = folder / "begun.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == begun:
        log.info("going on in %s", folder)
        return folder
    folder = open_folder(folder, config.overwrite)
    write_json(note, begun)
    return folder


def _write_images(
    datamodule: DataModule, matcher: Matcher, folder: Path, rejected: list[tuple[str, str]]
) -> Iterator[tuple[Any, ...]]:
    """Write the matched images and yield their rows; those that cannot be matched go to ``rejected``."""
    frame = datamodule.manifest.frame
    todo = iter(frame.itertuples())

    def match(row: Any) -> tuple[Any, ...] | str:
        name = f"{row.path}.jpg"
        try:
            data = _written(folder / name) or _write(
                matcher(datamodule.read_bytes(row.Index), row.path), folder / name
            )
        except DecodeError as error:
            return error.reason
        header = parse_header(data)
        return (name, row.label, row.generator, row.source, row.split, row.group, header.width, header.height,
                header.format, header.jpeg_quality, header.jpeg_tables, len(data),
                hashlib.sha256(data).hexdigest())  # fmt: skip

    done = 0
    with bar("matching", len(frame)) as shown, ThreadPoolExecutor(cores()) as pool:
        while part := list(islice(todo, CHUNK)):
            for row, result in zip(part, pool.map(match, part), strict=True):
                if isinstance(result, str):
                    rejected.append((str(row.path), result))
                else:
                    yield result
            done += len(part)
            shown.show(done)


def _written(path: Path) -> bytes:
    """Give what an interrupted run has written; nothing if it has not. Files are written whole."""
    try:
        return read_bytes(path)
    except DecodeError:
        return b""


def _write(data: bytes, path: Path) -> bytes:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return data
