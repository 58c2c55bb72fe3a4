"""The operating point travels in the checkpoint, and data that it was fitted on are no test."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fakedet.cli.app import launch
from fakedet.evaluation.predictions import read_predictions

BASE = ["data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=1", "threads=1",
        "bootstrap.resamples=20", "stage1_cache=null", "header_audit=false"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("operating") / "bce"
    assert launch("train", ["model=bce", *BASE, f"data.manifest={tiny_manifest_module}", f"output_dir={folder}",
                            "operating_point.rate=0.25"]) == 0  # fmt: skip
    return folder


def evaluated(run: Path, manifest: Path, folder: Path, *more: str) -> int:
    return launch("evaluate", [f"checkpoint={run}/checkpoints/best.ckpt", f"data.manifest={manifest}",
                               f"output_dir={folder}", "bootstrap.resamples=20", *more])  # fmt: skip


def test_threshold_is_the_promised_one_on_the_validation_reals(
    run: Path, tiny_manifest_module: Path, tmp_path: Path
) -> None:
    assert evaluated(run, tiny_manifest_module, tmp_path / "e", "split=val", "force=true") == 0
    frame, _ = read_predictions(tmp_path / "e" / "predictions.parquet")
    point = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["fakedet"]["operating_point"]
    reals = np.sort(frame.loc[frame["label"] == 0, "logit"])
    # 8 reals at a rate of 0.25: k / 9 <= 0.25 allows the second highest.
    assert point["threshold"] == pytest.approx(reals[-2], abs=1e-5)
    assert (frame["verdict"] == np.where(frame["logit"] > point["threshold"], "fake", "real")).all()


def test_the_same_numbers_after_training_and_from_the_checkpoint(
    run: Path, tiny_manifest_module: Path, tmp_path: Path
) -> None:
    assert evaluated(run, tiny_manifest_module, tmp_path / "e") == 0
    ours, _ = read_predictions(tmp_path / "e" / "predictions.parquet")
    theirs, _ = read_predictions(run / "predictions.parquet")
    columns = ["path", "logit", "score", "p_value", "verdict"]
    pd.testing.assert_frame_equal(ours[columns], theirs[columns], rtol=1e-5)
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["data_was_used_for"] is None
    assert metrics["operating_point"]["n_real"] == 8
    entry = metrics["per_generator"]["gen_c"]
    own = ours[ours["generator"].isin(["real_x", "real_y", "gen_c"])]
    assert entry["acc_fake"]["value"] == (own.loc[own["label"] == 1, "verdict"] == "fake").mean()
    assert entry["acc_real"]["value"] == (own.loc[own["label"] == 0, "verdict"] == "real").mean()
    assert all(entry[key]["value"] is not None for key in ("ece", "brier", "tpr_at_1", "tpr_at_5"))


@pytest.mark.parametrize(("split", "use"), [("val", "fitting"), ("train", "training")])
def test_data_of_its_own_are_refused_unless_forced_and_then_marked(
    run: Path,
    tiny_manifest_module: Path,
    tmp_path: Path,
    split: str,
    use: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluated(run, tiny_manifest_module, tmp_path / "a", f"split={split}") == 2
    assert f"this split was used for {use} this detector" in capsys.readouterr().err
    assert evaluated(run, tiny_manifest_module, tmp_path / "b", f"split={split}", "force=true") == 0
    assert "its results flatter" in capsys.readouterr().out
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["data_was_used_for"] == use
    assert read_predictions(tmp_path / "b" / "predictions.parquet")[1]["data_was_used_for"] == use


def test_what_is_not_scored_is_told_and_the_mean_auc_is_printed(
    run: Path, tiny_manifest_module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(run, tiny_manifest_module, tmp_path / "a") == 0
    told = capsys.readouterr().out
    frame = pd.read_csv(tiny_manifest_module)
    counts = frame["split"].value_counts()
    assert f"scoring {counts['test']} images of the split test alone" in told
    assert f"train {counts['train']}" in told
    value = json.loads((tmp_path / "a" / "metrics.json").read_text())["mauc_unseen"]["value"]
    assert re.search(rf"mean, unseen +AP .* AUC {value:.3f}", told)
    frame.assign(split="test").to_csv(tmp_path / "all.csv", index=False)
    root = f"data.root={tiny_manifest_module.parent}"
    assert evaluated(run, tmp_path / "all.csv", tmp_path / "b", root) == 0
    assert "alone" not in capsys.readouterr().out


def test_rows_it_was_made_with_are_no_test_under_another_name(
    run: Path, tiny_manifest_module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held out only now, a generator's training fakes become the split "test"."""
    hold_out = ["data.hold_out=[gen_a]", "data.measure=held_out"]
    assert evaluated(run, tiny_manifest_module, tmp_path / "a", *hold_out) == 2
    assert "split=test: this split was used for training this detector" in capsys.readouterr().err
    assert evaluated(run, tiny_manifest_module, tmp_path / "b", *hold_out, "force=true") == 0
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["data_was_used_for"] == "training"
    made = launch("train", ["model=bce", *BASE, *hold_out, f"data.manifest={tiny_manifest_module}",
                            f"output_dir={tmp_path}/without", "test_after_fit=false"])  # fmt: skip
    assert made == 0
    assert evaluated(tmp_path / "without", tiny_manifest_module, tmp_path / "c", *hold_out) == 0
    assert evaluated(tmp_path / "without", tiny_manifest_module, tmp_path / "d") == 0
    assert evaluated(tmp_path / "without", tiny_manifest_module, tmp_path / "e", "split=val") == 2


def test_checkpoint_without_an_operating_point(
    run: Path, tiny_manifest_module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    del content["fakedet"]["operating_point"]
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    torch.save(content, tmp_path / "old" / "checkpoints" / "best.ckpt")
    assert evaluated(tmp_path / "old", tiny_manifest_module, tmp_path / "e") == 0
    assert "has no operating point" in capsys.readouterr().out
    frame, _ = read_predictions(tmp_path / "e" / "predictions.parquet")
    np.testing.assert_allclose(frame["score"], 1 / (1 + np.exp(-frame["logit"])))
    assert set(frame["verdict"]) == {""}
    assert frame["p_value"].isna().all()
    entry = json.loads((tmp_path / "e" / "metrics.json").read_text())["per_generator"]["gen_c"]
    assert entry["acc_fake"]["value"] is None
    assert entry["tpr_at_5"]["value"] is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("operating_point.rate=0", "a share of reals"),
        ("operating_point.calibration=plat", "valid: temperature, isotonic"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_fitted_are_refused_before_training(
    tiny_manifest_module: Path,
    tmp_path: Path,
    override: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        "model=bce",
        *BASE,
        f"data.manifest={tiny_manifest_module}",
        f"output_dir={tmp_path}/r",
        override,
    ]
    assert launch("train", arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize(("label", "kind", "key"), [(0, "real", "acc_real"), (1, "fake", "acc_fake")])
def test_one_class_alone_gives_what_can_be_said_of_it(
    run: Path, tiny_manifest_module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], label: int, kind: str,
    key: str,
) -> None:  # fmt: skip
    table = pd.read_csv(tiny_manifest_module)
    table[table["label"] == label].to_csv(tmp_path / "alone.csv", index=False)
    root, out = f"data.root={tiny_manifest_module.parent}", tmp_path / "e"
    assert evaluated(run, tmp_path / "alone.csv", out, root, "robustness=quick") == 0
    told = capsys.readouterr().out
    assert "AP –" not in told
    frame, _ = read_predictions(out / "predictions.parquet")
    metrics = json.loads((out / "metrics.json").read_text())
    right = frame["verdict"] == kind
    original = frame["view"] == "original"
    for name, rows in frame[original].groupby("generator"):
        entry = metrics[("per_collection", "per_generator")[label]][name]
        assert entry[f"n_{kind}"] == len(rows)
        assert entry[key]["value"] == pytest.approx(right[rows.index].mean())
        assert entry[key]["low"] < entry[key]["high"]
        assert re.search(rf"{name} +.*called {kind} {entry[key]['value']:.3f} \[.*\({len(rows)} {kind}\)", told)
    assert (metrics[key]["value"], metrics[key]["n"]) == (pytest.approx(right[original].mean()), original.sum())
    views = json.loads((out / "robustness.json").read_text())["views"]
    assert {name: entry[key]["value"] for name, entry in views.items()} == pytest.approx(
        right.groupby(frame["view"]).mean().to_dict()
    )
    command = re.search(r"next +fakedet (report .*)", told)
    assert command is not None
    verb, *arguments = command[1].split()
    assert launch(verb, [*arguments, f"output_dir={tmp_path / 'r'}", "bootstrap.resamples=20"]) == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["values"]["accuracy"][f"{kind}s"]["bce"]["value"] == pytest.approx(metrics[key]["value"])
    assert f"Of {original.sum()}" in (tmp_path / "r" / "report.html").read_text()


def with_pairs(run: Path, folder: Path, pairs: object) -> Path:
    """Give a copy of the run whose checkpoint says that it was trained with other pairs."""
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["fakedet"]["pairs"] = pairs
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder


def paired_with(folder: Path, name: str) -> list[str]:
    return json.loads((folder / "metrics.json").read_text())["per_generator"][name]["reals"]  # type: ignore[no-any-return]


def test_pairs_travel_with_the_predictions(
    run: Path, tiny_manifest_module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = with_pairs(run, tmp_path / "trained", {"gen_*": "real_x"})
    made = {"trained": [], "other": ["data.pairs={gen_c:real_y}"], "none": ["data.pairs={}"]}
    for name, more in made.items():
        assert evaluated(trained, tiny_manifest_module, tmp_path / name / "e", *more) == 0
        told = capsys.readouterr().out
        assert ("the training's data.pairs are used" in told) == (name == "trained")
        assert ("gen_c: compared with real_y here, and with real_x by the pairs in training" in told) == (
            name == "other"
        )
        metrics = json.loads((tmp_path / name / "e" / "metrics.json").read_text())
        report = ["report", [f"predictions={tmp_path / name / 'e'}/predictions.parquet", "bootstrap.resamples=20",
                             f"output_dir={tmp_path / name / 'r'}"]]  # fmt: skip
        assert launch(*report) == 0
        capsys.readouterr()
        summary = json.loads((tmp_path / name / "r" / "summary.json").read_text())
        for generator, entry in metrics["per_generator"].items():
            assert summary["generators"][generator]["reals"] == entry["reals"]
            for key in ("ap", "auc"):
                assert summary["values"][key][generator]["bce"] == pytest.approx(entry[key], nan_ok=True)
        for note in metrics["pairing_notes"]:
            assert note.replace("'", "&#39;") in (tmp_path / name / "r" / "report.html").read_text()
    assert [paired_with(tmp_path / name / "e", "gen_c") for name in made] == [
        ["real_x"], ["real_y"], ["real_x", "real_y"]
    ]  # fmt: skip
    files = ",".join(f"{tmp_path / name / 'e'}/predictions.parquet" for name in ("trained", "other"))
    assert launch("report", [f"predictions=[{files}]", f"output_dir={tmp_path / 'b'}"]) == 2
    assert "compares gen_a with real_x, and" in capsys.readouterr().err


def test_pairs_of_the_training_that_match_nothing_are_not_inherited_without_a_word(
    run: Path, tiny_manifest_module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(tiny_manifest_module)
    table["source"] = table["generator"].map({"real_x": "faces", "real_y": "streets"}).fillna("")
    table["generator"] = table["generator"].replace({"gen_a": "q", "gen_b": "q", "gen_c": "q"})
    table.to_csv(tmp_path / "other.csv", index=False)
    root = f"data.root={tiny_manifest_module.parent}"
    for number, (pairs, why) in enumerate((
        ({"gen_*": "real_x"}, "match no generator of these data and are not used"),
        ({"*": ["!ffhq_*"]}, "do not fit these data"),
    )):  # fmt: skip
        trained = with_pairs(run, tmp_path / f"{number}", pairs)
        assert evaluated(trained, tmp_path / "other.csv", tmp_path / f"e{number}", root) == 0
        told = capsys.readouterr().out
        assert why in told
        assert "q: compared with all reals, of all sources (faces 4, streets 4)" in told
        notes = json.loads((tmp_path / f"e{number}" / "metrics.json").read_text())["pairing_notes"]
        assert any("all sources" in note for note in notes)
        assert read_predictions(tmp_path / f"e{number}" / "predictions.parquet")[1]["pairs"] is None
