"""Comparing methods, against loops written out and against cases whose answer is known."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score

from fakedet.errors import UserError
from fakedet.evaluation.comparison import compare, console_table, markdown, opening, verdict, write_csv, write_markdown
from fakedet.evaluation.comparison import rows as rows_of
from fakedet.evaluation.plots import draw_map, plot_curves, plot_intervals, plot_scores, project
from fakedet.evaluation.report import Page, write_page
from fakedet.pages import Drawing

SEEN = ["gen_a"]


def predictions(strength: float, seed: int, n: int = 60) -> pd.DataFrame:
    """Rows of reals and two generators whose logits stand ``strength`` apart."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 1], n)
    return pd.DataFrame({
        "path": [f"{i}.png" for i in range(3 * n)], "label": labels,
        "generator": np.repeat(["real", "gen_a", "gen_b"], n), "source": "",
        "group": [f"photo{i % 30}" for i in range(3 * n)], "logit": rng.normal(size=3 * n) + strength * labels,
    })  # fmt: skip


def test_values_are_means_over_seeds_of_scikit_learn_s_ap() -> None:
    frames = [(seed, predictions(1.0, seed)) for seed in (0, 1, 2)]
    comparison = compare({"bce": frames}, "bce", None, SEEN, n_resamples=50)
    for name in ("gen_a", "gen_b"):
        aps = [average_precision_score(f["label"][keep], f["logit"][keep])
               for _, f in frames for keep in [f["generator"].isin(["real", name])]]  # fmt: skip
        assert comparison.values["ap"][name]["bce"].value == pytest.approx(np.mean(aps), abs=1e-12)
    both = np.mean([comparison.values["ap"][name]["bce"].value for name in ("gen_a", "gen_b")])
    assert comparison.values["ap"]["map"]["bce"].value == pytest.approx(both, abs=1e-12)
    assert comparison.values["ap"]["map_unseen"]["bce"] == comparison.values["ap"]["gen_b"]["bce"]


def test_intervals_follow_a_loop_over_the_same_draws() -> None:
    """Recompute every resample naively from repeated rows."""
    from fakedet.metrics.bootstrap import resample_weights, stratify_groups

    runs = {
        "bce": [(s, predictions(0.8, s)) for s in (0, 1)],
        "new": [(s, predictions(1.2, 9 + s)) for s in (0, 1)],
    }
    n = 40
    comparison = compare(runs, "bce", None, SEEN, n_resamples=n, seed=3)
    frame = runs["bce"][0][1]
    strata = stratify_groups(frame["group"], frame["label"], frame["generator"])
    weights = np.concatenate(list(resample_weights(strata, n, np.random.default_rng(3))))[:, strata.codes]
    drawn = np.random.default_rng([3, 2]).integers(2, size=(n, 2))  # the same seeds for both
    keep = frame["generator"].isin(["real", "gen_b"]).to_numpy()
    differences = []
    for resample in range(n):
        means = {}
        for method, rows in runs.items():
            by_seed = [
                average_precision_score(f["label"][keep], f["logit"][keep], sample_weight=weights[resample][keep])
                for _, f in rows
            ]
            means[method] = np.mean([by_seed[i] for i in drawn[resample]])
        differences.append(means["new"] - means["bce"])
    low, high = np.percentile(differences, [2.5, 97.5])
    found = comparison.differences["ap"]["gen_b"]["new"].interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_the_same_method_twice_differs_by_exactly_nothing() -> None:
    frames = [(0, predictions(1.0, 0)), (1, predictions(1.0, 1))]
    comparison = compare({"bce": frames, "copy": frames}, "bce", None, SEEN, n_resamples=50)
    difference = comparison.differences["ap"]["map"]["copy"]
    assert (difference.interval.value, difference.interval.low, difference.interval.high) == (0, 0, 0)
    assert not difference.exceeds
    assert difference.p == 1
    assert any(
        "copy" in sentence and "does not differ from it by more than the interval" in sentence
        for sentence in verdict(comparison)
    )


def test_differences_are_over_the_seeds_that_both_methods_have() -> None:
    frames = [(seed, predictions(1.0, seed)) for seed in (0, 1, 2)]
    runs = {"bce": frames[:2], "same": frames[1:2], "more": frames[1:], "other": frames[2:]}
    comparison = compare(runs, "bce", None, SEEN, n_resamples=50)
    for method in ("same", "more"):  # with bce they share seed 1, which is the same run
        interval = comparison.differences["auc"]["map"][method].interval
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)
    values = comparison.values["auc"]["map"]
    gap = comparison.differences["auc"]["map"]["other"].interval
    assert gap.value == pytest.approx(values["other"].value - values["bce"].value)
    told = " ".join(verdict(comparison))
    assert "more and bce have different seeds; their difference is over the seeds that both have (1)" in told
    assert "other and bce have different seeds; their difference is not paired over seeds" in told
    twice = compare({"bce": [frames[0], frames[0]], "new": [frames[0], frames[1]]}, "bce", None, SEEN, n_resamples=9)
    assert twice.differences["auc"]["map"]["new"].interval.value == 0, "of runs with one seed, the first is paired"


def test_a_better_method_is_found_and_a_worse_one() -> None:
    runs = {
        "bce": [(0, predictions(1.0, 0))],
        "good": [(0, predictions(3.0, 1))],
        "bad": [(0, predictions(0.0, 2))],
    }
    comparison = compare(runs, "bce", None, SEEN, n_resamples=200)
    good, bad = (comparison.differences["ap"]["map_unseen"][name] for name in ("good", "bad"))
    assert good.exceeds
    assert good.interval.low > 0
    assert good.p <= 0.05
    assert bad.exceeds
    assert bad.interval.high < 0
    told = " ".join(verdict(comparison))
    assert re.search(r"good \(.*?\) is above it by more than the interval", told)
    assert re.search(r"bad \(.*?\) is below it by more than the interval", told)
    areas = next(sentence for sentence in verdict(comparison) if "Mean AUC" in sentence)
    assert re.search(r"bce 0\.\d+ \[[^(]*; good .*\(\+[^)]*, above it by more than the interval\)", areas)
    assert re.search(r"bad .*\(-[^)]*, below it by more than the interval\)", areas)


def test_rows_that_one_run_could_not_read_are_left_out_of_all() -> None:
    whole = predictions(1.0, 0)
    comparison = compare({"bce": [(0, whole)], "other": [(0, whole.iloc[3:].sample(frac=1, random_state=0))]},
                         "bce", None, SEEN, n_resamples=20)  # fmt: skip
    assert (comparison.n_rows, comparison.n_left_out) == (177, 3)
    assert comparison.differences["ap"]["map"]["other"].interval.value == 0
    assert any("3 images" in sentence for sentence in verdict(comparison))


def test_runs_of_different_data_are_refused() -> None:
    other = predictions(1.0, 0).assign(path=lambda frame: "x/" + frame["path"])
    with pytest.raises(UserError, match="they share 0 of 360 images"):
        compare({"bce": [(0, predictions(1.0, 0))], "other": [(0, other)]}, "bce", None, SEEN)
    swapped = predictions(1.0, 0).assign(label=lambda frame: 1 - frame["label"])
    with pytest.raises(UserError, match="other labels"):
        compare({"bce": [(0, predictions(1.0, 0))], "other": [(0, swapped)]}, "bce", None, SEEN)
    with pytest.raises(UserError, match="the baseline 'supcon' has no finished run"):
        compare({"bce": [(0, predictions(1.0, 0))]}, "supcon", None, SEEN)


def test_few_photographs_are_said() -> None:
    few = predictions(1.0, 0).assign(group=[f"photo{i % 7}" for i in range(180)])
    comparison = compare({"bce": [(0, few)]}, "bce", None, SEEN, n_resamples=20)
    assert any("only 7 photographs" in sentence for sentence in verdict(comparison))


def test_a_report_opens_with_what_was_compared_what_won_and_how_sure() -> None:
    runs = {"bce": [(0, predictions(1.0, 0))], "good": [(0, predictions(3.0, 1))], "bad": [(0, predictions(0.0, 2))]}
    compared, won, sure = opening(compare(runs, "bce", None, SEEN, n_resamples=100))
    assert compared.startswith("3 methods (bce, good, bad) were compared on 60 real images and 120 fakes by 2 gener")
    assert "of which 1 was kept out of training" in compared
    assert re.match(r"good won: on unseen generators its mean AP is 0\.\d\d, that of bce 0\.\d\d\.$", won)
    assert "30 photographs or prompts, but only 1 training run of each method" in sure
    alone = opening(compare({"bce": runs["bce"]}, "bce", None, SEEN, n_resamples=20))
    assert alone[0].startswith("bce was tested on 60 real images")
    assert re.match(r"On unseen generators its mean AP is 0\.\d\d, where a guess has 0\.50", alone[1])
    same = opening(compare({"bce": runs["bce"], "same": runs["bce"]}, "bce", None, SEEN, n_resamples=20))
    assert same[1].startswith("Nothing won: on unseen generators")
    assert same[1].endswith("no method is shown to be better.")


def test_with_few_photographs_nothing_is_said_to_win() -> None:
    """The sentences must not contradict each other: a difference above an interval that nobody trusts wins nothing."""

    def few(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(group=[f"photo{i % 7}" for i in range(180)])

    runs = {"bce": [(0, few(predictions(0.5, 0)))], "good": [(0, few(predictions(5.0, 1)))]}
    comparison = compare(runs, "bce", None, SEEN, n_resamples=50)
    assert comparison.differences["ap"]["map_unseen"]["good"].way == "above"
    _, won, sure = opening(comparison)
    assert won.startswith("Nothing won")
    assert "only" in sure
    assert "the difference of good to bce is a hint only" in sure
    told = verdict(comparison)
    claims = [sentence for sentence in told if "above it by more than the interval" in sentence]
    assert claims
    assert all("above it by more than the interval, which is too narrow here" in sentence for sentence in claims)


def test_many_methods_stand_in_panels_and_few_in_one(tmp_path: Path) -> None:
    def size(methods: int) -> list[int]:
        values = {f"m{number}": {"value": 0.5, "low": 0.4, "high": 0.6} for number in range(methods)}
        values["m1"] = {"value": None, "low": None, "high": None}
        listed = {f"g{number}": values for number in range(10)}
        path = plot_intervals(listed, "AP", tmp_path / f"{methods}.png", chance={"g0": 0.3})
        height, width = cv2.imread(str(path)).shape[:2]
        return [height, width]

    (few, narrow), (many, wide) = size(6), size(13)
    assert wide > narrow
    # In one row each, 13 methods would be twice as tall as 6.
    assert many < 1.4 * few


def test_report_is_one_file_that_escapes_and_asks_for_nothing(tmp_path: Path) -> None:
    runs = {"bce": [(0, predictions(1.0, 0))], "<script>alert(1)</script>": [(0, predictions(3.0, 1))]}
    comparison = compare(runs, "bce", None, SEEN, n_resamples=50)
    listed = {"gen_a": {m: cell.to_dict() for m, cell in comparison.values["ap"]["gen_a"].items()}}
    places, share = project(np.random.default_rng(0).normal(size=(9, 1)))
    mapped = pd.DataFrame({"label": [0, 1, 1] * 3, "generator": ["real", "gen_a", "gen_b"] * 3,
                           "map_x": places[:, 0], "map_y": places[:, 1]})  # fmt: skip
    pictures = [
        plot_intervals(listed, "AP", tmp_path / "a.png"),
        plot_scores(runs["bce"][0][1], tmp_path / "b.png"),
        plot_curves({"bce": pd.DataFrame({"epoch": [0, 1], "train/loss": [1.0, 0.5]}), "none": pd.DataFrame()},
                    tmp_path / "c.png"),
        draw_map(mapped, share, {"gen_a"}, tmp_path / "d.png"),
    ]  # fmt: skip
    page = Page("A & B", comparison, [Drawing(path, "a <b> caption") for path in pictures], [{"method": "<i>"}],
                {"git": "<unknown>"}, "fakedet study", caveats=["<u>care</u>"], failures=["<x> failed"])  # fmt: skip
    write_page(page, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    for raw in ("<script", "<i>", "<unknown>", "<u>", "<b>", "<x>"):
        assert raw not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)\w+""", html)
    assert html.count("data:image/png;base64,") == len(pictures)
    assert "▲" in html


def test_tables_and_summary_tell_the_same_numbers(tmp_path: Path) -> None:
    runs = {"bce": [(0, predictions(1.0, 0))], "good": [(0, predictions(3.0, 1))]}
    comparison = compare(runs, "bce", None, SEEN, n_resamples=50)
    summary = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    value = summary["values"]["ap"]["gen_b"]["good"]["value"]
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    console.print(console_table(comparison, "title"))
    shown = console.export_text()
    console.file.close()
    assert f"{value:.2f}" in shown
    assert shown.index("gen_a") < shown.index("gen_b") < shown.index("mean, unseen")
    assert f"{value:.2f} [" in markdown(comparison)
    gap = summary["differences_to_baseline"]["auc"]["gen_b"]["good"]
    write_markdown(comparison, tmp_path / "table.md")
    written = (tmp_path / "table.md").read_text()
    assert written.count("| gen_b (unseen") == 4, "AP, AUC, and the differences in both"
    assert f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" in written
    write_csv(comparison, tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv").set_index(["metric", "name", "method"])
    assert table.loc[("ap", "gen_b", "good"), "value"] == pytest.approx(value)
    assert summary["generators"]["gen_b"]["n_fake"] == 60


@pytest.mark.parametrize(("label", "word"), [(0, "real images, bce calls"), (1, "fakes, bce detects")])
def test_one_class_alone_is_compared_by_its_decisions(label: int, word: str, tmp_path: Path) -> None:
    def alone(strength: float, seed: int) -> pd.DataFrame:
        frame = predictions(strength, seed).assign(verdict=lambda f: np.where(f["logit"] > 1, "fake", "real"))
        return frame[frame["label"] == label]

    runs = {"bce": [(0, alone(1.0, 0)), (1, alone(1.0, 1))], "new": [(0, alone(3.0, 2)), (1, alone(3.0, 3))]}
    comparison = compare(runs, "bce", None, SEEN, n_resamples=50)
    assert list(comparison.values) == ["accuracy"]
    right = {method: np.mean([((f["verdict"] == "fake") == label).mean() for _, f in own])
             for method, own in runs.items()}  # fmt: skip
    key = ("reals", "fakes")[label]
    assert comparison.values["accuracy"][key]["bce"].value == pytest.approx(right["bce"])
    gap = comparison.differences["accuracy"][key]["new"].interval
    assert gap.value == pytest.approx(right["new"] - right["bce"])
    assert any(f"Of {60 + 60 * label} {word}" in sentence for sentence in verdict(comparison))
    write_csv(comparison, tmp_path / "table.csv")
    names = {0: {"real:real", "reals"}, 1: {"fake:gen_a", "fake:gen_b", "fakes"}}[label]
    assert set(pd.read_csv(tmp_path / "table.csv")["name"]) <= names
    assert json.loads(json.dumps(comparison.to_dict(), allow_nan=False))["classes"][key]["n"] == 60 + 60 * label
    without = {method: [(seed, f.drop(columns="verdict")) for seed, f in own] for method, own in runs.items()}
    told = verdict(compare(without, "bce", None, SEEN, n_resamples=5))
    assert any("bce, new: without a threshold" in sentence for sentence in told)


def test_a_collection_and_a_generator_of_one_name_have_rows_of_their_own() -> None:
    frame = predictions(1.0, 0).assign(generator=lambda f: f["generator"].replace("real", "gen_a"))
    comparison = compare({"bce": [(0, frame.assign(verdict="fake"))]}, "bce", None, SEEN, n_resamples=5)
    cells = {row.name: row.cells["bce"].value for row in rows_of(comparison, "accuracy")}
    assert cells == {"gen_a (real)": 0.0, "gen_a (fake)": 1.0, "gen_b": 1.0, "all fakes": 1.0}
