"""The predictions file: a row per image and view, from which every table and figure is made."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fakedet.errors import UserError
from fakedet.utils import replacing

ORIGINAL = "original"
METADATA_KEY, PICTURES_KEY = b"fakedet", b"fakedet.pictures"
SCHEMA = {
    "id": "int64", "path": "str", "label": "int8", "generator": "str", "source": "str", "group": "str",
    "split": "str", "view": "str", "crop": "str", "logit": "float64", "score": "float64",
    "trace_distance": "float64", "p_value": "float64", "verdict": "str", "map_x": "float32", "map_y": "float32",
}  # fmt: skip
MAP = ["map_x", "map_y"]  # place on the embedding map; NaN for images that are not on it
# Runs over one manifest differ by the few images that one of them could not read. Runs that share a smaller part of
# their images than this were evaluated on different data.
SHARED = 0.9


def write_predictions(
    frame: pd.DataFrame, path: str | Path, info: dict[str, Any], pictures: Mapping[str, bytes] | None = None
) -> None:
    """Write a predictions frame with the run's info in its metadata.

    Args:
        frame: the columns of SCHEMA; those of MAP may be missing.
        info: plain values.
        pictures: path of an image → a small JPEG of it, for reports.
    """
    path = Path(path)
    frame = frame.assign(**{name: np.nan for name in MAP if name not in frame})
    missing = [name for name in SCHEMA if name not in frame]
    if missing:
        raise UserError(f"{path}: predictions without the column {', '.join(missing)} cannot be written")
    table = pa.Table.from_pandas(frame[list(SCHEMA)].astype(SCHEMA), preserve_index=False)
    shown = {name: base64.b64encode(jpeg).decode() for name, jpeg in (pictures or {}).items()}
    added = {METADATA_KEY: json.dumps(info, allow_nan=False).encode(), PICTURES_KEY: json.dumps(shown).encode()}
    metadata = {**(table.schema.metadata or {}), **added}
    with replacing(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


def read_predictions(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a predictions file and the info of the run that wrote it.

    Raises:
        UserError: not there, not parquet, columns missing, labels other than 0 and 1, or logits that are no numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no predictions file {path}; `fakedet evaluate` writes one")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a parquet file: {' '.join(str(error).split())[:200]}") from error
    frame = table.to_pandas(ignore_metadata=True)  # a stranger may have written it
    missing = [name for name in ("path", "label", "generator", "logit") if name not in frame]
    if missing:
        raise UserError(f"{path}: not a predictions file, it has no column {', '.join(missing)}")
    _check(frame, path)
    return _completed(frame, path), _info(table, path)


def _info(table: pa.Table, path: Path) -> dict[str, Any]:
    """Return the run's info; an empty one for a file without any."""
    try:
        info = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except ValueError as error:
        raise UserError(f"{path}: the run's info in its metadata is not JSON; write it anew") from error
    kinds = {"seed": int, "seen_generators": list, "operating_point": dict, "shortcut": dict, "map_share": list}
    wrong = "info" if not isinstance(info, dict) else next(
        (key for key, kind in kinds.items() if not isinstance(info.get(key, kind()), kind | None)), None
    )  # fmt: skip
    if wrong:
        raise UserError(f"{path}: '{wrong}' in its metadata is not what fakedet writes; write the file anew")
    return {key: value for key, value in info.items() if value is not None or key not in kinds}


def _completed(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Convert the columns to their types; a missing score is computed from the logit."""
    frame = frame.assign(label=frame["label"].astype(np.int8), generator=frame["generator"].astype(str))
    for name in frame.columns.intersection(["score", "p_value", "trace_distance", *MAP]):
        try:
            frame[name] = pd.to_numeric(frame[name]).astype(np.float64)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: the column {name} holds values that are not numbers") from error
    if "score" not in frame or frame["score"].isna().any():
        frame["score"] = 1 / (1 + np.exp(-frame["logit"].clip(-700, 700)))
    return frame


def read_pictures(path: str | Path) -> dict[str, bytes]:
    """Read the small JPEGs of a predictions file: path of an image → JPEG; entries that are no JPEG are left out."""
    try:
        content = json.loads((pq.read_schema(path).metadata or {}).get(PICTURES_KEY, b"{}"))
        decoded = {str(name): base64.b64decode(text, validate=True) for name, text in content.items()}
    except (ValueError, AttributeError, TypeError, binascii.Error):
        return {}
    return {name: jpeg for name, jpeg in decoded.items() if jpeg.startswith(b"\xff\xd8\xff")}


def _check(frame: pd.DataFrame, path: Path) -> None:
    if not frame["label"].isin([0, 1]).all():
        found = ", ".join(sorted({repr(value) for value in frame["label"].tolist()})[:5])
        raise UserError(f"{path}: labels must be 0 (real) or 1 (fake), found {found}")
    if not pd.api.types.is_float_dtype(frame["logit"]):
        raise UserError(f"{path}: logits must be floating-point numbers, found {frame['logit'].dtype}")
    if frame.empty or frame["label"].nunique() < 2:
        raise UserError(f"{path}: a report needs real and fake images, found labels {sorted(set(frame['label']))}")
    if "view" in frame and not (frame["view"] == "original").any():
        raise UserError(f"{path}: it has no rows of the view 'original', which tables are made of")
    if len(infinite := frame.loc[np.isinf(frame["logit"].to_numpy(dtype=np.float64)), "path"]):
        more = f"first: {infinite.iloc[0]}; the detector diverged on them"
        raise UserError(f"{path}: {len(infinite)} logits are infinite, {more}")
    if len(nan := frame.loc[frame["logit"].isna(), "path"]):
        raise UserError(
            f"{path}: {len(nan)} of {len(frame)} logits are NaN, first: {', '.join(map(str, nan.head(3)))}; the "
            "detector diverged on them, evaluate another checkpoint"
        )


def align(frames: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, NDArray[np.float64]], int]:
    """Restrict the predictions of several runs to the images that all of them scored.

    Images are identified by their path.

    Returns:
        The shared rows in the order of the first frame, the (n,) logits of each run for them, and how many images are
        left out because only some runs scored them.

    Raises:
        UserError: an image twice in a run, runs that share too few images, or runs that disagree about shared ones.
    """
    for key, frame in frames.items():
        if len(twice := frame["path"][frame["path"].duplicated()]):
            raise UserError(
                f"{key}: {len(twice)} images are there twice, first: {twice.iloc[0]}; compare one view at a time"
            )
    indexed = {key: frame.set_index("path") for key, frame in frames.items()}
    first, *others = indexed.values()
    shared, union = first.index, first.index
    for frame in others:
        shared, union = shared.intersection(frame.index, sort=False), union.union(frame.index, sort=False)
    if len(shared) < SHARED * len(union):
        raise UserError(
            f"the runs scored different data: they share {len(shared)} of {len(union)} images; compare runs "
            "that were evaluated on the same manifest and split"
        )
    base = first.loc[shared]
    logits = {}
    for key, frame in indexed.items():
        own = frame.loc[shared]
        for name in [name for name in ("label", "generator", "group", "split") if name in own and name in base]:
            other = (own[name] != base[name]) & ~(own[name].isna() & base[name].isna())
            if other.any():
                raise UserError(
                    f"{key}: {int(other.sum())} images have other {name}s than in the first run, first: "
                    f"{own.index[other.to_numpy()][0]}; compare runs over the same manifest"
                )
        logits[key] = own["logit"].to_numpy(dtype=np.float64)
    return base.reset_index(), logits, len(union) - len(shared)


@dataclass(frozen=True)
class Read:
    """One predictions file."""

    method: str
    seed: int
    path: Path
    frame: pd.DataFrame
    info: dict[str, Any]  # of the run that wrote it
    pictures: dict[str, bytes]  # small JPEGs of its most confident errors, by path

    @property
    def original(self) -> pd.DataFrame:
        """The rows of images as they are."""
        return self.frame[self.frame["view"] == ORIGINAL].reset_index(drop=True)

    @property
    def seen(self) -> set[str]:
        """The generators that its detector was trained on."""
        return set(self.info.get("seen_generators", []))


def read_files(paths: Sequence[Path]) -> list[Read]:
    """Read predictions files and name each one's method; those of one method and seed are told apart by their folder.

    Raises:
        UserError: a file is no predictions file.
    """
    read = []
    for path in paths:
        frame, info = read_predictions(path)
        frame = frame if "view" in frame else frame.assign(view=ORIGINAL)
        name, seed = str(info.get("name", path.parent.name)), int(info.get("seed", 0))
        read.append(Read(name, seed, path, frame, info, read_pictures(path)))
    times = Counter((one.method, one.seed) for one in read)
    return [replace(one, method=f"{one.method} ({one.path.resolve().parent.name})")
            if times[one.method, one.seed] > 1 else one for one in read]  # fmt: skip


def confident_errors(frame: pd.DataFrame, threshold: float | None, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose the reals with the highest and the fakes with the lowest logits, at most one of each group.

    Args:
        frame: predictions of one view.
        threshold: images on the right side of it are no errors; None: the most wrong images are chosen anyway.
        count: number of each, at most.

    Returns:
        Reals taken for fakes and fakes taken for reals, most confident first.
    """

    def worst(rows: pd.DataFrame, sign: int) -> pd.DataFrame:
        if threshold is not None:
            rows = rows[rows["logit"] > threshold if sign > 0 else rows["logit"] <= threshold]
        # Ties are ordered by path, so that the same predictions show the same pictures.
        rows = rows.assign(_order=-sign * rows["logit"]).sort_values(["_order", "path"], kind="stable")
        named = rows.get("group", rows["path"])
        group = named.where(named.astype(str) != "", rows["path"])
        return rows[~group.duplicated()].head(count).drop(columns="_order")

    return worst(frame[frame["label"] == 0], 1), worst(frame[frame["label"] == 1], -1)
