"""Every finding of an audit: data that have it are told, data that have it not are left in peace."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from fakedet.audit.report import Audit, audit_frame
from fakedet.cli.app import launch
from fakedet.data.decode import DecodeError


def crop(seed: int) -> NDArray[np.uint8]:
    """Give a crop of a photograph, another one for each seed."""
    rng = np.random.default_rng(seed)
    photo = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()][seed % 4]
    top, left = rng.integers(0, photo.shape[0] - 64), rng.integers(0, photo.shape[1] - 64)
    return np.ascontiguousarray(photo[top : top + 64, left : left + 64])


def encoded(image: NDArray[np.uint8], kind: str = "JPEG", quality: int = 85) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return buffer.getvalue()


class Data:
    """A manifest in memory: 30 reals and 30 fakes of two generators, one held out for test."""

    def __init__(self) -> None:
        rows, self.files = [], []
        for split in ("train", "val", "test"):
            for label, generator in ((0, "photos"), (1, "gan"), (1, "dalle2")):
                if generator == "dalle2" and split != "test":
                    continue
                for number in range(10):
                    rows.append((f"{split}/{generator}/{number}.jpg", label, generator, "", split))
                    self.files.append(encoded(crop(len(rows)), quality=75 + number))
        self.frame = pd.DataFrame(rows, columns=["path", "label", "generator", "source", "split"])
        self.frame["group"] = self.frame["path"]

    def add(self, content: bytes, path: str, label: int, generator: str, split: str, group: str = "") -> None:
        self.frame.loc[len(self.frame)] = [path, label, generator, "", split, group or path]
        self.files.append(content)

    def read(self, row: int) -> bytes:
        if self.files[row] == b"gone":
            raise DecodeError("no such file")
        return self.files[row]

    def audit(self, **settings: object) -> Audit:
        return audit_frame(self.frame, None, None, self.read, **settings)  # type: ignore[arg-type]

    def kinds(self) -> list[tuple[str, str]]:
        return [(finding.level, finding.kind) for finding in self.audit().findings]


def test_clean_data_have_no_problem() -> None:
    found = Data().audit()
    assert [finding for finding in found.findings if finding.level == "problem"] == []
    assert {entry.generator for entry in found.generators} == {"gan", "dalle2"}
    assert all(entry.header.auc.low <= 0.6 for entry in found.generators)


def test_groups_that_cross_splits() -> None:
    made = Data()
    made.frame.loc[[0, 60], "group"] = "one photo"
    finding = next(f for f in made.audit().findings if f.kind == "group")
    assert finding.level == "problem"
    assert "1 groups" in finding.what
    assert "'one photo' in test and train" in finding.what


def test_equal_contents_under_two_labels_and_two_splits() -> None:
    made = Data()
    made.add(made.files[0], "test/gan/copy.jpg", 1, "gan", "test")
    found = [f for f in made.audit().findings if f.kind == "duplicate"]
    assert {f.data["by"] for f in found} == {"label", "split"}
    assert all("train/photos/0.jpg" in f.what and "test/gan/copy.jpg" in f.what for f in found)


def test_hashes_of_the_manifest_are_used_for_all_rows_though_few_are_looked_at() -> None:
    made = Data()
    made.add(made.files[3], "test/photos/copy.jpg", 0, "photos", "test")
    digests = pd.Series([hashlib.sha256(content).hexdigest() for content in made.files])
    found = audit_frame(made.frame, digests, None, made.read, sample=1)
    assert [f.data["by"] for f in found.findings if f.kind == "duplicate"] == ["split"]
    sampled = next(f for f in found.findings if f.kind == "sample")
    assert sampled.data == {"looked_at": 7, "images": 71}  # one of each class, generator and split


def test_reencoded_copies_across_splits() -> None:
    made = Data()
    made.add(encoded(crop(1), quality=60), "test/photos/again.jpg", 0, "photos", "test")
    found = made.audit()
    finding = next(f for f in found.findings if f.kind == "near-duplicate")
    assert finding.data == {"pairs": 1}
    assert found.pairs[["first", "second"]].to_numpy().tolist() == [["train/photos/0.jpg", "test/photos/again.jpg"]]
    assert not any(f.kind == "duplicate" for f in found.findings)


def test_generators_that_are_not_unseen() -> None:
    made = Data()
    made.add(encoded(crop(900)), "val/dalle2/x.jpg", 1, "dalle2", "val")
    for number in range(5):
        made.add(encoded(crop(800 + number)), f"test/GAN/{number}.jpg", 1, "GAN", "test")
    told = [f.what for f in made.audit().findings if f.kind == "unseen"]
    assert any("not trained on, but in the validation split: dalle2" in what for what in told)
    assert any("'GAN' in test seems to be 'gan'" in what for what in told)


def test_split_without_reals_unreadable_files_and_bars() -> None:
    made = Data()
    reals = made.frame.index[(made.frame["split"] == "val") & (made.frame["label"] == 0)]
    made.frame.loc[reals, "split"] = "train"
    for row in (30, 31, 32, 33, 34):
        made.files[row] = b"gone"
    barred = crop(3)
    barred[:12] = 255
    for number in range(40):
        image = crop(1000 + number)
        image[:12] = 255
        made.add(encoded(image), f"test/barred/{number}.jpg", 1, "barred", "test")
    found = {finding.kind: finding for finding in made.audit().findings}
    assert "the split 'val' has 0 reals" in found["balance"].what
    assert "5 images cannot be read" in found["unreadable"].what
    assert "no such file" in found["unreadable"].what
    assert found["strip"].data["side"] == "top"
    shares = found["strip"].data["shares"]
    assert list(shares) == ["barred"]
    assert shares["barred"]["fake"] > 0.8
    assert shares["barred"]["real"] < 0.1


def test_png_fakes_among_jpeg_reals_are_a_problem() -> None:
    made = Data()
    for row in made.frame.index[made.frame["generator"] == "dalle2"]:
        made.files[row] = encoded(crop(row), "PNG")
    finding = next(f for f in made.audit().findings if f.kind == "header")
    assert finding.level == "problem"
    assert "dalle2 (AUC 1.00" in finding.what
    assert "gan" not in finding.what
    assert "fakedet match" in finding.mend


def test_command_writes_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Data()
    for path, content in zip(made.frame["path"], made.files, strict=True):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / "test/gan/0.jpg").write_bytes(b"<script>alert(1)</script>")
    made.frame.loc[[0, 60], "group"] = "<b>one</b> photo"
    made.frame.to_csv(tmp_path / "m.csv", index=False)
    arguments = [f"data.manifest={tmp_path}/m.csv", f"output_dir={tmp_path}/audit", "sample=null"]
    assert launch("audit", arguments) == 0
    printed = capsys.readouterr().out
    assert "PROBLEM: 1 groups are in several splits" in printed
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert content["n_unreadable"] == 1
    assert set(content["generators"]) == {"gan", "dalle2"}
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "&lt;b&gt;one&lt;/b&gt; photo" in page
    assert "http" not in page.replace("http-equiv", "").split("How to make it again")[0]
    assert (tmp_path / "audit" / "unreadable.csv").is_file()
    assert launch("audit", [*arguments, "sample=0", "overwrite=true"]) == 2
    assert "sample=0: must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.corpus
def test_audit_of_the_corpus(corpus: Path, tmp_path: Path) -> None:
    """It finds the confounders of the native files, and cries no wolf on the matched ones."""
    assert launch("index", [f"source={corpus}/native", f"output={tmp_path}/native.parquet"]) == 0
    assert launch("audit", [f"data.manifest={tmp_path}/native.parquet", f"output_dir={tmp_path}/a"]) == 0
    native = json.loads((tmp_path / "a" / "audit.json").read_text())["generators"]
    assert len(native) == 7
    assert all(entry["header"]["auc"]["value"] >= 0.9 for entry in native.values())
    pairs = "data.pairs={stylegan*:[real_ffhq_*],*:['!real_ffhq_*']}"
    arguments = [f"data.manifest={corpus}/matched/manifest.csv", f"output_dir={tmp_path}/b", pairs]
    assert launch("audit", arguments) == 0
    content = json.loads((tmp_path / "b" / "audit.json").read_text())
    for name, entry in content["generators"].items():
        auc = entry["header"]["auc"]
        assert auc["low"] <= 0.65, (name, auc)
        assert auc["value"] < 0.7, (name, auc)
    assert not any(finding["level"] == "problem" for finding in content["findings"])
