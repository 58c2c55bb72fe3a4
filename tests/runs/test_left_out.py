"""An operating point over collections and families left out of training, from the folds to what users are told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fakedet.cli.app import launch
from fakedet.evaluation.predictions import read_predictions

RATE = 0.3
BASE = ["model=bce", "data=manifest", "data.manifest=tiny/manifest.csv", "data.crop_size=32", "data.batch_size=16",
        "debug=step", "threads=1", "bootstrap.resamples=20", "header_audit=false", "pictures=0"]  # fmt: skip
FOLDS = {"real_x": [0], "real_y": [0], "gen_a": [1], "gen_b": [1]}


@pytest.fixture(scope="module")
def place(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study `out`, of a fold for each family, and the final training `final`."""
    folder = tmp_path_factory.mktemp("left_out")
    shutil.copytree(tiny_manifest_module.parent, folder / "tiny")
    (folder / "configs" / "study").mkdir(parents=True)
    (folder / "configs" / "study" / "folds.yaml").write_text(
        "# @package _global_\nstudy: {name: folds, title: Folds}\nhydra: {sweep: {dir: out}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert launch("study", ["--config-dir", "configs", "study=folds", "protocol=leave_out", *BASE]) == 0
        (folder / "out" / "leave_out").rename(folder / "folds")
        assert train("final", "operating_point.predictions=folds") == 0
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def train(output: str, *more: str) -> int:
    return launch("train", [*BASE, f"output_dir={output}", f"operating_point.rate={RATE}", *more])


def folds(place: Path) -> pd.DataFrame:
    """Read what the fold of each family says of that family's images."""
    parts = []
    for name, (label,) in FOLDS.items():
        frame = read_predictions(place / "folds" / f"data.hold_out_families={name}" / "predictions.parquet")[0]
        parts.append(frame[(frame["family"] == name) & (frame["label"] == label)])
    return pd.concat(parts, ignore_index=True)


def test_every_photograph_of_train_and_val_is_measured_by_a_fold_without_its_collection(here: Path) -> None:
    table = pd.read_csv("tiny/manifest.csv")
    expected = table[(table["label"] == 0) & (table["split"] != "test")]
    found = folds(here)
    assert set(found.loc[found["label"] == 0, "path"]) == set(expected["path"])
    for name in ("real_x", "real_y"):
        held = json.loads((here / "folds" / f"data.hold_out_families={name}" / "metrics.json").read_text())
        assert list(held["per_collection"]) == [name], "a fold of photographs measures these alone"
    told = json.loads((here / "folds" / "summary.json").read_text())["caveats"]
    (line,) = [line for line in told if "called fake at each run's threshold" in line]
    assert "mean over 2 collections left out of training" in line
    shares = [(found.loc[found["family"] == name, "verdict"] == "fake").mean() for name in ("real_x", "real_y")]
    assert f": {100 * np.mean(shares):.0f} % of photographs" in line
    assert f"By collection: real_x {100 * shares[0]:.0f} %, real_y {100 * shares[1]:.0f} %." in line


def test_a_study_of_photographs_alone_is_told_without_a_ranking(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("folds", "photographs")
    study = json.loads(Path("folds/study.json").read_text())
    study["jobs"] = [job for job in study["jobs"] if job["family"].startswith("real_")]
    Path("photographs/study.json").write_text(json.dumps(study))
    assert launch("compare", ["runs=photographs", "output_dir=c", "bootstrap.resamples=20"]) == 0
    assert "mean over 2 collections left out of training" in capsys.readouterr().out
    assert not Path("c/report.html").exists()
    before, after = (json.loads(Path(name, "summary.json").read_text())["caveats"] for name in ("folds", "c"))
    assert [line for line in before if "called fake" in line] == [line for line in after if "called fake" in line]


def test_the_final_training_is_fitted_on_what_the_folds_scored(here: Path) -> None:
    point = torch.load("final/checkpoints/best.ckpt", weights_only=True)["fakedet"]["operating_point"]
    found = folds(here)
    reals = found[found["label"] == 0]
    logits, names = reals["logit"].to_numpy(), reals["family"].to_numpy()
    # 12 photographs in 6 groups of each collection: worth 12.
    shares = {t: np.mean([(logits[names == name] > t).mean() for name in ("real_x", "real_y")]) for t in sorted(logits)}
    assert point["threshold"] == next(t for t, share in shares.items() if 1 + 12 * share <= RATE * 13)
    assert (point["n_real"], point["n_fake"]) == (24, (found["label"] == 1).sum())
    assert sorted(point["fakes"]) == sorted(found.loc[found["label"] == 1, "logit"])
    assert point["left_out"]["mean"]["value"] == pytest.approx(shares[point["threshold"]])
    assert point["left_out"]["sizes"] == {"real_x": 12, "real_y": 12}
    assert point["reference"]["strata"]["names"] == ["real_x", "real_y"]
    metrics = json.loads(Path("final/metrics.json").read_text())
    assert metrics["operating_point"]["left_out"] == point["left_out"]


@pytest.mark.slow
def test_the_interval_over_collections_is_told_wherever_photographs_are_promised(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["checkpoint=final/checkpoints/best.ckpt", "threads=1"]
    told = "% of photographs: mean over 2 collections left out of training, 95 % interval "
    assert launch("evaluate", [*words, "data.manifest=tiny/manifest.csv", "output_dir=e", "bootstrap.resamples=0"]) == 0
    assert told in capsys.readouterr().out
    assert launch("evaluate", [*words, "data.manifest=tiny/manifest.csv", "output_dir=f", "split=val"]) == 2
    assert "used for fitting" in capsys.readouterr().err
    for false_alarm, share in ((RATE, None), (0.05, 0), (0.9, None)):
        more = [f"source={here}/tiny/real_x", f"output=p{false_alarm}.csv", f"false_alarm={false_alarm}", "tiles=0"]
        assert launch("predict", [*words, *more, "views=[]"]) == 0
        said = capsys.readouterr()
        assert f"called fake: {'0 ' if share == 0 else ''}" in said.out
        assert told in said.out
        assert "Called real: about 5 % of fakes (mean over 2 families left out of training)" in said.out
        assert ("nothing will be called fake" in said.out + said.err) == (share == 0)
    assert launch("export", [words[0], "output=d.safetensors"]) == 0
    card = Path("d.md").read_text()
    assert told in card
    assert "By collection: real_" in card
    assert launch("report", ["predictions=final/predictions.parquet", "output_dir=r", "bootstrap.resamples=20"]) == 0
    assert told in Path("r/report.html").read_text()
    capsys.readouterr()
    assert launch("predict", ["checkpoint=d.safetensors", f"source={here}/tiny/real_x", "output=q.csv", "tiles=0",
                              f"false_alarm={RATE}", "views=[]"]) == 0  # fmt: skip
    assert told in capsys.readouterr().out
    columns = ["path", "verdict", "p_value"]
    pd.testing.assert_frame_equal(pd.read_csv("q.csv")[columns], pd.read_csv(f"p{RATE}.csv")[columns])


@pytest.mark.slow
def test_runs_that_cannot_be_fitted_on_are_refused_before_training(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = {name: f"folds/data.hold_out_families={name}" for name in FOLDS}
    assert train("plain", "seed=1") == 0
    (here / "empty").mkdir()
    capsys.readouterr()
    for given, more, told in (
        ("[nowhere]", [], "nowhere has no predictions.parquet"),
        ("empty", [], "empty has no predictions.parquet"),
        ("plain", [], "plain measured a test split; pass data.measure=held_out"),
        ("folds", ["model.optimizer.lr=0.5"], "is a run of another method: model.optimizer.lr="),
        ("folds", ["data.crop_size=24"], "is a run of another method: data.crop_size=32, here 24"),
        (f"['{fold['real_x']}','{fold['real_y']}']", [], "its runs left out fakes of no family"),
        (f"['{fold['gen_a']}','{fold['gen_b']}']", [], "its runs left out photographs of no family"),
        (f"['{fold['gen_a']}','{fold['real_x']}']", [], "its runs left out photographs of 'real_x' alone"),
        (f"[folds,'{fold['real_x']}']", [], "left out the same images"),
    ):
        assert train("refused", f"operating_point.predictions={given}", *more) == 2, told
        error = capsys.readouterr().err
        assert told in error
        assert "operating_point.predictions" in error
        assert not (here / "refused" / "checkpoints").exists()
        shutil.rmtree("refused", ignore_errors=True)
    # A seed of its own and further families held out are no other method; a fold that has not finished is none at all.
    assert train("other", "operating_point.predictions=folds", "seed=7", "test_after_fit=false") == 0
    shutil.copytree("folds", "part")
    shutil.rmtree(here / "part" / "data.hold_out_families=real_y")
    assert train("refused", "operating_point.predictions=part") == 2
    assert "hold_out_families=real_y has no predictions.parquet" in capsys.readouterr().err
