"""Indexing: what is read, what is kept, what is left out, and what bad input does."""

import errno
import hashlib
import io
import json
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
from fakedet.cli.predict import list_files
from fakedet.data.index import Indexed, Settings, index_folder, index_source, index_table
from fakedet.data.manifest import load_manifest
from fakedet.data.scan import walk
from fakedet.data.sources import FileSource
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
    "__MACOSX/real", "Thumbnails", ".thumbnails/large", "@Recycle", "~snapshot", "FOUND.001", "RECYCLED", "thumb",
    "@SynoResource", "@sharesnap", "_gsdata_/x", "My Previews.lrdata/0", "#RECYCLE", "appdata_ocx1y2/preview",
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
    assert out.startswith(f"reading {data}")
    assert f"{folder.split('/')[0]}/ (2)" in out
    assert "hidden images (1)" in out
    assert "thumbnails (1)" in out
    # A folder that the user names is looked at, whatever its name.
    assert [one.images[0][0] for one in walk(data / "real" / folder)] == ["IMG.jpg"]


def test_of_a_photo_library_the_originals_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("originals/0", "resources/derivatives/0", "resources/renders"):
        (tmp_path / "My.photoslibrary" / folder).mkdir(parents=True)
        (tmp_path / "My.photoslibrary" / folder / f"{folder.split('/')[1]}.jpg").write_bytes(encoded(1, "JPEG"))
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "a.jpg").write_bytes(encoded(2, "JPEG"))
    folders = {one.folder for one in walk(tmp_path) if one.images}
    assert folders == {"My.photoslibrary/originals/0", "resources"}
    assert next(walk(tmp_path / "My.photoslibrary")).left_behind == {"resources/": 1}
    monkeypatch.chdir(tmp_path)
    for source in ("**/*.jpg", f"{tmp_path}/**/*.jpg", str(tmp_path)):
        assert {Path(path).name for path in list_files([source])} == {"0.jpg", "a.jpg"}


@pytest.mark.parametrize("content", [
    "[]", "3", "null", "{}", '{"_data_files": [3]}', '{"_data_files": null}', '{"_data_files": 3}', "[" * 100_000, "x",
    '{"_data_files": [{"filename": []}]}', '{"_data_files": {"filename": null}, "_indices_files": 1}', '"text"',
])  # fmt: skip
def test_files_of_other_programs_beside_the_images_are_ignored(data: Path, tmp_path: Path, content: str) -> None:
    """Their names are those of files that Hugging Face's datasets write."""
    expected = pd.read_parquet(run(data).manifest)["path"].tolist()
    for name in ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"):
        (data / name).write_text(content)
        (data / "sd" / name).write_text(content)
    (data / "README.md").write_text(f"---\ndataset_info: {content[:60]}\nconfigs: {content[:60]}\n---\n")
    for name in ("catalog.arrow", "cache.parquet"):
        (data / name).write_bytes(b"no table of this kind " * 9)
    assert pd.read_parquet(index(data, tmp_path / "m.parquet").manifest)["path"].tolist() == expected
    hub = tmp_path / "hub"
    hub.mkdir()
    pq.write_table(embedded([encoded(1), encoded(2)], [0, 1]), hub / "x.parquet")
    for name in ("state.json", "dataset_info.json", "dataset_infos.json"):
        (hub / name).write_text(content)
    assert index(hub, tmp_path / "out" / "m.parquet").rows == 2


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
        "filename,is_fake,generator,split,group,family\n"
        "real/0.png,real,photos,train,a,\nsd/1.png,fake,sd,test,b,ldm\nsd/missing.png,fake,sd,test,c,ldm\n"
    )
    columns = {"path": "filename", "label": "is_fake"}
    found = index_table(table, data, tmp_path / "m.parquet", Settings(), columns)
    frame = pd.read_parquet(found.manifest)
    assert frame[["path", "label", "split", "group"]].astype(object).to_numpy().tolist() == [
        ["real/0.png", 0, "train", "a"], ["sd/1.png", 1, "test", "b"],
    ]  # fmt: skip
    assert frame["family"].tolist() == ["photos", "ldm"]
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


def test_labels_of_a_table_are_decided_as_those_of_datasets_and_shown(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"{kind}/{number}.png", kind) for kind in ("real", "sd") for number in range(3)]
    kinds = [kind for _, kind in rows]
    paths, labels = [f"{data}/{path}" for path, _ in rows], [[int(kind == "real")] for kind in kinds]
    table = pa.table({"path": paths, "label": labels, "generator": kinds})
    names = {"info": {"features": {"label": {"names": ["AI", "Photo"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "t.parquet")
    # Absolute paths without a root are below a folder of their own; lists of one label are that label.
    assert launch("index", [f"source={tmp_path}/t.parquet", f"output={tmp_path}/m.parquet", "split=test"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "test: 3 images are real (label 'Photo'), such as real/0.png, real/1.png" in out
    found = load_manifest(tmp_path / "m.parquet")
    assert found.root == data
    assert found.frame.set_index("path")["label"].to_dict() == {path: int(kind == "sd") for path, kind in rows}
    (tmp_path / "t.csv").write_text("path;is_real;generator\nreal/0.png;1;photos\nsd/1.png;0;sd\n")
    columns = {"label": "is_real"}
    assert labels_of(index_table(tmp_path / "t.csv", data, tmp_path / "m.parquet", Settings(), columns).manifest) == {
        sha(encoded(0)): 0, sha(encoded(101)): 1,
    }  # fmt: skip
    (tmp_path / "t.csv").write_text("path\tlabel\tgenerator\nreal/0.png\tphoto\tphotos\nsd/1.png\tsd\tsd\n")
    with pytest.raises(UserError, match=r"which labels are real and which fake\?"):
        index_table(tmp_path / "t.csv", data, tmp_path / "m.parquet", Settings(), {})
    index_table(tmp_path / "t.csv", data, tmp_path / "m.parquet", Settings(fakes=["sd"]), {})
    pq.write_table(table.set_column(1, "label", [[[0, 1]] * 6]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"'label' has '\[0, 1\]'"):
        index_table(tmp_path / "t.parquet", data, tmp_path / "m.parquet", Settings(), {})


def test_whatever_is_listed_is_read_afterwards(tmp_path: Path) -> None:
    """Names with backslashes, of 255 bytes, with blanks, quotes and line breaks."""
    names = ["train\\000.png", "é" * 125 + "x.png", "a" * 251 + ".png", " a.png", 'q"u,o;te.png', "li\nne.png",
             "sd./b.png", "~tilde=1.png", "-x.png", "[1]*.png", "%41.png", " /c.png"]  # fmt: skip
    for offset, kind in enumerate(("real", "fake")):
        for seed, name in enumerate(names):
            path = tmp_path / "d" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(100 * offset + seed, size=(40, 40)))
    found = index(tmp_path / "d", tmp_path / "m.parquet", split="test")
    assert (found.rows, found.reasons.total()) == (2 * len(names), 0)
    manifest = load_manifest(found.manifest)
    source = FileSource(manifest.root, manifest.frame["path"].tolist())
    written = {sha(source.read(row)): label for row, label in manifest.frame["label"].items()}
    assert written == {
        sha(encoded(100 * label + n, size=(40, 40))): label for n in range(len(names)) for label in (0, 1)
    }
    command = [f"data.manifest={tmp_path}/m.parquet", f"output_dir={tmp_path}/matched", "data.match.size=32"]
    assert launch("match", command) == 0
    matched = load_manifest(tmp_path / "matched" / "manifest.parquet")
    source = FileSource(matched.root, matched.frame["path"].tolist())
    assert len({sha(source.read(row)) for row in matched.frame.index}) == 2 * len(names)


@pytest.mark.parametrize(
    "output", ["file/m.parquet", "file/below/m.parquet", f"{'x' * 300}/m.parquet", f"{'y' * 300}.parquet"]
)
def test_a_folder_that_cannot_be_made_is_one_line(
    data: Path, tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert launch("index", [f"source={data}", f"output={tmp_path}/{output}"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def embedded(images: list[bytes], labels: list[object], names: list[str] | None = None) -> pa.Table:
    """Make a table as Hugging Face's datasets write it, with the names of its classes in the metadata."""
    held = [{"bytes": one, "path": f"{number}.jpg"} for number, one in enumerate(images)]
    table = pa.table({"image": held, "label": labels})
    if names is None:
        return table
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def labels_of(manifest: Path) -> dict[str, int]:
    """Return SHA-256 of the image → label, of all rows."""
    frame = pd.read_parquet(manifest)
    assert frame["sha256"].is_unique
    return dict(zip(frame["sha256"], frame["label"].tolist(), strict=True))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_arrow(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def index(source: Path, output: Path, **settings: object) -> Indexed:
    columns = settings.pop("columns", {})
    return index_source(source, output, Settings(**settings), None, columns)  # type: ignore[arg-type]


def test_community_forensics_parquet(tmp_path: Path) -> None:
    images = [encoded(0, "JPEG"), encoded(1), b"broken", encoded(2)]
    table = pa.table({
        "image_data": images, "label": [0, 1, 1, 1], "model_name": ["real", "a/b model", "sd", "sd"],
        "real_source": ["COCO", None, None, None],
    })  # fmt: skip
    folder = tmp_path / "cf"
    folder.mkdir()
    pq.write_table(table, folder / "test-00000.parquet")
    found = index(folder, tmp_path / "m.parquet")
    assert list(rejected(found)) == ["test-00000.parquet row 2"]
    frame = pd.read_parquet(found.manifest).sort_values("label")
    assert sorted(zip(frame["generator"], frame["label"], strict=True)) == [("COCO", 0), ("a/b model", 1), ("sd", 1)]
    assert set(frame["split"]) == {"test"}
    written = {(tmp_path / "images" / path).read_bytes() for path in frame["path"]}
    assert written == {images[0], images[1], images[3]}
    assert load_manifest(found.manifest).frame["label"].tolist() == pd.read_parquet(found.manifest)["label"].tolist()


def test_hugging_face_parquet(tmp_path: Path) -> None:
    images = [encoded(seed) for seed in range(4)]
    pq.write_table(embedded(images, [seed % 2 for seed in range(4)]), tmp_path / "train-0.parquet")
    found = index(tmp_path, tmp_path / "m.parquet")
    assert labels_of(found.manifest) == {sha(one): seed % 2 for seed, one in enumerate(images)}
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "train-1.parquet")
    with pytest.raises(UserError, match=r"no column 'label'.*columns=\{label: NAME\}"):
        index(tmp_path, tmp_path / "m.parquet")


@pytest.mark.parametrize(("names", "form"), [
    (["FAKE", "REAL"], "parquet"), (["real", "fake"], "parquet"), (["AI", "Human"], "parquet"),
    (["ai-generated images", "real photos"], "parquet"), (["0_real", "1_fake"], "parquet"), (["1", "0"], "parquet"),
    (["Nature", "Synthetic"], "parquet"), (["deepfake", "Authentic"], "parquet"), (["generated", "not_ai"], "parquet"),
    (["Human", "AI_Generated"], "parquet"), (["FAKE", "REAL"], "arrow"), (["FAKE", "REAL"], "info"),
    (["FAKE", "REAL"], "card"),
])  # fmt: skip
def test_class_names_decide_whatever_their_order(tmp_path: Path, names: list[str], form: str) -> None:
    """The names stand in the file's metadata, in dataset_info.json or in README.md."""
    is_real = [name.lower()[:2] in ("re", "hu", "0", "0_", "na", "au", "no") for name in names]
    images, codes = [encoded(seed) for seed in range(8)], [0, 1, 1, 0, 1, 0, 0, 0]
    table, folder = embedded(images, codes, names if form in ("parquet", "arrow") else None), tmp_path / "d"
    folder.mkdir()
    if form == "parquet":
        pq.write_table(table, folder / "train-00000-of-00001.parquet")
    else:
        write_arrow(table, folder / "data-00000-of-00001.arrow")
    if form == "info":
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    if form == "card":
        listed = "".join(f"\n          '{code}': '{name}'" for code, name in enumerate(names))
        (folder / "README.md").write_text(
            "---\nlicense: mit\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n"
            f"    dtype:\n      class_label:\n        names:{listed}\n---\n# A dataset\n"
        )
    found = index(folder, tmp_path / "m.parquet")
    assert labels_of(found.manifest) == {
        sha(one): int(not is_real[code]) for one, code in zip(images, codes, strict=True)
    }


def test_each_config_of_a_card_has_its_own_files_splits_and_names(tmp_path: Path) -> None:
    images, hub = [encoded(seed) for seed in range(12)], tmp_path / "hub"
    for start, name in ((0, "one/part-a"), (4, "one/part-b"), (8, "two/x")):
        (hub / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(embedded(images[start : start + 4], [0, 1, 1, 0]), hub / f"{name}.parquet")
    (hub / "README.md").write_text("""---
configs:
- {config_name: big, data_files: [{split: train, path: one/part-a*}, {split: test, path: [one/part-b*]}]}
- {config_name: default_small, data_files: [{split: validation, path: "two/*"}]}
dataset_info:
- {config_name: big, features: [{name: label, dtype: {class_label: {names: {'0': fake, '1': real}}}}]}
- {config_name: default_small, features: [{name: label, dtype: {class_label: {names: {'0': real, '1': fake}}}}]}
---
""")
    expected = dict(zip(map(sha, images), [1, 0, 0, 1] * 2 + [0, 1, 1, 0], strict=True))
    found = index(hub, tmp_path / "m.parquet")
    assert labels_of(found.manifest) == expected
    frame = pd.read_parquet(found.manifest)
    assert set(zip(frame["generator"], frame["split"], strict=True)) == {
        ("big", "train"), ("big", "test"), ("default_small", "val"),
    }  # fmt: skip
    # One config alone has the names of the card above its folder.
    alone = labels_of(index(hub / "one", tmp_path / "m.parquet").manifest)
    assert alone == {digest: expected[digest] for digest in map(sha, images[:8])}
    card = (hub / "README.md").read_text()
    (hub / "README.md").write_text(card[: card.index("configs")] + card[card.index("dataset_info") :])
    with pytest.raises(
        UserError, match="which labels are real"
    ):  # the card names classes of configs not of these folders
        index(hub, tmp_path / "m.parquet")
    (hub / "README.md").write_text("---\nconfigs: 3\ndataset_info: [1, 2]\n---\n")
    assert index(hub, tmp_path / "m.parquet").rows == 12
    infos = {"default": {"features": {"label": {"names": ["AI", "Human"], "_type": "ClassLabel"}}}}
    (hub / "dataset_infos.json").write_text(json.dumps(infos))
    alone = labels_of(index(hub, tmp_path / "m.parquet").manifest)
    assert alone == dict(zip(map(sha, images), [1, 0, 0, 1] * 3, strict=True))


def test_labels_are_shown_by_split_with_examples_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [encoded(seed) for seed in range(7)]
    pq.write_table(embedded(images[:4], [0, 1, 1, 1]), tmp_path / "train-0.parquet")
    pq.write_table(embedded(images[4:], [0, 0, 1]), tmp_path / "test-0.parquet")
    assert launch("index", [f"source={tmp_path}"]) == 0
    out = capsys.readouterr().out
    shown = out[: out.index("they are written to")]
    assert "train: 1 images are real (label 0; it has no name: 0 is real, 1 fake), such as 0.jpg" in shown
    assert "train: 3 images are fake (label 1; it has no name: 0 is real, 1 fake), such as 1.jpg, 2.jpg" in shown
    assert "test: 2 images are real" in shown
    assert "reals=[1]" in shown
    assert launch("index", [f"source={tmp_path}", "reals=[1]"]) == 0
    digests = dict(zip(map(sha, images), [1, 0, 0, 0, 1, 1, 0], strict=True))
    assert labels_of(tmp_path / "manifest.parquet") == digests


@pytest.mark.parametrize(("labels", "names", "settle"), [
    ([0, 1, 2, 2], None, {"reals": ["0"]}), ([0, 1, 1, 1], ["coco", "sdxl"], {"reals": ["coco"]}),
    ([0, 1, 1, 1], ["coco", "sdxl"], {"fakes": ["sd*"]}), ([-1, 1, 1, 1], None, {"fakes": ["1"]}),
    ([False, True, True, True], None, {"reals": ["false"]}), (["a", "b", "b", "b"], None, {"reals": ["A"]}),
    (["fake", "coco", "coco", "coco"], None, {"reals": ["fake"], "fakes": ["coco"]}),
    ([0, 1, 2, 2], ["real", "fake", "other"], {"fakes": ["fake", "other"]}),
])  # fmt: skip
def test_ambiguous_labels_are_refused_with_the_option_that_settles_them(
    tmp_path: Path, labels: list[object], names: list[str] | None, settle: dict[str, list[str]]
) -> None:
    images = [encoded(seed) for seed in range(4)]
    pq.write_table(embedded(images, labels, names), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"which labels are real and which fake\?.*reals=\["):
        index(tmp_path / "x.parquet", tmp_path / "out" / "m.parquet")
    assert not (tmp_path / "out").exists()
    found = index(tmp_path / "x.parquet", tmp_path / "out" / "m.parquet", **settle)
    assert labels_of(found.manifest) == {sha(one): int(n > 0) for n, one in enumerate(images)}
    with pytest.raises(UserError, match=r"no label of .* is called 'nothing'"):
        index(tmp_path / "x.parquet", tmp_path / "out" / "m.parquet", reals=["nothing"])


def test_labels_of_generators_and_columns_that_say_their_class(tmp_path: Path) -> None:
    images = [encoded(seed) for seed in range(4)]
    pq.write_table(embedded(images, [2, 0, 1, 1], ["sdxl", "midjourney", "real"]), tmp_path / "a.parquet")
    frame = pd.read_parquet(index(tmp_path / "a.parquet", tmp_path / "m.parquet").manifest)
    assert sorted(zip(frame["label"], frame["generator"], strict=True)) == [
        (0, "real"), (1, "midjourney"), (1, "midjourney"), (1, "sdxl"),
    ]  # fmt: skip
    for column, values in (
        ("is_real", [True, False, False, False]),
        ("is_ai", [0, 1, 1, 1]),
        ("fake", ["no", *["yes"] * 3]),
    ):
        table = embedded(images, values).rename_columns(["image", column])
        pq.write_table(table, tmp_path / f"{column}.parquet")
        found = index(tmp_path / f"{column}.parquet", tmp_path / "m.parquet")
        assert labels_of(found.manifest) == {sha(one): int(n > 0) for n, one in enumerate(images)}


def test_numbers_without_names_are_refused_beside_names_that_say_the_opposite(tmp_path: Path) -> None:
    pq.write_table(embedded([encoded(1), encoded(2)], [0, 1], ["FAKE", "REAL"]), tmp_path / "train-0.parquet")
    pq.write_table(embedded([encoded(3), encoded(4)], [0, 1]), tmp_path / "test-0.parquet")
    with pytest.raises(UserError, match=r"test-0.parquet numbers its classes without names.*reals=\[REAL,1\]"):
        index(tmp_path, tmp_path / "m.parquet")
    found = index(tmp_path, tmp_path / "m.parquet", reals=["REAL", "1"])
    assert labels_of(found.manifest) == {sha(encoded(seed)): seed % 2 for seed in (1, 2, 3, 4)}


def test_datasets_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    first, second = ([encoded(seed) for seed in range(start, start + 10)] for start in (0, 10))
    for name, images in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        pq.write_table(embedded(images, [seed % 2 for seed in range(10)]), tmp_path / name / "train-0.parquet")
    out = tmp_path / "out"
    for name, images in (("a", first), ("b", second), ("a", first)):
        assert set(labels_of(index(tmp_path / name, out / f"{name}.parquet").manifest)) == set(map(sha, images))
    # Another dataset under the same manifest, and another file of the same name, take the place of the first.
    assert set(labels_of(index(tmp_path / "b", out / "a.parquet").manifest)) == set(map(sha, second))
    pq.write_table(embedded(first[:4], [1, 1, 0, 0]), tmp_path / "b" / "train-0.parquet")
    os.utime(tmp_path / "b" / "train-0.parquet", ns=(1, 1))
    assert labels_of(index(tmp_path / "b", out / "a.parquet").manifest) == dict(
        zip(map(sha, first), [1, 1, 0, 0], strict=False)
    )


def test_splits_configs_and_datasets_saved_to_disk(tmp_path: Path) -> None:
    images = iter([encoded(seed) for seed in range(60)])

    def piece() -> pa.Table:
        return embedded([next(images) for _ in range(4)], [0, 1, 0, 1], ["FAKE", "REAL"])

    hub = tmp_path / "hub"
    for name in ("sdxl/train/0000.parquet", "sdxl/test/0000.parquet", "flux/train-00000-of-00002.parquet",
                 "flux/validation-00000-of-00001.parquet", "flux/.cache/test-0.parquet"):  # fmt: skip
        (hub / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(piece(), hub / name)
    frame = pd.read_parquet(index(hub, tmp_path / "hub.parquet").manifest)
    counts = frame.groupby(["generator", "split", "label"], observed=True).size().to_dict()
    # Of train, a tenth of the groups would become val if there were none.
    assert counts == {(name, split, label): 2 for label in (0, 1) for name, split in
                      (("sdxl", "train"), ("sdxl", "test"), ("flux", "train"), ("flux", "val"))}  # fmt: skip
    (hub / "flux" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: a damaged file"):
        index(hub, tmp_path / "hub.parquet")
    saved = tmp_path / "saved"
    for split in ("train", "validation", "test"):
        write_arrow(piece(), saved / split / "data-00000-of-00001.arrow")
        write_arrow(piece(), saved / split / "cache-1234.arrow")
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (saved / split / "state.json").write_text(json.dumps(state))
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    frame = pd.read_parquet(index(saved, tmp_path / "saved.parquet").manifest)
    assert frame.groupby(["split", "label"], observed=True).size().to_dict() == {
        (split, label): 2 for split in ("train", "val", "test") for label in (0, 1)
    }


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
