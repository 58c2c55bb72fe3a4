"""Indexing: what is read, what is kept, what is left out, and what bad input does."""

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fakedet.cli.app import launch
from fakedet.data.index import Indexed, Settings, extract, index_folder, index_table, parquets
from fakedet.data.manifest import load_manifest
from fakedet.data.scan import walk
from fakedet.errors import UserError


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (9, 7), **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Give a folder of ten reals and ten fakes of each of two generators."""
    root = tmp_path / "data"
    for number, kind in enumerate(("real", "sd", "gan")):
        (root / kind).mkdir(parents=True)
        for seed in range(10):
            (root / kind / f"{seed}.png").write_bytes(encoded(100 * number + seed))
    return root


def run(root: Path, **settings: object) -> Indexed:
    return index_folder(root, root / "manifest.parquet", Settings(**settings))  # type: ignore[arg-type]


def rejected(found: Indexed) -> dict[str, str]:
    table = pd.read_csv(found.rejected, dtype=str)
    return dict(zip(table["path"], table["reason"], strict=True))


def test_facts_agree_with_pil_and_hashlib(data: Path) -> None:
    files = {
        "real/a.jpg": encoded(1, "JPEG", (40, 30), quality=83), "sd/b.webp": encoded(2, "WEBP", (20, 50)),
        "gan/wrong_name.png": encoded(3, "JPEG", (8, 8), quality=31),
    }  # fmt: skip
    for name, content in files.items():
        (data / name).write_bytes(content)
    frame = pd.read_parquet(run(data).manifest).set_index("path")
    assert len(frame) == 33
    for path, row in frame.iterrows():
        content = (data / str(path)).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            assert (row["width"], row["height"], row["format"]) == (*image.size, image.format)
        assert row["bytes"] == len(content)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert frame["jpeg_quality"].to_dict()["real/a.jpg"] == 83
    assert frame["jpeg_quality"].to_dict()["gan/wrong_name.png"] == 31
    assert (frame.loc[frame["format"] != "JPEG", "jpeg_quality"] == 0).all()


def test_manifest_can_be_loaded_from_anywhere(data: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "manifests" / "m.parquet"
    index_folder(data, elsewhere, Settings())
    manifest = load_manifest(elsewhere)
    assert manifest.root == data.resolve()
    assert (manifest.root / manifest.frame["path"][0]).is_file()
    assert manifest.notes == []


def test_only_new_and_changed_files_are_read(data: Path) -> None:
    assert run(data).scan.read == 30
    first = (data / "manifest.parquet").read_bytes()
    again = run(data)
    assert (again.scan.read, again.rows) == (0, 30)
    assert (data / "manifest.parquet").read_bytes() == first
    (data / "sd" / "new.png").write_bytes(encoded(999))
    (data / "sd" / "3.png").write_bytes(encoded(998, size=(11, 7)))
    (data / "sd" / "4.png").unlink()
    shutil.rmtree(data / "gan")
    found = run(data)
    assert (found.scan.read, found.rows) == (2, 20)
    frame = pd.read_parquet(found.manifest).set_index("path")
    assert frame.loc["sd/3.png", "height"] == 11
    assert "sd/4.png" not in frame.index


def test_a_killed_index_goes_on_where_it_was(data: Path) -> None:
    script = f"""
import os
from pathlib import Path
import fakedet.data.scan as module
from fakedet.data.index import Settings, index_folder
module.BATCH = 4
def die(state):
    if state.read >= 12:
        os.kill(os.getpid(), 9)
index_folder(Path({str(data)!r}), Path({str(data / "manifest.parquet")!r}), Settings(threads=1), die)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (data / "manifest.parquet").exists()
    found = run(data)
    assert found.rows == 30
    assert 0 < found.scan.read <= 30 - 12


def test_bad_files_are_left_out_with_their_reason(data: Path) -> None:
    jpeg = encoded(1, "JPEG", (60, 60))
    bad = {
        "sd/empty.png": b"", "sd/text.jpg": b"not an image at all", "sd/cut.jpg": jpeg[: len(jpeg) // 2],
        "gan/zeros.png": bytes(200),
    }  # fmt: skip
    for name, content in bad.items():
        (data / name).write_bytes(content)
    (data / "sd" / "dangling.png").symlink_to(data / "nowhere.png")
    os.mkfifo(data / "sd" / "pipe.png")
    (data / "sd" / "notes.txt").write_text("left aside")
    found = run(data)
    assert found.rows == 30
    reasons = rejected(found)
    assert set(reasons) == {*bad, "sd/dangling.png", "sd/pipe.png"}
    assert reasons["sd/empty.png"] == "empty file"
    assert "end marker" in reasons["sd/cut.jpg"]
    assert "nowhere" in reasons["sd/dangling.png"]
    assert found.scan.others == 1
    assert sum(found.reasons.values()) == 6


def test_names_that_are_not_utf8_are_named(data: Path) -> None:
    target = os.path.join(os.fsencode(data), b"sd", b"caf\xe9.png")
    with open(target, "wb") as file:
        file.write(encoded(5))
    found = run(data)
    assert found.rows == 30
    ((path, reason),) = rejected(found).items()
    assert path == "sd/caf\\udce9.png"
    assert "UTF-8" in reason


def test_links_that_lead_back_end(data: Path) -> None:
    (data / "sd" / "loop").symlink_to(data)
    assert run(data).rows == 30


@pytest.mark.parametrize("folder", [
    "@eaDir/3.png", "#recycle", "#snapshot/daily", "$RECYCLE.BIN/S-1-5", "System Volume Information", "lost+found",
    "__MACOSX/real", "Thumbnails", ".thumbnails/large", "@Recycle", "~snapshot",
])  # fmt: skip
def test_what_machines_leave_behind_is_no_image(data: Path, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = pd.read_parquet(run(data).manifest)["path"].tolist()
    for place in (data, data / "real"):
        (place / folder).mkdir(parents=True)
        (place / folder / "IMG.jpg").write_bytes(encoded(77, "JPEG"))
    (data / "real" / "._3.png").write_bytes(encoded(78))
    (data / "sd" / "SYNOFILE_THUMB_M.png").write_bytes(encoded(79))
    assert launch("index", [f"source={data}"]) == 0
    assert pd.read_parquet(data / "manifest.parquet")["path"].tolist() == expected
    out = " ".join(capsys.readouterr().out.split())
    assert f"{folder.split('/')[0]}/ (2)" in out
    assert "hidden images (1)" in out
    assert "thumbnails (1)" in out
    # A folder that the user names is looked at, whatever its name.
    assert [one.images[0][0] for one in walk(data / "real" / folder)] == ["IMG.jpg"]


def test_equal_content_with_different_labels_leaves_with_both(data: Path) -> None:
    shutil.copy(data / "real" / "1.png", data / "sd" / "stolen.png")
    found = run(data)
    assert (found.rows, found.copies.contradictions) == (29, 2)
    reasons = rejected(found)
    assert set(reasons) == {"real/1.png", "sd/stolen.png"}
    assert "real/1.png, which is real" in reasons["sd/stolen.png"]


def test_equal_content_is_one_group_and_one_split(data: Path) -> None:
    for number in range(10):
        shutil.copy(data / "sd" / f"{number}.png", data / "gan" / f"copy_{number}.png")
    found = run(data)
    assert (found.rows, found.copies.contents, found.copies.files) == (40, 10, 20)
    frame = pd.read_parquet(found.manifest)
    assert (frame.groupby("sha256")["group"].nunique() == 1).all()
    assert (frame.groupby("sha256")["split"].nunique() == 1).all()
    load_manifest(found.manifest)  # no group crosses splits


def test_copies_in_several_given_splits_stay_in_test(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for split in ("train", "val", "test"):
        for kind in ("real", "fake"):
            (root / split / kind).mkdir(parents=True)
            for seed in range(3):
                content = encoded(hash((split, kind, seed)) % 2**32)
                (root / split / kind / f"{seed}.png").write_bytes(content)
    shutil.copy(root / "test" / "real" / "0.png", root / "train" / "real" / "leak.png")
    shutil.copy(root / "val" / "fake" / "1.png", root / "train" / "fake" / "leak.png")
    found = run(root)
    assert found.copies.crossing == 2
    assert set(rejected(found)) == {"train/real/leak.png", "train/fake/leak.png"}
    load_manifest(found.manifest)


def test_without_hashes_only_the_beginning_is_read(data: Path) -> None:
    found = run(data, hashed=False)
    frame = pd.read_parquet(found.manifest)
    assert (frame["sha256"] == "").all()
    assert (frame["width"] > 0).all()


def test_a_full_disk_leaves_the_old_manifest_whole(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data)
    before = (data / "manifest.parquet").read_bytes()
    (data / "sd" / "new.png").write_bytes(encoded(999))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
    with pytest.raises(UserError, match=r"manifest.parquet cannot be written: No space left.*unchanged"):
        run(data)
    assert (data / "manifest.parquet").read_bytes() == before
    assert not list(data.glob(".*tmp"))


def test_folder_that_cannot_be_read_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data)
    real = os.scandir

    def guarded(path: str) -> object:  # root reads everything, whatever the permissions
        if str(path).endswith("/sd"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr("fakedet.data.scan.os.scandir", guarded)
    with pytest.raises(
        UserError, match=r"1 folder\(s\) cannot be read, the first: sd: .*Permission denied.*skip_unreadable"
    ):
        run(data)
    assert run(data, skip_unreadable=True).rows == 20
    monkeypatch.undo()
    assert run(data).scan.read == 0  # what was known of the folder is still known


@pytest.mark.parametrize("content", ["nothing", "text"])
def test_folder_without_images_is_refused(tmp_path: Path, content: str) -> None:
    if content == "text":
        (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"there are no images.*mounted"):
        index_folder(tmp_path, tmp_path / "out" / "m.parquet", Settings())


def test_store_of_another_program_is_refused(data: Path) -> None:
    (data / "manifest.index.sqlite").write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(UserError, match=r"index.sqlite: file is not a database"):
        run(data)


def test_table_keeps_its_own_splits_and_groups(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "filename,is_fake,generator,split,group\n"
        "real/0.png,real,photos,train,a\nsd/1.png,fake,sd,test,b\nsd/missing.png,fake,sd,test,c\n"
    )
    columns = {"path": "filename", "label": "is_fake"}
    found = index_table(table, data, tmp_path / "m.parquet", Settings(), columns)
    frame = pd.read_parquet(found.manifest)
    assert frame[["path", "label", "split", "group"]].astype(object).to_numpy().tolist() == [
        ["real/0.png", 0, "train", "a"], ["sd/1.png", 1, "test", "b"],
    ]  # fmt: skip
    assert frame["width"].tolist() == [7, 7]
    assert "No such file" in rejected(found)["sd/missing.png"]
    index_table(table, data, tmp_path / "m.parquet", Settings(split="validation"), columns)
    assert set(pd.read_parquet(tmp_path / "m.parquet")["split"]) == {"val"}
    with pytest.raises(UserError, match="unseen: this is for folders"):
        index_table(table, data, tmp_path / "m.parquet", Settings(unseen=["sd"]), columns)
    with pytest.raises(UserError, match="there is no column 'file'; did you mean 'filename'"):
        index_table(table, data, tmp_path / "m.parquet", Settings(), {"path": "file"})


def test_the_columns_of_a_table_are_named_on_the_command_line(data: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("filename,is_fake,generator\nreal/0.png,real,photos\nsd/1.png,fake,sd\n")
    columns = "columns={path: filename, label: is_fake}"
    assert launch("index", [f"source={tmp_path}/t.csv", f"root={data}", columns, f"output={tmp_path}/m.parquet"]) == 0
    assert pd.read_parquet(tmp_path / "m.parquet")["path"].tolist() == ["real/0.png", "sd/1.png"]


def test_community_forensics_parquet(tmp_path: Path) -> None:
    images = [encoded(0, "JPEG"), encoded(1), b"broken", encoded(2)]
    table = pa.table({
        "image_data": images, "label": [0, 1, 1, 1], "model_name": ["real", "a/b model", "sd", "sd"],
        "real_source": ["COCO", None, None, None],
    })  # fmt: skip
    folder = tmp_path / "cf"
    folder.mkdir()
    pq.write_table(table, folder / "test-00000.parquet")
    files = parquets(folder)
    failed = extract(files, tmp_path / "out")
    assert list(failed) == ["test-00000.parquet row 2"]
    found = index_folder(tmp_path / "out", tmp_path / "m.parquet", Settings(layout="real_fake"))
    frame = pd.read_parquet(found.manifest).sort_values("label")
    assert sorted(zip(frame["generator"], frame["label"], strict=True)) == [
        ("COCO", 0),
        ("a%2Fb model", 1),
        ("sd", 1),
    ]
    assert set(frame["split"]) == {"test"}
    written = {(tmp_path / "out" / path).read_bytes() for path in frame["path"]}
    assert written == {images[0], images[1], images[3]}


def test_hugging_face_parquet(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": encoded(seed), "path": None}, "label": seed % 2} for seed in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    assert extract(parquets(tmp_path), tmp_path / "images") == {}
    assert len(list((tmp_path / "images").rglob("*.png"))) == 4
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "train-1.parquet")
    with pytest.raises(UserError, match="no column 'label'"):
        extract(parquets(tmp_path), tmp_path / "images")


def test_choices_name_the_nearest(data: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'test'"):
        Settings(split="tset")
    with pytest.raises(UserError, match="did you mean 'genimage'"):
        run(data, layout="genimages")
    with pytest.raises(UserError, match="no folder here is as it says"):
        run(data, layout="genimage")
    with pytest.raises(UserError, match="threads=0: must be at least 1"):
        Settings(threads=0)


@pytest.mark.slow
def test_memory_does_not_grow_with_files(tmp_path: Path) -> None:
    """Listing and writing hold a folder and a piece at a time: 60,000 more files cost little."""
    script = """
import resource, sys
from pathlib import Path
from fakedet.data.index import Settings, index_store
from fakedet.data.scan import Facts, Scan, Store
count, root = int(sys.argv[1]), Path(sys.argv[2])
with Store(root / "m.index.sqlite") as store:
    for start in range(0, count, 1000):
        store.add([Facts("f%04d/%s" % (start, kind), "%08d.png" % n, 9, 9,
                         "%064x" % (2 * n + (kind == "fake")), "PNG", 9, 9, 0, "", "")
                   for n in range(start, start + 500) for kind in ("real", "fake")])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(index_store(store, Scan(count), root, root / "m.parquet", Settings()).rows)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    grown = []
    for count in (70_000, 280_000):
        done = subprocess.run(
            [sys.executable, "-c", script, str(count), str(tmp_path / str(count))],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        written, megabytes = done.stdout.split()
        assert int(written) == count
        grown.append(float(megabytes))
    # Both are longer than a piece of 65,536 rows, and the second has 210,000 rows more: 40 MB are 200 B a row.
    assert grown[1] - grown[0] < 40
