"""The predictions file: a row per image and view, from which every table and figure is made."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fakedet.errors import UserError
from fakedet.metrics.pairing import column
from fakedet.utils import fits, replacing

ORIGINAL = "original"
FILE = "predictions.parquet"
METADATA_KEY, PICTURES_KEY = b"fakedet", b"fakedet.pictures"
SCHEMA = {
    "id": "int64", "path": "str", "label": "int8", "generator": "str", "family": "str", "source": "str", "group": "str",
    "split": "str", "view": "str", "crop": "str", "logit": "float64", "score": "float64",
    "trace_distance": "float64", "p_value": "float64", "verdict": "str", "map_x": "float32", "map_y": "float32",
}  # fmt: skip
MAP = ["map_x", "map_y"]  # place on the embedding map; NaN for images that are not on it
CONTENT = "content"  # optional: a (D,) array of float32 that says what the image shows, for the matched AUC
# Runs over one manifest differ by the few images that one of them could not read. Runs that share a smaller part of
# their images than this were evaluated on different data.
SHARED = 0.9
TOGETHER = "+"  # between the names of families that a run left out together
STUDY = "study.json"  # in a study's folder: what its report says, and its jobs in the order of the sweep


def write_predictions(
    frame: pd.DataFrame, path: str | Path, info: dict[str, Any], pictures: Mapping[str, bytes] | None = None
) -> None:
    """Write a predictions frame with the run's info in its metadata.

    Args:
        frame: the columns of SCHEMA; those of MAP may be missing, and family, which is then the generator. CONTENT may
            be there.
        info: plain values.
        pictures: path of an image → a small JPEG of it, for reports.
    """
    path = Path(path)
    frame = frame.assign(**{name: np.nan for name in MAP if name not in frame})
    frame = frame if "family" in frame else frame.assign(family=frame["generator"])
    if missing := [name for name in SCHEMA if name not in frame]:
        raise UserError(f"{path}: predictions without the column {', '.join(missing)} cannot be written")
    table = pa.Table.from_pandas(frame[list(SCHEMA)].astype(SCHEMA), preserve_index=False)
    if CONTENT in frame:
        rows = [row if np.ndim(row) == 1 else None for row in frame[CONTENT]]
        table = table.append_column(CONTENT, pa.array(rows, pa.list_(pa.float32())))
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
    if missing := [name for name in ("path", "label", "generator", "logit") if name not in frame]:
        raise UserError(f"{path}: not a predictions file, it has no column {', '.join(missing)}")
    _check(frame, path)
    frame = frame.assign(label=frame["label"].astype(np.int8), generator=frame["generator"].astype(str))
    frame["family"] = frame["family"].astype(str) if "family" in frame else frame["generator"]
    for name in frame.columns.intersection(["score", "p_value", "trace_distance", *MAP]):
        try:
            frame[name] = pd.to_numeric(frame[name]).astype(np.float64)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: the column {name} holds values that are not numbers") from error
    if CONTENT in frame:
        known = [row for row in frame[CONTENT] if np.ndim(row)]
        if len({np.shape(row) for row in known}) > 1 or {row.dtype.kind for row in known} - {"f"}:
            raise UserError(f"{path}: the column {CONTENT} holds something else than arrays of numbers of one length")
    if "score" not in frame or frame["score"].isna().any():
        frame["score"] = 1 / (1 + np.exp(-frame["logit"].clip(-700, 700)))
    return frame, read_info(path)


class HeaderAudit(TypedDict):
    """What is read of an entry of the header audit; see :meth:`fakedet.audit.shortcuts.Shortcut.to_dict`."""

    auc: dict[str, float | None]


class LeftOut(TypedDict):
    """What is read of :meth:`fakedet.metrics.decisions.FalseAlarms.to_dict`."""

    mean: dict[str, float | None]
    shares: dict[str, float]
    sizes: dict[str, int]


class Point(TypedDict):
    """What is read of an operating point that has it."""

    left_out: LeftOut | None


def read_info(path: Path) -> dict[str, Any]:
    """Read the info of the run that wrote a predictions file; an empty one for a file without any."""
    try:
        info = json.loads((pq.read_schema(path).metadata or {}).get(METADATA_KEY, b"{}"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: the run's info in its metadata is not JSON; write it anew") from error
    kinds: dict[str, Any] = {
        "seed": int, "map_share": list[Any], "shortcut": dict[str, HeaderAudit],
        **dict.fromkeys(("seen_generators", "known_reals", "pairing_notes"), list[str]),
        **dict.fromkeys(("pairs", "training_pairs", "settings", "test_scored"), dict[str, Any]),
        "operating_point": Point,
    }  # fmt: skip
    wrong = ["info"]
    if isinstance(info, dict):
        wrong = [key for key, kind in kinds.items() if not fits(info.get(key), kind | None)]
    if wrong:
        raise UserError(f"{path}: '{wrong[0]}' in its metadata is not what fakedet writes; write the file anew")
    pairs = ("pairs", "training_pairs")  # None stands for the default rules
    return {key: value for key, value in info.items() if value is not None or key not in kinds or key in pairs}


def read_pictures(path: Path) -> dict[str, bytes]:
    """Read the small JPEGs of a predictions file: path of an image → JPEG; entries that are no JPEG are left out."""
    try:
        content = json.loads((pq.read_schema(path).metadata or {}).get(PICTURES_KEY, b"{}"))
        decoded = {str(name): base64.b64decode(text, validate=True) for name, text in content.items()}
    except (ValueError, AttributeError, TypeError, binascii.Error):
        return {}
    return {name: jpeg for name, jpeg in decoded.items() if jpeg.startswith(b"\xff\xd8\xff")}


def _check(frame: pd.DataFrame, path: Path) -> None:
    for name in ("path", "generator"):
        if lacking := int(frame[name].isna().sum()):
            raise UserError(f"{path}: the column {name} is empty in {lacking} of {len(frame)} rows")
    if len(twice := frame.loc[frame.duplicated(["path", *frame.columns.intersection(["view"])]), "path"]):
        raise UserError(f"{path}: {len(twice)} images are there twice, first: {twice.iloc[0]}")
    if not frame["label"].isin([0, 1]).all():
        found = ", ".join(sorted({repr(value) for value in frame["label"].tolist()})[:5])
        raise UserError(f"{path}: labels must be 0 (real) or 1 (fake), found {found}")
    if not pd.api.types.is_float_dtype(frame["logit"]):
        raise UserError(f"{path}: logits must be floating-point numbers, found {frame['logit'].dtype}")
    if frame.empty:
        raise UserError(f"{path}: it holds no images")
    if "view" in frame and not (frame["view"] == "original").any():
        raise UserError(f"{path}: it has no rows of the view 'original', which tables are made of")
    if len(infinite := frame.loc[np.isinf(frame["logit"].to_numpy(dtype=np.float64)), "path"]):
        more = f"first: {infinite.iloc[0]}; the detector diverged on them"
        raise UserError(f"{path}: {len(infinite)} logits are infinite, {more}")
    if len(nan := frame.loc[frame["logit"].isna(), "path"]):
        first = ", ".join(map(str, nan.head(3)))
        raise UserError(f"{path}: {len(nan)} of {len(frame)} logits are NaN, first: {first}; the detector diverged on "
                        "them, evaluate another checkpoint")  # fmt: skip


def align(frames: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], int]:
    """Restrict the predictions of several runs to the images, known by their paths, that all of them scored.

    Returns:
        The shared rows in the order of the first frame, with the column ``content`` of the first run that has it; those
        of each run in the same order; and how many images are left out because only some runs scored them.

    Raises:
        UserError: an image twice in a run, runs that share too few images, or runs that disagree about shared ones.
    """
    for key, frame in frames.items():
        if len(twice := frame["path"][frame["path"].duplicated()]):
            words = f"{len(twice)} images are there twice, first: {twice.iloc[0]}"
            raise UserError(f"{key}: {words}; compare one view at a time")
    indexed = {key: frame.set_index("path") for key, frame in frames.items()}
    first, *others = indexed.values()
    shared, union = first.index, first.index
    for frame in others:
        shared, union = shared.intersection(frame.index, sort=False), union.union(frame.index, sort=False)
    if len(shared) < SHARED * len(union):
        raise UserError(f"the runs scored different data: they share {len(shared)} of {len(union)} images; compare "
                        "runs that were evaluated on the same manifest and split")  # fmt: skip
    base = first.loc[shared]
    aligned = {}
    for key, frame in indexed.items():
        own = frame.loc[shared]
        for name in own.columns.intersection(base.columns).intersection(["label", "generator", "group", "split"]):
            other = (own[name] != base[name]) & ~(own[name].isna() & base[name].isna())
            if other.any():
                words = f"{other.sum()} images have other {name}s than in the first run"
                first_one = own.index[other.to_numpy()][0]
                raise UserError(f"{key}: {words}, first: {first_one}; compare runs over the same manifest")
        aligned[key] = own.reset_index()
    base = base.reset_index()
    for own in [own for own in aligned.values() if CONTENT in own][:1]:
        base = base.assign(**{CONTENT: own[CONTENT]})
    return base, aligned, len(union) - len(shared)


def called_fake(frame: pd.DataFrame) -> NDArray[np.float64]:
    """Return (n,) 1 where the verdict is fake, 0 where it is real, NaN where there is none."""
    verdicts = frame["verdict"] if "verdict" in frame else pd.Series("", index=frame.index)
    return np.asarray(verdicts.map({"fake": 1.0, "real": 0.0}), dtype=np.float64)


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


def read_file(path: Path, method: str = "", seed: int | None = None) -> Read:
    """Read a predictions file; what is not given of method and seed is taken from its info."""
    frame, info = read_predictions(path)
    frame = frame if "view" in frame else frame.assign(view=ORIGINAL)
    method = method or str(info.get("name", path.parent.name))
    seed = int(info.get("seed", 0)) if seed is None else seed
    return Read(method, seed, path, frame, info, read_pictures(path))


def read_files(given: Any) -> list[Read]:
    """Read predictions files, given as one path, several, or method → its path or paths.

    Where the methods are not named by the user, they are by :func:`name_methods`.

    Raises:
        UserError: a file is no predictions file or stands there twice, or there is none.
    """
    named = given if isinstance(given, Mapping) else {"": given}
    read: list[Read] = []
    for method, files in named.items():
        listed = [files] if isinstance(files, str | Path) else files or ()
        read += [read_file(Path(str(path)), str(method)) for path in listed]
    if not read:
        raise UserError("predictions: name at least one predictions.parquet")
    if twice := [str(path) for path, count in Counter(one.path.resolve() for one in read).items() if count > 1]:
        raise UserError(f"predictions: {twice[0]} is there twice")
    if isinstance(given, Mapping):
        return read
    names = name_methods([(one.method, one.seed, one.path, one.info) for one in read])
    return [replace(one, method=name) for one, name in zip(read, names, strict=True)]


# Keys of a training's config that leave its results alone, or that may differ between the seeds of a method.
ASIDE = (
    "name", "model.name", "seed", "output_dir", "overwrite", "resume", "stage1", "stage1_checkpoint", "stage1_cache",
    "threads", "compile", "logger", "study", "protocol", "embed_backbone", "header_audit", "also", "pictures",
    "bootstrap", "test_after_fit", "callbacks.progress", "callbacks.guard", "callbacks.throughput", "callbacks.resume",
    "data.manifest", "data.root", "data.shard_cache", "data.num_workers", "data.eval_batch_size", "data.max_quarantine",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.deterministic",
    "trainer.log_every_n_steps", "operating_point.predictions",
)  # fmt: skip


def method_settings(
    config: Mapping[str, Any], manifest_sha256: str, stage1: Mapping[str, Any] | None
) -> dict[str, str]:
    """Flatten what tells a training's method apart from others: its config without what differs between its seeds.

    Args:
        config: of the training, resolved.
        manifest_sha256: of its manifest.
        stage1: the info of the stage 1 that it was trained over; None for none.
    """
    unused = "augment" if config["model"]["batch"]["real_only"] else "view_augment"
    flat = {
        key: value for key, value in _flat(config).items()
        if not any(key == one or key.startswith(f"{one}.") for one in (*ASIDE, unused))
        and not key.endswith("seed") and not value.startswith(f"{config['output_dir']}/")
    }  # fmt: skip
    if manifest := config["data"].get("manifest"):
        flat["data.manifest"] = f"{Path(manifest).name} {manifest_sha256[:8]}"
    # Whichever run trained it first; only these change its weights.
    weighs, aside = ("model.", "view_augment.", "data.", "trainer."), ("data.hold_out", "data.measure", "data.pairs")
    held = _flat(stage1["settings"] if stage1.get("settings") else {"model": stage1["model"]}) if stage1 else {}
    return flat | {f"stage1.{key}": value for key, value in held.items()
                   if key.startswith(weighs) and not key.startswith(aside)}  # fmt: skip


def _flat(tree: Any, above: str = "") -> dict[str, str]:
    """Write a tree as dotted key → text, as one would write it on the command line."""
    if isinstance(tree, Mapping) and tree:
        parts = [_flat(value, f"{above}.{key}" if above else str(key)) for key, value in tree.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {above: tree if isinstance(tree, str) else json.dumps(tree, default=str).replace('"', "")}


def left_out_families(frame: pd.DataFrame, info: Mapping[str, Any]) -> pd.Series:
    """Name the family that its run was trained without for each image, "" where it was not.

    Families that were left out together are joined to one, fakes and photographs apart.
    """
    names = [str(name) for name in _held_out(info)[2]]
    told = pd.Series("", index=frame.index, dtype=object)
    for label in (1, 0):
        # A name that fakes and photographs share is of the fakes.
        rows = frame["family"].isin(names) & (frame["label"] == label)
        own = [name for name in names if name in set(frame.loc[rows, "family"])]
        names = [name for name in names if name not in own]
        told[rows] = TOGETHER.join(own)
    return told


def _held_out(info: Mapping[str, Any]) -> list[Any]:
    """Return generators, measure and families as :func:`fakedet.data.manifest.hold_out` takes them; () for none."""
    return [*(info.get("held_out") or ()), (), (), ()]


def left_out_folders(given: str | Sequence[str]) -> list[Path]:
    """Return the folders of the runs that ``operating_point.predictions`` names, or whose studies or sweeps it names.

    UserError for one without predictions.
    """
    folders: list[Path] = []
    for root in map(Path, [given] if isinstance(given, str) else given):
        jobs = sorted(path.parent for path in root.glob("*/overrides.yaml"))
        with suppress(OSError, ValueError, LookupError, TypeError):  # a study knows the jobs that have not begun
            jobs = [root / job["folder"] for job in json.loads((root / STUDY).read_text(encoding="utf-8"))["jobs"]]
        folders += jobs if jobs and not (root / FILE).is_file() else [root]
    for folder in folders:
        if not (folder / FILE).is_file():
            raise UserError(f"operating_point.predictions: {folder} has no {FILE}; name the folders of finished runs "
                            "that left out families of fakes and of photographs, or of a study of them "
                            "(protocol=leave_out)")  # fmt: skip
    return folders


def read_left_out(given: str | Sequence[str], settings: Mapping[str, str]) -> pd.DataFrame:
    """Read the images that runs scored without having trained on their families, fakes and photographs.

    Args:
        given: folders, as for :func:`left_out_folders`.
        settings: of the method that the runs must be of; see :func:`method_settings`.

    Returns:
        A row per image: label, logit, trace_distance, group, and ``left_out``, the collection or family; see
        :func:`left_out_families`.

    Raises:
        UserError: a run of another method or that measured a test split, an image in two runs, one class alone, or a
            single collection of photographs.
    """
    parts = []
    for folder in left_out_folders(given):
        read = read_file(folder / FILE)
        frame, where = read.original, f"operating_point.predictions: {folder}"
        if _held_out(read.info)[1] != "held_out":
            raise UserError(f"{where} measured a test split; pass data.measure=held_out in its training")
        known = read.info.get("settings") or {}
        aside = ("data.hold_out", "data.measure", "data.pairs", "operating_point.")
        if other := [key for key in sorted({*known, *settings})
                     if not key.startswith(aside) and known.get(key, "null") != settings.get(key, "null")]:  # fmt: skip
            told = ", ".join(f"{key}={known.get(key, 'null')}, here {settings.get(key, 'null')}" for key in other[:3])
            more = f", and {len(other) - 3} more" if len(other) > 3 else ""
            raise UserError(f"{where} is a run of another method: {told}{more}")
        groups = _photographs(frame)
        parts.append(frame.assign(group=groups, left_out=left_out_families(frame, read.info), run=str(folder)))
    found = pd.concat(parts, ignore_index=True)
    found = found[found["left_out"] != ""].reset_index(drop=True)
    if len(twice := found[found.duplicated("path", keep=False)]):
        runs = " and ".join(sorted(set(twice["run"]))[:2])
        raise UserError(f"operating_point.predictions: {runs} left out the same images; take the runs of one seed, "
                        "each of which leaves out other families")  # fmt: skip
    for label, kind in ((0, "photographs"), (1, "fakes")):
        names = sorted(set(found.loc[found["label"] == label, "left_out"]))
        if len(names) < 2 - label:
            only = f"of '{names[0]}' alone" if names else "of no family"
            raise UserError(f"operating_point.predictions: its runs left out {kind} {only}; protocol=leave_out leaves "
                            "out every family of fakes and of photographs in turn")  # fmt: skip
    return found


def name_methods(runs: Sequence[tuple[str, int, Path, Mapping[str, Any]]]) -> list[str]:
    """Name the method of each run so that only runs of one config share a name.

    Methods that would share one are told apart by what differs in their configs; runs that still share name and seed,
    by their folders.

    Args:
        runs: the name it would have, seed, path of its predictions and their info.
    """
    names = [name for name, *_ in runs]
    for name in dict.fromkeys(names):
        places = [place for place, other in enumerate(names) if other == name]
        own = differences([runs[place][3] for place in places])
        for place, label in zip(places, own, strict=True):
            names[place] = f"{name}, {label}" if label else name
    for name in dict.fromkeys(names):
        places = [place for place, other in enumerate(names) if other == name]
        seeds = [runs[place][1] for place in places]
        if len(set(seeds)) < len(seeds):
            for place, label in zip(places, _folders([runs[place][2] for place in places], seeds), strict=True):
                names[place] = f"{name} ({label})"
    return names


def differences(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how each run's config differs from the others': "key=value, key=value" in few keys; "" if it does not."""
    known = all(info.get("settings") for info in infos)  # files of before hold less of their config
    settings = []
    for info in infos:
        held = info["settings"] if known else {key: info.get(key) for key in ("model", "stage1", "held_out")}
        scored = {key: info.get(key) for key in ("crop_size", "eval_policy", "match")}
        settings.append({key: value for key, value in _flat({**held, **scored}).items() if not key.endswith("seed")})

    def parted(keys: Sequence[str]) -> int:
        return len({tuple(one.get(key, "null") for key in keys) for one in settings})

    keys = [key for key in dict.fromkeys(key for one in settings for key in one) if parted([key]) > 1]
    chosen: list[str] = []
    while parted(chosen) < parted(keys):
        chosen.append(max(keys, key=lambda key: parted([*chosen, key])))

    def told(key: str, value: str) -> str:
        return f"{key.removesuffix('._target_')}={value.rpartition('.')[2] if key.endswith('._target_') else value}"

    return [", ".join(told(key, one.get(key, "null")) for key in chosen) for one in settings]


def _folders(paths: Sequence[Path], seeds: Sequence[int]) -> list[str]:
    """Name each file by the folder above it that puts the seeds of a method together, else by its own path."""
    parts = [path.resolve().parent.parts for path in paths]
    depths = range(1, min(map(len, parts)) + 1)
    labels = [[one[-depth] for one in parts] for depth in depths]
    labels = [own for own in labels if len(set(zip(own, seeds, strict=True))) == len(paths)]
    return min(labels, key=lambda own: len(set(own)), default=["/".join(one) for one in parts])


def confident_errors(frame: pd.DataFrame, threshold: float | None, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose the reals with the highest and the fakes with the lowest logits, at most one of each group.

    Args:
        frame: predictions of one view.
        threshold: images on the right side of it are no errors; None: the most wrong images are chosen anyway.
        count: number of each, at most.

    Returns:
        Reals taken for fakes and fakes taken for reals, most confident first.
    """
    chosen = []
    for label in (0, 1):
        rows = frame[frame["label"] == label]
        if threshold is not None:
            rows = rows[(rows["logit"] > threshold) != bool(label)]
        # Ties are ordered by path, so that the same predictions show the same pictures.
        rows = rows.sort_values(["logit", "path"], ascending=[label == 1, True], kind="stable")
        chosen.append(rows[~_photographs(rows).duplicated()].head(count))
    return chosen[0], chosen[1]


def examples(frame: pd.DataFrame) -> pd.DataFrame:
    """Choose up to six images of each collection of reals and of each generator, of the same photographs if it can be.

    At most 60 in all, so with many generators fewer of each.
    """
    kinds = ["label", "generator"]
    named = frame.assign(_group=_photographs(frame)).sort_values(["_group", "path"], kind="stable")
    chosen = named.drop_duplicates([*kinds, "_group"]).groupby(kinds)
    return chosen.head(max(1, min(6, 60 // frame.groupby(kinds).ngroups))).head(60).drop(columns="_group")


def _photographs(frame: pd.DataFrame) -> pd.Series:
    """Return the group of each row; of a row without one, its path."""
    group = pd.Series(column(frame, "group"), index=frame.index, dtype=object)
    return group.where(group != "", frame["path"])
