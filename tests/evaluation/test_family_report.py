"""The report on families left out of training."""

import json

import numpy as np
import pandas as pd

from fakedet.evaluation.families import MEAN, WORST, compare_families, write_report


def _predictions(methods: dict[str, float], seeds: int = 2) -> dict[tuple[str, str, int], pd.DataFrame]:
    """Logits that are ``strength`` of a trace, and for "topics" content alone; content tells the classes apart."""
    predictions = {}
    for number, family in enumerate(("<gan>", "ldm")):
        rng = np.random.default_rng(number)
        labels = np.repeat([0, 1], 150)
        topic = np.where(rng.random(300) < 0.85, labels, 1 - labels) * 5 + rng.integers(5, size=300)
        frame = pd.DataFrame({
            "path": [f"{'real' if label == 0 else family}/{i}.png" for i, label in enumerate(labels)],
            "label": labels, "generator": np.where(labels == 1, family, "photos"), "source": "scenes",
            "family": np.where(labels == 1, family, "photos"), "group": [f"{family}{i}" for i in range(300)],
            "content": list((np.eye(10)[topic] * 9 + rng.normal(size=(300, 10))).astype(np.float32)),
        })  # fmt: skip
        for method, strength in methods.items():
            for seed in range(seeds):
                logit = 0.1 * rng.normal(size=300) + (topic >= 5) if method == "topics" else (
                    rng.normal(size=300) + (strength - 0.7 * number) * labels)  # fmt: skip
                predictions[method, family, seed] = frame.assign(logit=logit)
    return predictions


def test_the_report_ranks_chooses_and_says_what_is_content(tmp_path) -> None:
    comparison = compare_families(_predictions({"topics": 0, "traces": 2.5, "weak": 1}), "weak", 100)
    lines = write_report(comparison, tmp_path, "Families & more", ["The test split was scored once."])
    assert comparison.chosen == "traces"
    assert lines[0].startswith("1. traces: mean AUC over 2 families 0.9")
    assert "worst family ldm" in lines[0]
    assert "difference to weak +0." in lines[0]
    (choice,) = [line for line in lines if line.startswith("chosen: ")]
    assert choice.startswith("chosen: traces: highest mean; its worst family is ldm (")
    assert choice.endswith("the difference to weak excludes 0.")
    told = [line for line in lines if "mostly content" in line]
    assert [line.partition(":")[0] for line in told] == ["topics"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["chosen"] == "traces"
    assert summary["matched_by"] == "features"
    assert summary["values"]["auc_matched"][MEAN]["topics"]["low"] <= 0.5
    assert summary["worst"]["auc"]["traces"] == "ldm"
    assert summary["differences"]["auc"][MEAN]["traces"]["exceeds"] is True
    table = pd.read_csv(tmp_path / "table.csv")
    row = table[(table["metric"] == "auc") & (table["family"] == WORST) & (table["method"] == "traces")].iloc[0]
    assert (row["of"], row["value"]) == ("ldm", comparison.values["auc"]["ldm"]["traces"].value)
    markdown = (tmp_path / "table.md").read_text()
    assert "| mean over families | " in markdown
    assert "&lt;gan>" in markdown
    page = (tmp_path / "report.html").read_text()
    for text in ("Families &amp; more", "&lt;gan&gt;", *("chosen: traces", "scored once", "With 2 seeds per method")):
        assert text in page
    assert page.count("<img ") == 3
    assert "<gan>" not in page


def test_one_method_is_measured_without_differences(tmp_path) -> None:
    comparison = compare_families(_predictions({"traces": 2.5}, seeds=1), "traces", 20)
    lines = write_report(comparison, tmp_path, "One", [])
    assert not any("difference" in line for line in lines)
    assert "With one seed per method, the intervals leave out how much training varies." in lines
