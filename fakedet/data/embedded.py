"""Datasets whose files hold the images themselves: parquet, and what Hugging Face's datasets save to disk as Arrow."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from fakedet.data.decode import DecodeError, parse_header
from fakedet.data.layouts import Layout, Parts, Place
from fakedet.data.manifest_table import (
    SPLITS,
    class_names,
    class_of,
    classes,
    features_of,
    label_text,
    matching,
    named_classes,
)
from fakedet.data.scan import Facts, Scan, Store, is_left_behind
from fakedet.errors import UserError, nearest, one_line
from fakedet.utils import replacing, shown_names

log = logging.getLogger("fakedet")

# Columns by what they hold; the first that is there counts.
NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image_data", "image", "bytes", "img", "picture", "jpg", "png"),
    "label": ("label", "labels", "is_fake", "is_ai", "is_ai_generated", "is_generated", "is_real", "fake", "class"),
    "generator": ("model_name", "generator", "model"),
    "collection": ("real_source",),  # Of a real
    "split": ("split",),
    "source": (),
}
ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "GIF": "gif"}


@dataclass(frozen=True, eq=False)
class Part:
    """A file of a dataset."""

    path: Path
    name: str  # Relative to the source
    config: str  # Of Hugging Face's configs, or the folder; "" if there is one
    split: str  # train, val, test, or "" if nothing says
    columns: dict[str, str]  # What (see :data:`NAMES`) → the column that holds it
    names: tuple[str, ...]  # Of the classes by their number; none if they have no names
    clear: bool  # Whether the files beside the data do not contradict each other about these names
    # Label → (0 real or 1 fake, the reason), as :func:`decide` finds it
    meaning: dict[str, tuple[int, str]] = field(default_factory=dict)


class Embedded(Layout):
    """The folders that :func:`extract` wrote; they are no layout that a user names."""

    name: ClassVar[str] = "parquet"
    tree: ClassVar[str] = "*.parquet, *.arrow"
    places: dict[Parts, Place]

    def place(self, parts: Parts) -> Place | None:
        """Return what a folder holds."""
        return self.places.get(parts)


def find_parts(source: Path, columns: Mapping[str, str], deep: bool = False) -> list[Part]:
    """List the files of a dataset that hold images; ``columns`` gives what (:data:`NAMES`) → the column that holds it.

    ``source`` is such a file or a folder, which is searched to all depths if ``deep``. A UserError if a file has no
    label, or lacks a column that ``columns`` names.
    """
    base = source if source.is_dir() else source.parent
    card, parts, damaged = _Card(base), [], []
    for path in sorted(_files(source, deep)):
        schema = _schema(path)
        if schema is None:
            damaged.append(path)
        elif (image := _image_column(schema, columns.get("image"))) is not None:
            own = _columns(schema, path, {"image": image, **columns})
            config, split = card.place(path)
            names, clear = class_names(features_of(schema), own["label"]), True
            if names is None:
                names, clear = card.names(config, path.parent, own["label"])
            name = path.relative_to(base).as_posix()
            parts.append(Part(path, name, config, split, own, tuple(names or ()), clear))
    if parts and damaged:
        raise UserError(f"{damaged[0]}: a damaged file; without its images the manifest would be of a part of the data")
    if len({part.config for part in parts}) == 1:
        return [replace(part, config="") for part in parts]
    return parts


def _columns(schema: pa.Schema, path: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return what (see :data:`NAMES`) → the column that holds it, "" if none does; ``given`` comes first."""
    own = {what: next((one for one in known if one in schema.names), "") for what, known in NAMES.items()}
    for what, column in given.items():
        if what not in NAMES:
            raise UserError(f"columns: files of images have no column '{what}'; {nearest(what, NAMES)}")
        if column not in schema.names:
            raise UserError(f"{path}: there is no column '{column}'; {nearest(column, schema.names)}")
    own |= given
    coded = [column for column in schema.names if class_names(features_of(schema), column)]
    if not own["label"] and len(coded) == 1:
        own["label"] = coded[0]
    if not own["label"]:
        raise UserError(
            f"{path}: there is no column 'label' beside '{own['image']}'; it has {', '.join(schema.names)}. Name the "
            "one that tells real from fake: columns={label: NAME}"
        )
    return own


def _files(source: Path, deep: bool) -> Iterator[Path]:
    if source.is_file():
        yield from [source] if source.suffix in (".parquet", ".arrow", ".feather") else []
        return
    visited = set()
    for folder, below, names in os.walk(source, followlinks=True):
        if os.path.realpath(folder) in visited:  # a link that leads back
            below.clear()
            continue
        visited.add(os.path.realpath(folder))
        depth = len(Path(folder).relative_to(source).parts)  # a cache of Hugging Face's datasets has four folders
        below[:] = [name for name in below if not is_left_behind(name) and depth < (20 if deep else 5)]
        found = {name for name in names if name.endswith((".parquet", ".arrow")) and not is_left_behind(name)}
        if "state.json" in names:  # a dataset saved to disk; other Arrow files there are caches of computations
            state = _json(Path(folder, "state.json"))
            state = state if isinstance(state, dict) else {}
            listed = {str(one["filename"]) for one in _mappings(state.get("_data_files")) if one.get("filename")}
            if listed and (state.get("_indices_files") or state.get("_indices_data_files")):
                raise UserError(f"{folder}: only some rows of these files belong to the dataset; save it to disk anew")
            found = {name for name in found if name in listed} if listed else found
        yield from (Path(folder, name) for name in found if not name.startswith(("cache-", "tmp")))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _schema(path: Path) -> pa.Schema | None:
    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as file:
            return _open_arrow(file).schema
    except (pa.ArrowException, OSError):
        return None


def _open_arrow(file: Any) -> Any:
    """Open an Arrow file, whichever of Arrow's two formats it has."""
    try:
        return pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_file(file)


def _image_column(schema: pa.Schema, named: str | None) -> str | None:
    """Name the column of image bytes; None if there is none."""

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    if named is not None:
        return named
    structures = [name for name in schema.names if pa.types.is_struct(schema.field(name).type)]
    wanted = [name for name in (*NAMES["image"], *structures) if name in schema.names]
    return next((name for name in wanted if holds_bytes(schema.field(name).type)), None)


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]


class _Card:
    """What the files beside the data say: Hugging Face's README.md, dataset_info.json and dataset_infos.json.

    They stand in the folder, or above it if it holds one config.
    """

    def __init__(self, folder: Path) -> None:
        self.base, self.card, self.infos = folder, dict[str, Any](), dict[str, Any]()
        for above in (folder, *list(folder.absolute().parents)[:2]):
            infos = _mappings(_json(above / "dataset_infos.json"))
            try:
                text = (above / "README.md").read_text(encoding="utf-8")
                found = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
                card: Any = OmegaConf.to_container(OmegaConf.create(found[1]), resolve=False) if found else None
            except Exception:  # a README may hold anything
                card = None
            cards = [one for one in _mappings(card) if {"configs", "dataset_info"} & set(one)]
            if cards or any(infos):
                self.base, self.card, self.infos = above, (cards or [{}])[0], (infos or [{}])[0]
                break

    def place(self, path: Path) -> tuple[str, str]:
        """Return the config and the split of a file, by the card or by the names of the file and its folders."""
        name = PurePosixPath(os.path.relpath(path, self.base))
        for config in _mappings(self.card.get("configs")):
            for entry in _mappings(config.get("data_files")):
                given = entry.get("path")
                if any(fnmatchcase(str(name), str(one)) for one in (given if isinstance(given, list) else [given])):
                    own = str(config.get("config_name", "default"))
                    return "" if own == "default" else own, SPLITS.get(str(entry.get("split")).lower(), "")
        words = [word for part in (name.stem, *reversed(name.parts[:-1])) for word in re.split("[^a-z]+", part.lower())]
        split = next((SPLITS[word] for word in words if word in SPLITS), "")
        return "/".join(part for part in name.parts[:-1] if part.lower() not in {*SPLITS, "data", "default"}), split

    def names(self, config: str, folder: Path, column: str) -> tuple[list[str] | None, bool]:
        """Return the names of a column's classes, and whether nothing contradicts them."""
        if names := class_names(_info(_json(folder / "dataset_info.json")), column):
            return names, True
        found = [(key, class_names(_info(info), column)) for key, info in self.infos.items()]
        for info in _mappings(self.card.get("dataset_info")):
            for entry in _mappings(info.get("features")):
                kind = entry.get("dtype") if entry.get("name") == column else None
                given = _info(kind, "class_label").get("names")
                if isinstance(given, dict) and all(str(key).isdecimal() for key in given):
                    given = [given[key] for key in sorted(given, key=int)]
                found.append((info.get("config_name", "default"), class_names({column: {"names": given}}, column)))
        own = [names for key, names in found if key == (config or "default") and names]
        known = own or [names for _, names in found if names]
        same = all(names == known[0] for names in known)
        return known[0] if known and same else None, same


def _info(info: Any, member: str = "features") -> dict[str, Any]:
    inner = info.get(member) if isinstance(info, dict) else None
    return inner if isinstance(inner, dict) else {}


def decide(parts: list[Part], reals: Collection[str], fakes: Collection[str]) -> list[Part]:
    """Decide what the labels of a dataset mean, as :func:`fakedet.data.manifest_table.classes` does, and show it.

    A UserError if that is ambiguous.
    """
    counts: dict[Part, Counter[tuple[str, str]]] = {}  # Number of rows of each part by (split, label)
    examples: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for part in parts:
        counts[part] = Counter()
        for number, row in _rows(part, ("label", "split"), 4096):
            key = (_split(part, row), label_text(row["label"], part.names))
            counts[part][key] += 1
            if len(examples[part.config, *key]) < 2:
                examples[part.config, *key].append(row["image"] or f"{part.path.name} row {number}")
    everything = {label for own in counts.values() for _, label in own if label}
    named_classes(everything, reals, fakes, f"label of {parts[0].path}")  # a pattern may be of one part only
    for part in parts:
        column = part.columns["label"]
        alike = [own for other, own in counts.items() if (other.columns["label"], other.names) == (column, part.names)]
        values = {label for own in alike for _, label in own if label}
        own_reals, own_fakes = (
            [pattern for pattern in patterns if matching(values, pattern)] for patterns in (reals, fakes)
        )
        values |= {name for name in part.names if class_of(name) is not None}
        part.meaning.update(classes(values, column, part.path, own_reals, own_fakes, part.clear))
    _check_numbers(parts)
    shown: dict[tuple[str, str, str], tuple[int, str]] = {}
    for part, own in counts.items():
        for (split, label), count in own.items():
            known = part.meaning.get(label)
            means = f"{('real', 'fake')[known[0]]} ({known[1]})" if known else "left out (no label)"
            where = (part.config, split, label)
            shown[where] = (shown.get(where, (0, ""))[0] + count, means)
    for where, (count, means) in sorted(shown.items())[:40]:
        place = " ".join(filter(None, (where[0], where[1] or "no split")))
        log.info("%s: %d images are %s, such as %s", place, count, means, ", ".join(examples[where]))
    if any("no name" in reason for part in parts for _, reason in part.meaning.values()):
        log.warning("the labels are numbers without names, taken as 0 real, 1 fake; if that is wrong, pass reals=[1]")
    return parts


def _check_numbers(parts: list[Part]) -> None:
    """Raise a UserError if numbers without names would mean the opposite of what another file's names say."""
    bare = [part for part in parts if any("no name" in reason for _, reason in part.meaning.values())]
    for part in parts if bare else ():
        for number, name in enumerate(part.names[:2]):
            label, reason = part.meaning.get(name, (number, ""))
            if label != number and "no name" not in reason:
                raise UserError(
                    f"{bare[0].path} numbers its classes without names, but in {part.path} {number} is '{name}'; say "
                    "which labels are photographs, if it is so in both: "
                    + shown_names("reals", (part.names[1 - number], str(1 - number)))
                )


def extract(
    parts: list[Part], folder: Path, seen: Callable[[int], None] = lambda count: None
) -> tuple[Embedded, list[str], list[tuple[str, str]]]:
    """Write the images of a dataset, byte for byte, to ``<folder>/<split>/<generator>/{real,fake}/``.

    A file that is there with the right size is not written again, so interrupted work goes on. ``seen`` is called with
    the number of rows done. Returns the layout of what was written, the paths in the folder, and (file and row, reason)
    of rows without an image or a label. A UserError if a file is damaged, or the disk is full.
    """
    places: dict[Parts, Place] = {}
    paths, failed, done = [], [], 0
    for part in parts:
        found = part.path.stat()
        # Files of one name may be in several folders, and a file may be replaced by another.
        mark = hashlib.sha256(f"{part.path.resolve()} {found.st_size} {found.st_mtime_ns}".encode()).hexdigest()[:8]
        for number, row in _rows(part, tuple(NAMES), 64):  # images in memory at a time
            place, data = _place(part, row), row["image"]
            done += 1
            seen(done)
            try:
                if place is None:
                    raise DecodeError(f"its label is {row['label']!r}, which is neither real nor fake")
                if not isinstance(data, bytes):
                    raise DecodeError("no image bytes, or only the path of a file")
                ending = ENDINGS.get(parse_header(data).format, "png")
            except DecodeError as error:
                failed.append((f"{part.name} row {number}", error.reason))
                continue
            below = (_safe(place.source),) if place.source else ()
            where = (place.split or "unsplit", *below, _safe(place.generator), ("real", "fake")[place.label])
            places[where] = place
            file = folder.joinpath(*where, f"{_safe(part.path.stem)}_{mark}_{number:08d}.{ending}")
            if not file.is_file() or file.stat().st_size != len(data):
                with replacing(file) as temporary:
                    temporary.write_bytes(data)
            paths.append(file.relative_to(folder).as_posix())
    layout = Embedded(folder.name, places)
    layout.places = places
    return layout, paths, failed


def look_inside(
    parts: list[Part], store: Store, hashed: bool, seen: Callable[[int], None] = lambda count: None
) -> tuple[Embedded, Scan]:
    """Put what is known of the images inside parquet files into a store, without writing the images anywhere.

    The path of an image is FILE.parquet/<split>/<generator>/{real,fake}/ROW.jpg, by which
    :class:`fakedet.data.sources.ParquetSource` reads it. ``seen`` is called with the number of rows done. Returns the
    layout of these paths and the counts, with (file and row, reason) of rows without an image or a label. A UserError
    for Arrow files, whose rows cannot be read one by one, and if a file is damaged.
    """
    if other := next((part.path for part in parts if part.path.suffix != ".parquet"), None):
        raise UserError(f"extract=false: {other} is no parquet file; pass extract=true, which writes its images")
    places: dict[Parts, Place] = {}
    state = Scan()
    for folder in store.folders():
        store.forget(folder, store.known(folder))
    for part in parts:
        changed, found = part.path.stat().st_mtime_ns, list[Facts]()
        for number, row in _rows(part, tuple(NAMES), 64):
            place, data = _place(part, row), row["image"]
            state.files += 1
            seen(state.files)
            try:
                if place is None:
                    raise DecodeError(f"its label is {row['label']!r}, which is neither real nor fake")
                if not isinstance(data, bytes):
                    raise DecodeError("no image bytes, or only the path of a file")
                header = parse_header(data)
            except DecodeError as error:
                state.problems.append((f"{part.name} row {number}", error.reason))
                continue
            below = (_safe(place.source),) if place.source else ()
            where = (place.split or "unsplit", *below, _safe(place.generator), ("real", "fake")[place.label])
            where = (*PurePosixPath(part.name).parts, *where)
            places[where] = place
            name = f"{number:08d}.{ENDINGS.get(header.format, 'png')}"
            digest = hashlib.sha256(data).hexdigest() if hashed else ""
            found.append(Facts("/".join(where), name, len(data), changed, digest, header.format, header.width,
                               header.height, header.jpeg_quality, header.jpeg_tables, ""))  # fmt: skip
        store.add(found)
        state.read += len(found)
    layout = Embedded(parts[0].name, places)
    layout.places = places
    return layout, state


def _safe(name: str) -> str:
    """Return a name that every file system takes; different names stay different."""
    safe = re.sub(r"[^\w +=,@.()-]", "_", name)[:40].strip(". ")
    return safe if safe == name else f"{safe}_{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:6]}"


def _split(part: Part, row: Mapping[str, Any]) -> str:
    return SPLITS.get(str(row.get("split")).strip().lower(), part.split)


def _place(part: Part, row: Mapping[str, Any]) -> Place | None:
    """Return what a row says of its image; None if its label says nothing."""
    text = label_text(row["label"], part.names)
    if text not in part.meaning:
        return None
    label, reason = part.meaning[text]
    # A label that is more than a class, such as "sdxl", is the generator.
    own = text if class_of(text) is None and not re.fullmatch(r"-?\d+|true|false|yes|no", text, re.IGNORECASE) else ""
    names = (label == 0 and row.get("collection"), row.get("generator"), own, part.config, ("real", "fake")[label])
    generator = next(str(name).strip() for name in names if name and str(name).strip())
    return Place(label, generator, str(row.get("source") or ""), _split(part, row), reason)


def _rows(part: Part, what: tuple[str, ...], size: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows by their number; where ``what`` lacks "image", it is not its bytes but its own name or None."""
    columns = {name: part.columns[name] for name in what if part.columns[name]}
    number, image = 0, part.columns["image"]
    try:
        for batch in _batches(part, {*columns.values(), image if "image" in what else f"{image}.path"}, size):
            values = {name: batch.column(column).to_pylist() for name, column in columns.items() if name != "image"}
            pictures = batch.column(image) if image in batch.schema.names else None
            if pictures is not None and pa.types.is_struct(pictures.type):
                member = "bytes" if "image" in what else "path"
                pictures = pictures.field(member) if pictures.type.get_field_index(member) >= 0 else None
            elif "image" not in what:
                pictures = None
            values["image"] = [None] * len(batch) if pictures is None else pictures.to_pylist()
            for row in zip(*values.values(), strict=True):
                yield number, dict(zip(values, row, strict=True))
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{part.path}: damaged after row {number}: {one_line(error)}") from error


def _batches(part: Part, columns: Collection[str], size: int) -> Iterator[pa.RecordBatch]:
    """Yield pieces of at most ``size`` rows; of a parquet file only these columns."""
    if part.path.suffix == ".parquet":
        yield from pq.ParquetFile(part.path).iter_batches(size, columns=sorted(columns))
        return
    with pa.memory_map(str(part.path)) as file:
        reader = _open_arrow(file)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
        for batch in batches:
            yield from (batch.slice(start, size) for start in range(0, len(batch), size))
