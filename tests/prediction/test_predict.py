"""The command: any input, every file a row, nothing stops it."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

import fakedet
from fakedet.cli.app import launch
from fakedet.cli.predict import COLUMNS, list_files
from fakedet.errors import UserError
from fakedet.export import Exported
from fakedet.utils import Bar, alone


@pytest.fixture(scope="module")
def checkpoint(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "bce"
    assert launch("train", [
        "model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=1", "threads=1",
        "bootstrap.resamples=0", "header_audit=false", f"data.manifest={tiny_manifest_module}", f"output_dir={folder}",
    ]) == 0  # fmt: skip
    return folder / "checkpoints" / "best.ckpt"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "desk", np.random.default_rng(0)
    (folder / "deep").mkdir(parents=True)
    for name, size in {
        "a.png": (60, 80),
        "b.jpg": (200, 300),
        "deep/c d.png": (40, 40),
        "tiny.png": (1, 1),
    }.items():
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def predict(checkpoint: Path, source: object, output: Path, *more: str) -> int:
    try:
        return launch("predict", [f"checkpoint={checkpoint}", f"source={source}", f"output={output}", *more])
    except SystemExit as stopped:
        return int(str(stopped.code))


def rows(output: Path) -> dict[str, dict[str, str]]:
    with open(output, newline="", encoding="utf-8") as file:
        return {Path(row["path"]).name: row for row in csv.DictReader(file)}


def test_every_file_gets_a_row_and_the_exit_status_tells(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    assert predict(checkpoint, images, tmp_path / "p.csv") == 1  # two files failed
    found = rows(tmp_path / "p.csv")
    assert set(found) == {"a.png", "b.jpg", "c d.png", "tiny.png", "text.jpg", "empty.png", "notes.txt"}
    assert found["empty.png"]["error"] == "empty file"
    assert found["text.jpg"]["error"] == "not an image, but a text file"
    assert found["notes.txt"]["error"] == "not looked at: a text file is no image"
    for name in ("a.png", "b.jpg", "c d.png", "tiny.png"):
        row = found[name]
        assert row["error"] == ""
        assert row["verdict"] in ("real", "fake", "undecided")
        assert 0 <= float(row["score"]) <= 1
        assert 0 < float(row["p_value"]) <= 1
    assert "smaller than the 32 pixels" in found["tiny.png"]["reason"]
    assert (found["b.jpg"]["width"], found["b.jpg"]["height"]) == ("300", "200")
    about = json.loads((tmp_path / "p.csv.about.json").read_text())
    assert about["detector"]["training_data"]["fake"] == {"gen_a": 8, "gen_b": 8}
    for name in ("text.jpg", "empty.png"):
        (images / name).unlink()
    assert predict(checkpoint, images, tmp_path / "q.csv") == 0


def test_scores_are_those_of_evaluate(checkpoint: Path, tiny_manifest_module: Path, tmp_path: Path) -> None:
    evaluated = pd.read_parquet(checkpoint.parent.parent / "predictions.parquet").set_index("path")
    folder = tiny_manifest_module.parent / "gen_c"
    assert predict(checkpoint, folder, tmp_path / "p.csv", "views=[]", "tiles=0") == 0
    predicted = pd.read_csv(tmp_path / "p.csv")
    assert len(predicted) == 8
    for row in predicted.itertuples():
        own = evaluated.loc[f"gen_c/{Path(str(row.path)).name}"]
        assert row.logit == pytest.approx(own["logit"], abs=1e-4)
        assert row.score == pytest.approx(own["score"], abs=1e-4)
        assert row.p_value == pytest.approx(own["p_value"], abs=1e-5)


def test_rows_of_pictures_that_have_changed_since_are_told(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(checkpoint, images, tmp_path / "p.csv")
    first = rows(tmp_path / "p.csv")
    capsys.readouterr()
    predict(checkpoint, images, tmp_path / "p.csv")
    told = "".join(capsys.readouterr())
    assert "changed" not in told
    assert "2 of the rows in" in told, "two errors, not tried again"
    later = (tmp_path / "p.csv").stat().st_mtime + 5
    os.utime(images / "b.jpg", (later, later))  # the same picture
    cv2.imwrite(str(images / "a.png"), np.zeros((60, 80, 3), np.uint8))
    os.utime(images / "a.png", (later, later))
    predict(checkpoint, images, tmp_path / "p.csv", f"heatmaps={tmp_path / 'maps'}")
    told = " ".join("".join(capsys.readouterr()).split())
    assert "1 images were changed after their rows in" in told
    assert f"the first: {images / 'a.png'}" in told
    assert "of the 7 done before there are none new" in told
    assert rows(tmp_path / "p.csv") == first


def test_an_interrupted_run_goes_on(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    assert predict(checkpoint, images, tmp_path / "whole.csv") == 1
    whole = (tmp_path / "whole.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "cut.csv").write_bytes(b"".join(lines[:4]) + lines[4][:10])  # killed while writing a row
    assert predict(checkpoint, images, tmp_path / "cut.csv") == 1
    assert rows(tmp_path / "cut.csv") == rows(tmp_path / "whole.csv")
    (tmp_path / "mine.csv").write_text("name,grade\nx,1\n")
    assert predict(checkpoint, images, tmp_path / "mine.csv") == 2
    assert (tmp_path / "mine.csv").read_text() == "name,grade\nx,1\n"
    assert predict(checkpoint, images, tmp_path / "whole.csv", "resume=false") == 2


def test_rows_of_version_0_1_are_not_added_to(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(checkpoint, images / "a.png", tmp_path / "p.csv") == 0
    output = tmp_path / "p.csv"
    words = output.read_text().replace(rows(output)["a.png"]["verdict"], "can't tell", 1)
    output.write_text(words)
    assert predict(checkpoint, images, output) == 2
    assert "is of fakedet 0.1" in capsys.readouterr().err
    assert output.read_text() == words


def test_json_lines_globs_lists_and_heatmaps(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    assert predict(checkpoint, f"{images}/*.png", tmp_path / "p.jsonl", f"heatmaps={tmp_path}/maps") == 1
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["a.png", "empty.png", "tiny.png"]
    assert set(lines[0]) == set(COLUMNS)
    pictures = sorted((tmp_path / "maps").glob("*.jpg"))
    assert len(pictures) == 2
    assert cv2.imread(str(pictures[0])).shape[1] == 80
    both = f"[{images}/a.png,{images}/b.jpg]"
    assert predict(checkpoint, both, tmp_path / "two.csv") == 0
    assert set(rows(tmp_path / "two.csv")) == {"a.png", "b.jpg"}


@pytest.mark.parametrize("pattern", ["**/*.png", "**", "**/deep/**/*.png", "*/**/c d.png", "deep/*/*/*.png"])
def test_links_that_lead_back_give_no_file_twice(
    pattern: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("up", "again"):
        (images / "deep" / name).symlink_to("..")
    monkeypatch.chdir(images)
    (images / "text.jpg").unlink()
    relative, absolute = (list(list_files([source])) for source in (pattern, f"{images}/{pattern}"))
    assert [str(images / path) for path in relative] == absolute
    names = [Path(path).name for path in relative]
    assert len(set(names)) == len(names)
    wanted = {"a.png", "empty.png", "tiny.png", "c d.png"}
    assert set(names) == {"**": wanted | {"b.jpg", "notes.txt"}, "**/*.png": wanted}.get(pattern, set(names))
    assert "c d.png" in names
    if pattern.startswith("**"):
        assert "deep/c d.png" in relative


def test_a_list_on_standard_input(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images}/a.png\n\n{images}/gone.png\n{images}/a.png\n"))
    assert predict(checkpoint, "-", tmp_path / "p.csv") == 1
    found = rows(tmp_path / "p.csv")
    assert set(found) == {"a.png", "gone.png"}
    assert found["gone.png"]["error"] == "no such file"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["source=/nowhere/at/all"], "there is no such file or folder"),
        (["views=[jpg/80]"], "did you mean 'jpeg'"),
        (["views=[jpeg/800]"], "from 1 to 100"),
        (["views=[jpeg]"], "from 1 to 100"),
        (["false_alarm=0"], "a share between 0 and 1"),
        (["output=x.xls"], "name a .csv or a .jsonl"),
        (["heatmap_tiles=0", "heatmaps=x"], "heatmap_tiles=0: must be at least 1"),
        (["device=tpu9"], "device=tpu9"),
        (["checkpoint=/nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"checkpoint": checkpoint, "source": images, "output": tmp_path / "p.csv"}
    arguments = [f"{key}={value}" for key, value in given.items() if not any(one.startswith(f"{key}=") for one in more)]
    assert launch("predict", [*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_empty_folder_and_checkpoint_without_operating_point(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert predict(checkpoint, tmp_path / "empty", tmp_path / "p.csv") == 2
    assert "there are no images" in capsys.readouterr().err
    content = torch.load(checkpoint, weights_only=True)
    del content["fakedet"]["operating_point"]
    torch.save(content, tmp_path / "old.ckpt")
    assert predict(tmp_path / "old.ckpt", images, tmp_path / "p.csv") == 2
    assert "has no operating point" in capsys.readouterr().err


def test_large_images_and_hard_compression(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "large"
    folder.mkdir()
    blocks = np.kron(rng.integers(0, 256, (30, 40, 3)), np.ones((60, 60, 1))).astype(np.uint8)
    noise = rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "large.jpg"), blocks)
    cv2.imwrite(str(folder / "hard.jpg"), noise, [cv2.IMWRITE_JPEG_QUALITY, 8])
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    checksum = zlib.crc32(header).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + checksum + b"\0\0\0\x01IDATx" + bytes(4))
    assert predict(checkpoint, folder, tmp_path / "p.csv", "all_views=true") == 1
    found = rows(tmp_path / "p.csv")
    assert "compressed harder (JPEG quality 8) than 95 in 100" in found["hard.jpg"]["reason"]
    assert found["large.jpg"]["width"] == "2400"
    assert found["large.jpg"]["tile_score"]
    assert "too many pixels" in found["huge.png"]["error"]


def test_compression_a_little_harder_than_in_training_is_no_doubt(checkpoint: Path, tmp_path: Path) -> None:
    lowest = fakedet.load(checkpoint).info["training_data"]["jpeg_quality"][0]
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    for name, below in (("near", 4), ("hard", 8)):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), noise, [cv2.IMWRITE_JPEG_QUALITY, round(lowest) - below])
    assert predict(checkpoint, tmp_path, tmp_path / "p.csv") == 0
    doubts = {name: "compressed harder" in row["reason"] for name, row in rows(tmp_path / "p.csv").items()}
    assert doubts == {"near.jpg": False, "hard.jpg": True}


@pytest.mark.slow
def test_killed_at_any_moment_no_row_is_lost_or_doubled(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    for number in range(60):
        (images / f"more {number}.png").write_bytes((images / "a.png").read_bytes())
    command = [sys.executable, "-m", "fakedet", "predict", f"checkpoint={checkpoint}", f"source={images}",
               f"output={tmp_path}/p.csv", "images_at_a_time=1"]  # fmt: skip
    for done in (5, 20, 40):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
        while run.poll() is None:
            if (tmp_path / "p.csv").is_file() and (tmp_path / "p.csv").read_bytes().count(b"\n") > done:
                run.kill()
        run.wait()
    assert predict(checkpoint, images, tmp_path / "p.csv") == 1
    frame = pd.read_csv(tmp_path / "p.csv")
    assert len(frame) == frame["path"].nunique() == 67


def test_listed_names_may_be_of_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a \xff.png\nb.png\n"), "utf-8"))
    assert list(list_files(["-"])) == [os.fsdecode(b"a \xff.png"), "b.png"]


@pytest.mark.parametrize("about", ["{}", "[]", "3", '{"config": null}', '{"config": 3}', "\xff", "", None])
def test_what_rows_were_made_with_may_be_damaged(
    about: str | None, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, record = tmp_path / "p.csv", tmp_path / "p.csv.about.json"
    assert predict("demo", images / "a.png", output) == 0
    whole = json.loads(record.read_text())
    record.unlink() if about is None else record.write_text(about, encoding="latin-1")
    capsys.readouterr()
    assert predict("demo", images / "a.png", output) == 0
    told = capsys.readouterr()
    assert f"{record} is missing or damaged: whether the rows" in told.out
    assert told.err == ""
    assert json.loads(record.read_text())["config"] == whole["config"]


def test_answers_made_in_another_way_are_not_mixed(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "p.csv"
    predict(checkpoint, images, output)
    before = output.read_bytes(), (tmp_path / "p.csv.about.json").read_bytes()
    for change in ("false_alarm=0.2", "miss=0.3", "views=[jpeg/50]", "tiles=4"):
        assert predict(checkpoint, images, output, change) == 2
        assert f"{change.partition('=')[0]} was" in capsys.readouterr().err
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "epoch": 99}, tmp_path / "other.ckpt")
    assert predict(tmp_path / "other.ckpt", images, output) == 2
    assert "the checkpoint is another one" in capsys.readouterr().err
    assert (output.read_bytes(), (tmp_path / "p.csv.about.json").read_bytes()) == before
    assert predict(checkpoint, images, output, "batch_size=3") == 1  # two files are no images


def test_what_was_not_looked_at_is_said(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"case.pdf": b"%PDF-1.7\n\0", "letter.docx": b"PK\x03\x04rest", "old.doc": b"\xd0\xcf\x11\xe0",
              "page.html": b"<!DOCTYPE html><p>", "song.mp3": b"ID3\4", "photo.nef": b"MM\0*", "empty.txt": b"",
              "what.xyz": bytes(range(99)), "shortcut.lnk": b"L\0\0\0"}  # fmt: skip
    for name, content in {**others, ".DS_Store": b"x", "Thumbs.db": b"x", "desktop.ini": b"x"}.items():
        (images / name).write_bytes(content)
    (images / "picture").write_bytes((images / "a.png").read_bytes())  # told by its content
    assert predict(checkpoint, images, tmp_path / "p.csv") == 1
    found = rows(tmp_path / "p.csv")
    assert {name: row["error"] for name, row in found.items() if row["error"].startswith("not looked at")} == {
        "case.pdf": "not looked at: a PDF is no image",
        "letter.docx": "not looked at: an Office document is no image",
        "old.doc": "not looked at: an Office document is no image",
        "page.html": "not looked at: an HTML page is no image",
        "song.mp3": "not looked at: a sound file is no image",
        "photo.nef": "not looked at: a camera's raw file is no finished picture; export it as JPEG or PNG",
        "empty.txt": "not looked at: an empty file is no image",
        "what.xyz": "not looked at: a file named .xyz is no image",
        "shortcut.lnk": "not looked at: a file named .lnk is no image",
        "notes.txt": "not looked at: a text file is no image",
    }  # fmt: skip
    assert not any(found[name]["verdict"] for name in others)
    assert found["picture"]["logit"] == found["a.png"]["logit"]
    assert not {".DS_Store", "Thumbs.db", "desktop.ini"} & set(found)
    said = capsys.readouterr().out
    assert "not looked at  10" in said
    assert "2 files could not be read, the first:" in said
    table = fakedet.load(checkpoint, "cpu").predict(images)
    assert {Path(path).name for path in table["path"]} == set(found)
    for name in ("text.jpg", "empty.png"):
        (images / name).unlink()
    assert predict(checkpoint, images, tmp_path / "q.csv") == 0  # nothing is wrong with other files
    assert predict(checkpoint, images / "case.pdf", tmp_path / "one.csv") == 0
    assert rows(tmp_path / "one.csv") == {"case.pdf": found["case.pdf"]}


def test_the_output_is_not_among_what_it_lists(checkpoint: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images)
    for _ in range(2):
        predict(checkpoint, ".", Path("p.csv"))
    assert set(rows(images / "p.csv")) == {"a.png", "b.jpg", "c d.png", "tiny.png", "text.jpg", "empty.png",
                                           "notes.txt"}  # fmt: skip


def test_what_machines_leave_behind_is_no_image(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = (images / "a.png").read_bytes()
    for name in ("@eaDir/a.png/SYNOPHOTO_THUMB_XL.png", "deep/#recycle/x.png", "$RECYCLE.BIN/y.png", "lost+found/z.png",
                 "System Volume Information/w.png", "__MACOSX/v.png", "SYNOPHOTO_THUMB_SM.png"):  # fmt: skip
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(picture)
    for number, source in enumerate((str(images), f"{images}/**")):
        capsys.readouterr()
        assert predict(checkpoint, source, tmp_path / f"{number}.csv") == 1
        assert set(rows(tmp_path / f"{number}.csv")) == {
            "a.png", "b.jpg", "c d.png", "tiny.png", "text.jpg", "empty.png", "notes.txt"}  # fmt: skip
        told = " ".join(capsys.readouterr().out.split())
        assert "left behind by systems and other programs, not looked at:" in told
        assert all(name in told for name in ("@eaDir/ (1)", "#recycle/ (1)", "__MACOSX/ (1)", "thumbnails (1)"))
    # A folder that is named is looked at, whatever its name.
    assert predict(checkpoint, images / "lost+found", tmp_path / "named.csv") == 0
    assert set(rows(tmp_path / "named.csv")) == {"z.png"}


def test_what_takes_too_much_memory_is_refused_by_name_and_the_others_go_on(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(images / "large.png"), np.zeros((1500, 1500, 3), np.uint8))
    predict(checkpoint, images, tmp_path / "p.csv", "memory_mb=10")
    found = rows(tmp_path / "p.csv")
    assert "too large: 1500x1500 pixels of this PNG take up to 18 MB of memory" in found["large.png"]["error"]
    assert found["a.png"]["verdict"]
    predict(checkpoint, images, tmp_path / "q.csv")
    assert rows(tmp_path / "q.csv")["large.png"]["verdict"]
    assert rows(tmp_path / "q.csv")["a.png"] == found["a.png"]
    assert predict(checkpoint, images, tmp_path / "q.csv", "memory_mb=0") == 2


def test_a_folder_of_large_transparent_images_keeps_to_the_stated_memory(checkpoint: Path, tmp_path: Path) -> None:
    side, header = 5000, b"IHDR" + (5000).to_bytes(4, "big") * 2 + b"\x08\x06\0\0\0"
    pixels = b"IDAT" + zlib.compress(bytes((1 + 4 * side) * side))
    chunks = [len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
              for chunk in (header, pixels, b"IEND")]  # fmt: skip
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    (tmp_path / "row.png").write_bytes(cv2.imencode(".png", np.zeros((1, 900_000, 3), np.uint8))[1].tobytes())
    detector = fakedet.load(checkpoint, "cpu")
    detector.memory_mb = 300  # one of them takes 200
    detector.predict([np.zeros((99, 99, 3), np.uint8)] * 5)  # what the model takes is not meant
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = memory("VmRSS")
    table = detector.predict(tmp_path)
    assert memory("VmHWM") - before < 300_000_000
    assert len(table) == 5
    assert table["error"].isna().all()


def memory(name: str) -> int:
    """Give a number of bytes that Linux counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


@pytest.mark.parametrize(
    ("verb", "key", "arguments"),
    [
        ("predict", "output", ["checkpoint=demo", "source=."]), ("export", "output", ["checkpoint=demo"]),
        ("index", "output", ["source=."]), ("evaluate", "output_dir", ["checkpoint=demo", "data.manifest=m.csv"]),
        ("audit", "output_dir", ["data.manifest=m.csv"]), ("match", "output_dir", ["data.manifest=m.csv"]),
        ("shard", "output_dir", ["data.manifest=m.csv"]), ("report", "output_dir", ["predictions=p.parquet"]),
        ("compare", "output_dir", ["runs=."]),
    ],
)  # fmt: skip
def test_a_second_process_on_one_output_is_refused(
    verb: str, key: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    output = tmp_path / ("out.csv" if key == "output" else "out")
    if is_folder := key == "output_dir" and verb != "shard":
        output.mkdir()
    with alone(output, key, is_folder):  # as another process would hold it
        before = sorted(tmp_path.rglob("*"))
        assert launch(verb, [*arguments, f"{key}={output}"]) == 2
        assert sorted(tmp_path.rglob("*")) == before
    told = capsys.readouterr().err.strip()
    assert told == (f"fakedet: {key}={output}: another process is writing it; wait until that has ended, or name "
                    "another one")  # fmt: skip


@pytest.mark.slow
def test_two_predicts_at_once_leave_one_table(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    for number in range(40):
        (images / f"more {number}.png").write_bytes((images / "a.png").read_bytes())
    command = [sys.executable, "-m", "fakedet", "predict", f"checkpoint={checkpoint}", f"source={images}",
               f"output={tmp_path}/p.csv", "images_at_a_time=1", "threads=1"]  # fmt: skip
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [run.communicate()[1] for run in both]
    frame = pd.read_csv(tmp_path / "p.csv")
    assert len(frame) == frame["path"].nunique() == 47
    # The second is refused, unless it came when the first had ended: it then found all done.
    assert [run.returncode for run in both].count(2) == sum("another process" in one for one in told) <= 1
    assert list(tmp_path.glob(".*")) == []


def test_tensors_that_are_no_images_never_reach_a_model(checkpoint: Path) -> None:
    detector = fakedet.load(checkpoint, "cpu")
    method, images = detector.module, torch.rand(2, 3, 32, 32)
    expected = method(images).logit
    entries = {
        "detector": detector, "predict": detector.predict, "embed": detector.embed, "method": method,
        "by name": lambda x: method(images=x), "views": lambda x: method.score_views(x[:, None]),
        "batch": lambda x: method.predict_step({"image": x[:, None]}),
        "training batch": lambda x: method.take({"image": x[:, None]}), "exported": Exported(method),
    }  # fmt: skip
    wrong = {"0 ... 255": images * 255, "normalised": images * 4 - 2, "NaN": images * math.nan,
             "integers": (images * 255).int(), "one pixel": images.clone()}  # fmt: skip
    wrong["one pixel"][1, 2, 3, 4] = 1.01
    for entry, call in entries.items():
        call(images)
        for what, tensor in wrong.items():
            with pytest.raises(UserError, match="float"):
                pytest.fail(f"{entry} took {what}: {call(tensor)}")
    for entry in ("detector", "method", "by name", "views", "exported"):  # where the others take 8 bits
        with pytest.raises(UserError, match="divide uint8 by 255"):
            entries[entry]((images * 255).byte())
    numbers = method.predict_step({"image": (images * 255).byte()[:, None]}).logit
    torch.testing.assert_close(numbers, expected, atol=0.05, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_an_exported_detector_gives_no_number_for_what_is_no_image(
    checkpoint: Path, tmp_path: Path, ending: str
) -> None:
    output = tmp_path / f"detector{ending}"
    assert launch("export", [f"checkpoint={checkpoint}", f"output={output}", "check=4"]) == 0
    images = torch.rand(3, 3, 32, 32)
    images[1] *= 255
    images[2] -= 0.5
    if ending == ".pt2":
        logits = torch.export.load(output).module()(images)[0].detach().numpy()
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(str(output))
        logits = session.run(["logit"], {"images": images.numpy()})[0]
    assert np.isnan(logits).tolist() == [False, True, True]
    expected = fakedet.load(checkpoint, "cpu")(images[:1])
    np.testing.assert_allclose(logits[:1], expected.numpy(), atol=1e-4)


def test_how_many_files_are_left_is_told_while_they_are_judged(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(checkpoint, images / "a.png", tmp_path / "p.csv")
    capsys.readouterr()
    show = Bar.show  # made to tell every step, not one in 30 seconds
    monkeypatch.setattr(Bar, "show", lambda self, *given: (setattr(self, "_said", -math.inf), show(self, *given))[1])
    predict(checkpoint, images, tmp_path / "p.csv", "images_at_a_time=1")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("judging images: ")]
    # a.png has its row already, and the output lies elsewhere.
    assert re.search(r"judging images: 5 of 6, .* a second, \d+ s left", "\n".join(told)), told
    assert told[-1].startswith("judging images: 6 of 6, ")
