"""What the names of labels, columns and folders say of their images, and what they leave open."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from fakedet.cli.app import launch
from fakedet.data.index import Settings, index_folder
from fakedet.data.manifest_table import classes
from fakedet.errors import UserError
from tests.data.index.test_layouts import make


def labels(values: list[str], column: str = "label", **options: list[str]) -> dict[str, int]:
    return {value: label for value, (label, _) in classes(values, column, "t.csv", **options).items()}


@pytest.mark.parametrize("value", [
    "unknown", "nan", "N/A", "?", "TBD", "todo", "skip", "None", "-1", "undecided", "unlabelled", "Edited/Other",
    "rael", "faek", "not sure", "1", "7", "true", "both", "unknown_images", "",
])  # fmt: skip
def test_what_is_undecided_is_no_generator(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for others in (["real"], ["real", "sdxl"], ["real", "0"]):
        with pytest.raises(UserError, match=r"which labels are real and which fake\?.*reals=.*fakes="):
            labels([*others, value])
    assert labels(["real", value], fakes=[value]) == {"real": 0, value: 1}
    name = value.replace("/", "_")
    if not name:
        return
    make(tmp_path / "d", [*(f"real/{n}.png" for n in range(20)), "sdxl/1.png", f"{name}/a.png"])
    assert launch("index", [f"source={tmp_path}/d", f"output={tmp_path}/m.parquet"]) == 0
    assert pd.read_parquet(tmp_path / "m.parquet").groupby("label")["path"].size().to_dict() == {0: 20, 1: 1}
    assert f"{name} (left out); if they hold photographs" in " ".join(capsys.readouterr().out.split())
    frame = pd.read_parquet(index_folder(tmp_path / "d", tmp_path / "m.parquet", Settings(fakes=[name])).manifest)
    assert frame.set_index("path")["label"][f"{name}/a.png"] == 1


def test_generators_beside_reals_are_fakes_still() -> None:
    for name in (
        "sdxl",
        "StyleGAN2",
        "v5",
        "midjourney",
        "RealSR",
        "unCLIP",
        "NovelAI",
        "glide",
        "文心",
        "Real-ESRGAN",
    ):
        assert labels(["real", name]) == {"real": 0, name: 1}


@pytest.mark.parametrize("column", [
    "real_label", "target_real", "probably_real", "generated_by_human", "real_flag", "realness", "authenticity",
    "genuine_label", "real_or_not", "human_or_ai", "notAiLabel", "isTargetNotFake", "ai_free_label",
])  # fmt: skip
def test_numbers_of_a_column_that_may_mean_real_are_refused(column: str) -> None:
    with pytest.raises(UserError, match=f"The column '{column}' has '0', '1'"):
        labels(["0", "1"], column)
    assert labels(["0", "1"], column, reals=["1"]) == {"0": 1, "1": 0}


@pytest.mark.parametrize(("column", "of_one"), [
    ("is_real", 0), ("isRealPhoto", 0), ("label_real", 0), ("human", 0), ("not_ai", 0), ("label", 1), ("target", 1),
    ("is_fake", 1), ("fake_label", 1), ("ground_truth", 1), ("annotation", 1), ("not_real", 1),
])  # fmt: skip
def test_numbers_of_a_plain_column_are_read(column: str, of_one: int) -> None:
    assert labels(["0", "1"], column) == {"0": 1 - of_one, "1": of_one}


@pytest.mark.parametrize("name", [
    "RealArt", "HumanArt", "PhotoArt", "human art", "Real Vision", "RealVision", "authentic_vision", "Real-2.0",
    "natural_paintings", "GenuinePortraits", "Photo v1.5",
])  # fmt: skip
def test_names_that_models_have_are_no_photographs(name: str, tmp_path: Path) -> None:
    make(tmp_path / "d", [f"{name}/1.png", "sdxl/2.png", "real/3.png"])
    found = index_folder(tmp_path / "d", tmp_path / "m.parquet", Settings())
    assert found.why[1, name] == "its name is not plainly one for photographs"
    for other in ("fake", "sdxl"):
        with pytest.raises(UserError, match="which labels are real"):
            labels([name, other])


@pytest.mark.parametrize(("real", "fake"), [
    ("not deepfake", "deepfake"), ("not_manipulated", "manipulated"), ("untampered", "tampered"), ("no AI", "AI"),
    ("unaltered", "altered"), ("non_forged", "forged"), ("ai-free", "AI art"), ("without_ai", "generated"),
    ("not AI-generated", "AI-generated"), ("authentic", "not_authentic"),
])  # fmt: skip
def test_a_class_and_its_denial(real: str, fake: str) -> None:
    assert labels([real, fake]) == {real: 0, fake: 1}


@pytest.mark.parametrize("label", [
    "Real photo (2019, Canon)", "wild [x]", "[0]", "it's, \"so\"", "a, b", "{c}", "*", "null", "1.50", "a\\",
    "é (ü)", "a=b",
])  # fmt: skip
def test_the_advice_can_be_pasted(label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "d", ["1.png", "2.png"])
    table = pd.DataFrame({"path": ["1.png", "2.png"], "label": [label, "ÿÿ (z)"], "generator": ["a", "b"]})
    table.to_csv(tmp_path / "d" / "t.csv", index=False)
    command = [f"source={tmp_path}/d/t.csv", f"output={tmp_path}/m.parquet", "split=test"]
    assert launch("index", command) == 2
    told = capsys.readouterr().err
    for option, of_first in (("reals", 0), ("fakes", 1)):
        found = re.search(rf"(?:Pass|or) ('{option}=.*?')(?= or |, with)", told)
        assert found, told
        assert launch("index", [*command, *shlex.split(found[1])]) == 0
        assert pd.read_parquet(tmp_path / "m.parquet")["label"].tolist() == [of_first, 1 - of_first]
