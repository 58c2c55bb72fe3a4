"""Manifests whose images lie inside parquet files: read where they are, local or by fsspec, never unpacked."""

import io
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fakedet
from fakedet.cli.app import launch
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.decode import DecodeError
from fakedet.data.index import Settings, index_source
from fakedet.errors import UserError


def encoded(seed: int, kind: str = "JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """Write three files as Hugging Face's datasets do, in row groups of five rows, and return what is in them."""
    folder, rows = tmp_path / "set" / "data", []
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "validation", "test")):
        own = []
        for row in range(24):
            label = row % 2
            generator = ("", "sdxl", "", "flux")[row % 4]
            data = encoded(100 * number + row, ("JPEG", "PNG")[row % 3 == 0])
            own.append({"image": {"bytes": data, "path": f"{row}.jpg"}, "label": label, "generator": generator})
            rows.append({"split": split.replace("idation", ""), "row": row, "bytes": data, "label": label,
                         "generator": generator or "real"})  # fmt: skip
        table = pa.Table.from_pylist(own)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=5)
    return tmp_path / "set", pd.DataFrame(rows)


def indexed(folder: Path, output: Path, *more: str) -> Path:
    assert launch("index", [f"source={folder}", f"output={output}", "layout=parquet", "extract=false", *more]) == 0
    return output


def test_every_row_is_read_byte_for_byte_and_nothing_is_written_beside_the_manifest(dataset, tmp_path: Path) -> None:
    folder, rows = dataset
    manifest = indexed(folder, tmp_path / "out" / "m.parquet")
    assert sorted(path.name for path in manifest.parent.iterdir()) == ["m.index.sqlite", "m.parquet"]
    data = ImageDataModule(str(manifest))
    frame = data.manifest.frame
    assert len(frame) == len(rows) == 72
    wanted = {row.bytes: (row.split, row.label, row.generator) for row in rows.itertuples()}
    found = {data.read_bytes(row.Index): (row.split, row.label, row.generator) for row in frame.itertuples()}
    assert found == wanted


def test_it_holds_what_the_manifest_of_unpacked_images_holds(dataset, tmp_path: Path) -> None:
    folder, _ = dataset
    inside = ImageDataModule(str(indexed(folder, tmp_path / "a.parquet"))).manifest
    assert launch("index", [f"source={folder}", f"output={tmp_path / 'b' / 'b.parquet'}", "layout=parquet"]) == 0
    unpacked = ImageDataModule(str(tmp_path / "b" / "b.parquet")).manifest
    columns = ["label", "generator", "split"]
    tables = []
    for one in (inside, unpacked):
        assert one.digests is not None
        tables.append(one.frame.assign(sha=one.digests)[[*columns, "sha"]].sort_values("sha", ignore_index=True))
    pd.testing.assert_frame_equal(*tables, check_categorical=False)


def batches(module: ImageDataModule, count: int) -> list[tuple[list[int], list[int]]]:
    module.prepare()
    found = []
    for batch in module.train_dataloader():
        found.append((batch["id"].tolist(), batch["label"].tolist()))
        if len(found) == count:
            return found
    return found


def test_training_batches_are_balanced_and_the_same_again(dataset, tmp_path: Path) -> None:
    folder, _ = dataset
    manifest = indexed(folder, tmp_path / "m.parquet")
    first, again, workers = (
        batches(ImageDataModule(str(manifest), crop_size=32, batch_size=8, seed=3, num_workers=n), 3) for n in (0, 0, 2)
    )
    assert first == again == workers
    for _, labels in first:
        assert sum(labels) == 4


def test_a_url_of_fsspec_takes_the_place_of_the_folder(dataset, tmp_path: Path) -> None:
    folder, rows = dataset
    manifest = indexed(folder, tmp_path / "m.parquet")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/set", recursive=True)
    for path in folder.rglob("*.parquet"):
        path.unlink()
    try:
        data = ImageDataModule(str(manifest), root="memory://bucket/set", crop_size=32, batch_size=8)
        assert {data.read_bytes(row) for row in range(72)} == set(rows["bytes"])
        assert len(batches(data, 2)) == 2
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.filterwarnings("ignore:Total length of `_Batches`")  # nothing is left to be looked at
def test_training_and_evaluation_go_through(dataset, tmp_path: Path) -> None:
    folder, _ = dataset
    manifest = indexed(folder, tmp_path / "m.parquet")
    done = fakedet.train("data=manifest", "model=bce", f"data.manifest={manifest}", f"output_dir={tmp_path / 'run'}",
                         "data.crop_size=32", "data.batch_size=8", "trainer.max_epochs=1",
                         "bootstrap.resamples=5", "logger=csv")  # fmt: skip
    assert done.metrics["map"]["n_generators"] == 2
    pq.write_table(pa.table({"image": [b"x"]}), folder / "data" / "test-00000-of-00001.parquet")  # another file now
    with pytest.raises(
        UserError, match=r"none of the images of split=test could be read; the first, data/test.*data\.root"
    ):
        fakedet.evaluate(done.checkpoint, manifest, output_dir=tmp_path / "again")
    with pytest.raises(UserError, match=r"data\.root=.*moved: there is no such folder"):
        fakedet.evaluate(done.checkpoint, manifest, output_dir=tmp_path / "again", data__root=tmp_path / "moved")
    data = ImageDataModule(str(manifest))
    row = int(data.manifest.rows("test").index[5])
    with pytest.raises(DecodeError, match="has only 1 rows"):
        data.read_bytes(row)


def test_a_missing_file_is_named_before_training(dataset, tmp_path: Path) -> None:
    folder, _ = dataset
    manifest = indexed(folder, tmp_path / "m.parquet")
    next(folder.rglob("train*.parquet")).unlink()
    module = ImageDataModule(str(manifest), crop_size=32, batch_size=8)
    with pytest.raises(UserError, match=r"data\.root=.*: data/train-00000-of-00001\.parquet: .*cannot be read"):
        module.train_dataloader()


def test_arrow_files_are_told_to_be_unpacked(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"image": encoded(1), "label": "real"}, {"image": encoded(2), "label": "fake"}])
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match="extract=true, which writes"):
        index_source(tmp_path, tmp_path / "m.parquet", Settings("parquet", extract=False), None, {})
