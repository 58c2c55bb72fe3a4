"""`fakedet benchmark`: each public layout in small, the numbers against scikit-learn, the published figures beside."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score

from fakedet.cli.app import launch
from fakedet.errors import UserError
from fakedet.evaluation.benchmark import beside_published, measure, read_benchmark
from fakedet.metrics.bootstrap import Interval

NAMES = ["forensynths", "universalfakedetect", "genimage", "drct", "synthbuster", "chameleon", "aigibench",
         "aigcdetectbenchmark", "wildrf", "community_forensics", "ai_genbench"]  # fmt: skip
# Where each benchmark keeps photographs and fakes: folder, number of files, and the set that its fakes are of.
TREES = {
    "forensynths": [("progan/car/0_real", 3, ""), ("progan/car/1_fake", 2, "progan"), ("biggan/0_real", 3, ""),
                    ("biggan/1_fake", 3, "biggan"), ("seeingdark/0_real", 2, ""),
                    ("seeingdark/1_fake", 2, "seeingdark")],
    "universalfakedetect": [("diffusion_datasets/imagenet/0_real", 3, ""), ("diffusion_datasets/laion/0_real", 4, ""),
                            ("diffusion_datasets/guided/1_fake", 2, "guided"),
                            ("diffusion_datasets/dalle/1_fake", 3, "dalle"), ("test/biggan/0_real", 2, ""),
                            ("test/biggan/1_fake", 2, "biggan")],
    "genimage": [("Midjourney/imagenet_midjourney/val/ai", 3, "Midjourney"),
                 ("Midjourney/imagenet_midjourney/val/nature", 2, ""),
                 ("glide/imagenet_glide/val/ai", 2, "glide"), ("glide/imagenet_glide/val/nature", 2, ""),
                 ("glide/imagenet_glide/train/ai", 2, None), ("glide/imagenet_glide/train/nature", 2, None)],
    "drct": [("MSCOCO/val2017", 3, ""), ("DRCT-2M/stable-diffusion-v1-4/val2017", 3, "stable-diffusion-v1-4"),
             ("DRCT-2M/sdxl-turbo/val2017", 3, "sdxl-turbo")],
    "synthbuster": [("real_RAISE_1k", 3, ""), ("dalle2", 3, "dalle2"), ("firefly", 3, "firefly")],
    "chameleon": [("0_real", 3, ""), ("1_fake", 2, "chameleon")],
    "aigibench": [("StyleGAN3/0_real", 2, ""), ("StyleGAN3/1_fake", 2, "StyleGAN3"), ("WFIR/0_real", 2, ""),
                  ("WFIR/1_fake", 2, "WFIR")],
    "aigcdetectbenchmark": [("ADM/0_real", 2, ""), ("ADM/1_fake", 2, "ADM"), ("stylegan/car/0_real", 2, ""),
                            ("stylegan/car/1_fake", 2, "stylegan")],
    "wildrf": [("reddit/0_real", 2, ""), ("reddit/1_fake", 2, "reddit"), ("twitter/0_real", 2, ""),
               ("twitter/1_fake", 2, "twitter")],
}  # fmt: skip


def plant(name: str, root: Path) -> None:
    """Write a benchmark's folders with small pictures, all different."""
    rng = np.random.default_rng(0)
    for folder, count, _ in TREES[name]:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (70, 66, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number:012d}.png")


@pytest.mark.parametrize("name", TREES)
def test_the_numbers_are_those_of_scikit_learn_over_each_set(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    plant(name, root)
    out = tmp_path / "out"
    words = [f"name={name}", f"data.root={root}", "checkpoint=demo", f"output_dir={out}", "bootstrap.resamples=20"]
    assert launch("benchmark", words) == 0
    table = pd.read_csv(out / "benchmark.csv")
    frame = pd.read_parquet(out / "predictions.parquet")
    sets = {one for _, _, one in TREES[name] if one}
    assert set(table["set"]) - {"mean"} == sets
    found = {(row.metric, row.set): row for row in table.itertuples()}
    accuracies = []
    for one in sets:
        fakes = frame[(frame["label"] == 1) & (frame["generator"] == one)]
        reals = frame[frame["label"] == 0]
        if name == "universalfakedetect":
            reals = reals[reals["generator"] == {"guided": "imagenet", "dalle": "laion"}.get(one, one)]
        elif name not in ("drct", "synthbuster"):
            reals = reals[reals["generator"] == one]
        both = pd.concat([fakes, reals])
        assert (found["ap", one].n_real, found["ap", one].n_fake) == (len(reals), len(fakes))
        accuracies.append(100 * accuracy_score(both["label"], both["score"] > 0.5))
        assert found["acc", one].value == pytest.approx(accuracies[-1], abs=2e-3)
        assert found["ap", one].value == pytest.approx(
            100 * average_precision_score(both["label"], both["logit"]), abs=2e-3)  # fmt: skip
        assert found["acc", one].low <= found["acc", one].value <= found["acc", one].high
    assert found["acc", "mean"].value == pytest.approx(np.mean(accuracies), abs=2e-3)
    page = (out / "benchmark.md").read_text(encoding="utf-8")
    assert read_benchmark(name).facts["licence"] in page


def test_published_figures_of_the_same_detector_stand_beside_and_the_difference_is_theirs(tmp_path: Path) -> None:
    root, config = tmp_path / "test", tmp_path / "own"
    plant("forensynths", root)
    (config / "detector").mkdir(parents=True)
    (config / "detector" / "mine.yaml").write_text(
        "defaults:\n  - /model@model: bce\n  - _self_\nname: mine\nlicence: none\nfile: x\nfetch: nowhere\n"
        "trained_on: {}\ncrop_size: 32\neval_policy: crop\nthreshold: 0.5\nfake_class: null\nrename: []\n"
        "published_as: [NPR(our), RINE 4-class]\n", encoding="utf-8")  # fmt: skip
    from fakedet.api import compose
    from fakedet.build import build_method

    method = build_method(dict(compose("train", "model=bce", "data=demo").model))
    import torch

    torch.save(method.state_dict(), tmp_path / "weights.pth")
    out = tmp_path / "out"
    words = [f"--config-dir={config}", "name=forensynths", f"data.root={root}", "detector=mine",
             f"weights={tmp_path / 'weights.pth'}", f"output_dir={out}", "bootstrap.resamples=5"]  # fmt: skip
    assert launch("benchmark", words) == 0
    table = pd.read_csv(out / "benchmark.csv")
    rows = table[(table["metric"] == "acc") & (table["set"] == "progan")]
    assert dict(zip(rows["source"], rows["published"], strict=True)) == {
        "NPR's README": 99.8, "RINE's result files": 100.0}  # fmt: skip
    assert (table["difference"] - (table["value"] - table["published"])).abs().max() < 2e-3
    # The published means are over other sets.
    assert table.loc[table["set"] == "mean", "published"].isna().all()
    assert set(table["metric"]) == {"acc", "ap", "auc"}  # its own threshold is that of its publication


@pytest.mark.parametrize("name", NAMES)
def test_without_data_it_says_what_to_fetch_and_what_was_published(name: str, capsys: pytest.CaptureFixture) -> None:
    assert launch("benchmark", [f"name={name}"]) == 0
    told = capsys.readouterr().out
    benchmark = read_benchmark(name)
    assert benchmark.facts["data"] in told
    assert benchmark.facts["licence"] in told
    for detector in benchmark.table["detector"]:
        assert detector in told


@pytest.mark.parametrize("name", NAMES)
def test_published_means_are_those_of_their_cells(name: str) -> None:
    """Misprints that their papers have are known; others would be typing errors of ours."""
    table = read_benchmark(name).table
    if "mean" not in table or len(table.columns) < 6:
        return
    cells = table.drop(columns=["detector", "metric", "source", "mean"])
    whole = cells.notna().all(axis=1)
    off = (cells.mean(axis=1) - table["mean"]).abs() > 0.6
    assert set(table["detector"][whole & off & table["mean"].notna()]) <= {"Effort"}


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'genimage'"):
        read_benchmark("genimag")


def test_a_benchmark_of_ones_own_is_a_yaml_file_and_a_table(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(
        "{title: Ours, paper: none, data: here, licence: CC0, root: x, layout: generators, protocol: [one]}",
        encoding="utf-8")  # fmt: skip
    (tmp_path / "ours.csv").write_text("detector,metric,source,a\nX,acc,us,50\n", encoding="utf-8")
    assert read_benchmark(str(tmp_path / "ours.yaml")).sets == ["a"]
    (tmp_path / "ours.csv").write_text("detector,a\nX,50\n", encoding="utf-8")
    with pytest.raises(UserError, match="its table begins with detector,metric,source"):
        read_benchmark(str(tmp_path / "ours.yaml"))


def test_a_published_mean_stands_beside_a_mean_over_the_same_sets_alone(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(
        "{title: Ours, paper: none, data: here, licence: CC0, root: x, layout: generators, protocol: [one]}",
        encoding="utf-8")  # fmt: skip
    (tmp_path / "ours.csv").write_text("detector,metric,source,A,b,mean\nX,acc,us,50,60,55\n", encoding="utf-8")
    benchmark = read_benchmark(str(tmp_path / "ours.yaml"))
    half = Interval(0.5, 0.4, 0.6)
    for sets, wanted in ((["a", "b"], 55.0), (["a"], None), (["a", "b", "c"], None)):
        measured = {"acc": {**dict.fromkeys(sets, half), "mean": half}}
        cells = beside_published(measured, dict.fromkeys([*sets, "mean"], (1, 2)), benchmark, ["X"])
        assert cells[0].set == "A"
        assert cells[-1].set == "mean"
        assert (None if np.isnan(cells[-1].published) else cells[-1].published) == wanted


def test_a_set_without_photographs_of_its_own_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "test"
    plant("forensynths", root)
    for path in (root / "biggan" / "0_real").iterdir():
        path.unlink()
    words = ["name=forensynths", f"data.root={root}", "checkpoint=demo", f"output_dir={tmp_path / 'out'}"]
    assert launch("benchmark", words) == 2
    assert "forensynths: biggan: fakes without photographs of their own" in capsys.readouterr().err


def test_the_mean_has_an_interval_as_wide_as_its_sets_allow() -> None:
    """All photographs are called rightly and all fakes wrongly, so that no resample differs."""
    rows = [{"label": label, "generator": name, "group": f"{name}{label}{number}", "score": 0.1, "verdict": "real",
             "source": "", "path": f"{name}{label}{number}", "logit": 0.0}
            for name in "ab" for label in (0, 1) for number in range(10)]  # fmt: skip
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    metrics = {
        "pairs": None,
        "map": value,
        "mauc": value,
        "per_generator": {name: {"ap": value, "auc": value} for name in "ab"},
    }
    found = measure(pd.DataFrame(rows), metrics, {"resamples": 50, "seed": 0})["acc"]
    assert found["mean"].value == 0.5
    assert 0.3 < found["mean"].low < 0.4 < 0.6 < found["mean"].high < 0.7  # of 40 pictures
    assert found["a"].low < 0.3 < 0.7 < found["a"].high  # of 20


@pytest.mark.parametrize("checkpoint", ["nowhere.ckpt", "demo"])
def test_what_is_wrong_with_detector_or_folder_is_told_before_a_picture_is_read(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, out = tmp_path / "test", tmp_path / "out"
    plant("chameleon", root)
    out.mkdir()
    (out / "there").write_text("x", encoding="utf-8")
    assert (
        launch("benchmark", ["name=chameleon", f"data.root={root}", f"checkpoint={checkpoint}", f"output_dir={out}"])
        == 2
    )
    told = capsys.readouterr()
    assert ("is not empty" if checkpoint == "demo" else "no checkpoint at") in told.err
    assert "reading" not in told.out + told.err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out.")] == []
