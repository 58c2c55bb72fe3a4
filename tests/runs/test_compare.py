"""The runs of a sweep in one table: seeds together, failures named, nothing counted that has not finished."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from sklearn.metrics import average_precision_score

from fakedet.cli.app import launch
from fakedet.evaluation.predictions import read_predictions, write_predictions

COMMON = ["data=manifest", "data.crop_size=32", "data.batch_size=8", "data.steps_per_epoch=2", "threads=1",
          "trainer.max_epochs=1", "bootstrap.resamples=20", "header_audit=false"]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    assert launch("train", ["-m", *COMMON, f"data.manifest={tiny_manifest_module}", f"hydra.sweep.dir={root}",
                            "model=bce", "seed=1,2", "model.optimizer.lr=0.001,0.1"]) == 0  # fmt: skip
    # One that fails: no such weights.
    launch("train", [*COMMON, f"data.manifest={tiny_manifest_module}", "model=bce", "model.encoder.width=0",
                     f"output_dir={root / 'wrong'}"])  # fmt: skip
    return root


@pytest.mark.slow
def test_seeds_are_taken_together_and_failures_named(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("compare", [f"runs={sweep}", f"output_dir={tmp_path / 'c'}", "bootstrap.resamples=20"]) == 0
    said = capsys.readouterr().out
    summary = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert sorted(summary["methods"]) == ["model.optimizer.lr=0.001", "model.optimizer.lr=0.1"]
    assert all(sorted(seeds) == [1, 2] for seeds in summary["seeds"].values())
    for rate in ("0.001", "0.1"):
        values = []
        for path in sweep.glob("*/predictions.parquet"):
            if f"model.optimizer.lr={rate}\n" not in (path.parent / "overrides.yaml").read_text():
                continue
            frame = read_predictions(path)[0]
            rows = frame[(frame["label"] == 0) | (frame["generator"] == "gen_c")]
            values.append(average_precision_score(rows["label"], rows["logit"]))
        assert len(values) == 2
        assert summary["values"]["ap"]["gen_c"][f"model.optimizer.lr={rate}"]["value"] == pytest.approx(sum(values) / 2)
    page = (tmp_path / "c" / "report.html").read_text()
    assert "wrong failed:" in page
    assert "fakedet resume run=" in page
    assert "wrong failed:" in said
    assert len(pd.read_csv(tmp_path / "c" / "table.csv")) > 6


@pytest.mark.slow
def test_detectors_that_saw_different_generators_stand_in_a_matrix(tiny_manifest_module: Path, tmp_path: Path) -> None:
    arguments = [
        "-m",
        *COMMON,
        f"data.manifest={tiny_manifest_module}",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    assert launch("train", [*arguments, "model=bce", "data.hold_out=[],[gen_a]"]) == 0
    folders = {path.parent.name for path in (tmp_path / "sweep").glob("*/run.json")}
    assert folders == {"data.hold_out=", "data.hold_out=gen_a"}
    assert (
        launch(
            "compare",
            [f"runs={tmp_path / 'sweep'}", f"output_dir={tmp_path / 'c'}", "bootstrap.resamples=20"],
        )
        == 0
    )
    summary = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert summary["methods"] == ["data.hold_out=[]", "data.hold_out=[gen_a]"]
    assert {row["seen"] for row in summary["generators"].values()} == {None}, "none is seen or unseen for both"
    page = (tmp_path / "c" / "report.html").read_text()
    assert "AUC of each detector (row) on each generator (column)" in page
    assert "not known whether seen in training" in page
    assert (tmp_path / "c" / "matrix.png").stat().st_size > 0


def test_nothing_to_compare_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("compare", [f"runs={tmp_path}", f"output_dir={tmp_path / 'c'}"]) == 2
    assert "there is no finished run" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def made(folder: Path, seed: int, recipe: str, given: tuple[str, ...] = ()) -> Path:
    """Write what a finished run leaves that `compare` reads."""
    folder.mkdir(parents=True)
    OmegaConf.save({"name": "transfer", "model": {"name": "transfer"}}, folder / "config.yaml")
    OmegaConf.save([f"seed={seed}", *given], folder / "overrides.yaml")
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 12)
    frame = pd.DataFrame({
        "id": range(24), "path": [f"{i}.png" for i in range(24)], "label": labels, "split": "test", "source": "",
        "generator": np.where(labels, "gen", "real"), "group": [f"g{i % 12}" for i in range(24)], "view": "original",
        "crop": "crop32", "logit": rng.normal(size=24) + labels, "score": 0.5, "trace_distance": 0.0, "p_value": 0.5,
        "verdict": np.where(labels, "fake", "real"),
    })  # fmt: skip
    info = {"name": "transfer", "seed": seed, "seen_generators": ["gen"], "settings": {"augment.recipe": recipe},
            "operating_point": {"rate": 0.05, "split": "val", "calibration": {"kind": "none"}}}  # fmt: skip
    write_predictions(frame, folder / "predictions.parquet", info)
    facts = {"seed": seed, "kept_epoch": 1, "seconds": {"all": 1.0}, "parameters": 1, "manifest_sha256": "0"}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "metrics.json").write_text(json.dumps({"quarantined": {"n": 0}, "per_generator": {}}))
    return folder


def test_methods_of_one_name_and_the_same_overrides_are_kept_apart(tmp_path: Path) -> None:
    recipes = ("none", "light", "safe")
    folders = [made(tmp_path / "s" / f"{seed}", seed, recipes[seed // 3], ("model=ntf",)) for seed in range(9)]

    def compared(runs: str, out: str, *more: str) -> dict[str, list[int]]:
        arguments = [f"runs={runs}", f"output_dir={tmp_path / out}", "bootstrap.resamples=5", *more]
        assert launch("compare", arguments) == 0
        return json.loads((tmp_path / out / "summary.json").read_text())["seeds"]  # type: ignore[no-any-return]

    assert compared(str(tmp_path / "s"), "a") == {
        "transfer, augment.recipe=light": [3, 4, 5], "transfer, augment.recipe=none": [0, 1, 2],
        "transfer, augment.recipe=safe": [6, 7, 8],
    }  # fmt: skip
    named = f"{{ours: {folders[0]}, theirs: [{folders[3]},{folders[6]}]}}"
    assert compared(named, "b", "baseline=theirs") == {"ours": [0], "theirs": [3, 6]}
    page = (tmp_path / "b" / "report.html").read_text()
    assert "theirs stands for runs of different configs: augment.recipe=light; augment.recipe=safe." in page
