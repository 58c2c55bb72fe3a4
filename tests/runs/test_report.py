"""A report is rebuilt from predictions alone, with the numbers that the run itself wrote."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from fakedet.cli.app import launch
from fakedet.evaluation.predictions import (
    confident_errors,
    read_pictures,
    read_predictions,
    write_predictions,
)

COMMON = ["data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=1", "threads=1",
          "bootstrap.resamples=30", "stage1_cache=null"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with two methods' runs, one of them evaluated on degraded views too."""
    root = tmp_path_factory.mktemp("report")
    for name, model in (("a", "bce"), ("b", "supcon")):
        assert launch("train", [f"model={model}", *COMMON, f"data.manifest={tiny_manifest_module}",
                                f"output_dir={root}/{name}"]) == 0  # fmt: skip
    assert launch("evaluate", [
        f"checkpoint={root}/a/checkpoints/best.ckpt", f"data.manifest={tiny_manifest_module}",
        f"output_dir={root}/views", "robustness=quick", "bootstrap.resamples=30",
    ]) == 0  # fmt: skip
    return root


def report(predictions: object, folder: Path, *more: str) -> int:
    return launch("report", [f"predictions={predictions}", f"output_dir={folder}", "bootstrap.resamples=30", *more])


def test_one_file_gives_the_numbers_of_its_run(runs: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "elsewhere" / "p.parquet"  # nothing else of the run is there
    lonely.parent.mkdir()
    shutil.copy(runs / "views" / "predictions.parquet", lonely)
    assert report(lonely, tmp_path / "r") == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    metrics = json.loads((runs / "views" / "metrics.json").read_text())
    for name, entry in metrics["per_generator"].items():
        for metric in ("ap", "auc"):
            assert summary["values"][metric][name]["bce"]["value"] == pytest.approx(entry[metric]["value"])
    assert summary["values"]["ap"]["map_unseen"]["bce"]["value"] == pytest.approx(metrics["map_unseen"]["value"])
    page = (tmp_path / "r" / "report.html").read_text()
    assert '<th scope="col">shortcut AUC</th>' in page
    # AP, AUC, accuracy, ROC and PR, reliability, scores, map, robustness
    assert page.count("data:image/png;base64,") == 8
    assert "manifest_sha256" in page  # provenance
    assert "https://" not in page
    assert "http://" not in page
    assert len(pd.read_csv(tmp_path / "r" / "table.csv")) > 6


def test_what_headers_give_away_is_said(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame, info = read_predictions(runs / "a" / "predictions.parquet")
    areas = {"gen_a": 0.9, "gen_b": 0.6, "gen_c": 0.71}
    told = "Format, size and compression alone tell gen_a, gen_c (AUC above 0.7)"
    for name, found in (("loud", areas), ("quiet", {"gen_b": 0.6})):
        shortcut = {key: {"auc": {"value": area, "low": area, "high": area}} for key, area in found.items()}
        write_predictions(frame, tmp_path / f"{name}.parquet", {**info, "shortcut": shortcut})
        assert report(tmp_path / f"{name}.parquet", tmp_path / name) == 0
        assert (told in capsys.readouterr().out) == (name == "loud")
        assert (told in (tmp_path / name / "report.html").read_text()) == (name == "loud")


def test_a_detector_of_content_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Content tells the classes: of ten topics five are mostly faked. One detector knows them alone."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    topic = np.where(rng.random(400) < 0.85, labels, 1 - labels) * 5 + rng.integers(5, size=400)
    frame = pd.DataFrame({
        "id": range(400), "path": [f"{i}.png" for i in range(400)], "label": labels,
        "generator": np.where(labels == 1, "gan", "photos"), "source": "", "group": [f"g{i}" for i in range(400)],
        "split": "test", "view": "original", "crop": "crop64", "score": 0.5, "trace_distance": np.nan,
        "p_value": np.nan, "verdict": "", "content": list(np.eye(10)[topic] * 9 + rng.normal(size=(400, 10))),
    })  # fmt: skip
    for name, logit in (("topics", (topic >= 5) + 0.1 * rng.normal(size=400)),
                        ("traces", 2.0 * labels + rng.normal(size=400))):  # fmt: skip
        write_predictions(frame.assign(logit=logit), tmp_path / f"{name}.parquet", {"name": name})
    files = f"{{traces:{tmp_path}/traces.parquet,topics:{tmp_path}/topics.parquet}}"
    assert report(files, tmp_path / "r") == 0
    told = "topics: what it tells apart is mostly content: its mean AUC is 0.8"
    page = (tmp_path / "r" / "report.html").read_text()
    assert "AUC among images of the same content" in page
    for text in (capsys.readouterr().out, page):
        assert told in text
        assert "traces: what it tells" not in text
    matched = json.loads((tmp_path / "r" / "summary.json").read_text())["values"]["auc_matched"]["map"]
    assert matched["topics"]["low"] < 0.5 < matched["topics"]["high"]
    assert matched["traces"]["low"] > 0.8


def test_two_files_give_a_comparison(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = f"[{runs}/a/predictions.parquet,{runs}/b/predictions.parquet]"
    assert report(both, tmp_path / "r", "baseline=supcon", "title=Ours") == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert (summary["methods"], summary["baseline"]) == (["bce", "supcon"], "supcon")
    difference = summary["differences_to_baseline"]["ap"]["map"]["bce"]
    values = summary["values"]["ap"]["map"]
    assert difference["value"] == pytest.approx(values["bce"]["value"] - values["supcon"]["value"])
    assert "<h1>Ours</h1>" in (tmp_path / "r" / "report.html").read_text()
    assert report(both, tmp_path / "r2", "baseline=supkon") == 2
    assert "did you mean 'supcon'" in capsys.readouterr().err


def test_figures_show_methods_in_the_order_of_the_tables(runs: Path, tmp_path: Path) -> None:
    for first, second in (("a", "b"), ("b", "a")):
        files = f"[{runs}/{first}/predictions.parquet,{runs}/{second}/predictions.parquet]"
        assert report(files, tmp_path / first) == 0
        methods = json.loads((tmp_path / first / "summary.json").read_text())["methods"]
        page = (tmp_path / first / "report.html").read_text()
        shown = re.findall(r"(\w+): logits of photographs", page)  # as a caption, and for those who cannot see it
        assert methods == list(dict.fromkeys(shown)), "or a colour means another method"


def test_files_of_one_method_and_seed_are_told_apart(runs: Path, tmp_path: Path) -> None:
    assert report(f"[{runs}/a/predictions.parquet,{runs}/views/predictions.parquet]", tmp_path / "r") == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["methods"] == ["bce (a)", "bce (views)"]
    assert summary["differences_to_baseline"]["ap"]["map"]["bce (views)"]["value"] == pytest.approx(0, abs=1e-6)


def test_bad_input_is_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.parquet"
    text.write_text("no parquet")
    frame = pd.read_parquet(runs / "a" / "predictions.parquet")
    frame.assign(label=frame["label"].map({0: 1, 1: -1})).to_parquet(tmp_path / "labels.parquet")
    frame.assign(logit=float("nan")).to_parquet(tmp_path / "nan.parquet")
    cases = {
        text: "is not a parquet file",
        tmp_path / "gone.parquet": "there is no predictions file",
        "[]": "at least one",
        tmp_path / "labels.parquet": "labels must be 0 (real) or 1 (fake)",
        tmp_path / "nan.parquet": "are NaN",
    }
    for predictions, message in cases.items():
        assert report(predictions, tmp_path / "r") == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_the_page_shows_the_most_confident_errors(runs: Path, tmp_path: Path) -> None:
    path = runs / "a" / "predictions.parquet"
    frame, info = read_predictions(path)
    pictures = read_pictures(path)
    # Eight validation reals allow no threshold at 5 %: then the most wrong are shown, whatever they were called.
    assert info["operating_point"]["threshold"] is None
    expected: set[str] = set()
    for label, sign in ((0, -1), (1, 1)):
        rows = frame[frame["label"] == label]
        groups: dict[str, str] = {}
        for place in np.argsort(sign * rows["logit"].to_numpy(), kind="stable"):
            groups.setdefault(rows["group"].iloc[place], rows["path"].iloc[place])
        expected |= set(list(groups.values())[:8])
    kinds = frame.groupby(["label", "generator"])["path"].apply(set)
    shown = {kind: names & set(pictures) - expected for kind, names in kinds.items()}
    assert expected <= set(pictures)
    assert all(len(names & set(pictures)) >= 1 for names in kinds), "and examples of each generator"
    assert all(len(names) <= 6 for names in shown.values())
    for jpeg in pictures.values():
        assert max(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape) <= 224
    assert report(path, tmp_path / "r") == 0
    page = (tmp_path / "r" / "report.html").read_text()
    errors = page[page.index("The most confident errors") :]
    assert errors.count("data:image/jpeg;base64,") >= len(expected)
    assert all(name in errors for name in expected)


def test_the_page_opens_with_sentences_pictures_one_table_and_words(runs: Path, tmp_path: Path) -> None:
    both = f"[{runs}/a/predictions.parquet,{runs}/b/predictions.parquet]"
    assert report(both, tmp_path / "r", "baseline=bce") == 0
    page = (tmp_path / "r" / "report.html").read_text()
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert len(summary["opening"]) == 3
    order = [page.index(text) for text in (*summary["opening"], "fakes of gen_a", "The most confident errors", "<table",
                                           "<dl>", "<details")]  # fmt: skip
    assert order == sorted(order)
    seen, folded = page[: order[-1]], page[order[-1] :]
    assert seen.count("<table") == 1
    for word in ("bce", "supcon", "AP", "seed", "stage", "shortcut"):
        assert f"<dt>{word}</dt>" in seen
    assert "<dt>ntf</dt>" not in seen, "it is not in this report"
    assert "image/png" not in seen
    assert folded.count("<details") == folded.count("</details>") == folded.count("<summary>")


def test_the_map_is_that_of_the_run(runs: Path) -> None:
    frame, info = read_predictions(runs / "a" / "predictions.parquet")
    assert frame[["map_x", "map_y"]].notna().all(axis=None)
    # Principal components: centred, uncorrelated, the first the longer one.
    x, y = frame["map_x"].to_numpy(dtype=float), frame["map_y"].to_numpy(dtype=float)
    scale = np.abs([x, y]).max()
    assert abs(x.mean()) < 1e-4 * scale
    assert abs(np.corrcoef(x, y)[0, 1]) < 1e-3
    first, second = info["map_share"]
    assert (x**2).sum() / (y**2).sum() == pytest.approx(first / second, rel=1e-3)


@pytest.mark.parametrize(("threshold", "alarms", "misses"), [(0.5, ["r2"], ["f1"]), (None, ["r2", "r0"], ["f1", "f2"])])
def test_errors_are_on_the_wrong_side_and_one_a_photograph(
    threshold: float | None, alarms: list[str], misses: list[str]
) -> None:
    frame = pd.DataFrame({
        "path": ["r0", "r1", "r2", "f0", "f1", "f2"], "label": [0, 0, 0, 1, 1, 1],
        "group": ["a", "b", "b", "c", "c", ""], "logit": [0.1, 0.7, 0.9, 0.3, 0.2, 0.8],
    })  # fmt: skip
    found = confident_errors(frame, threshold, 5)
    assert [table["path"].tolist() for table in found] == [alarms, misses]
    assert [len(table) for table in confident_errors(frame, threshold, 0)] == [0, 0]
