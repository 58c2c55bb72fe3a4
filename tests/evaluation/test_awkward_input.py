"""Comparing, tables and figures on input that is legal but awkward, and on input that is wrong."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fakedet.errors import UserError
from fakedet.evaluation.comparison import compare, console_table, markdown, rows, verdict, write_csv
from fakedet.evaluation.plots import draw_map, plot_intervals, plot_scores, project
from fakedet.evaluation.predictions import align, read_predictions, write_predictions
from fakedet.evaluation.report import Page, write_page

SEEN = ["gen_a"]


def predictions(strength: float = 1.0, seed: int = 0, n: int = 60, gen_a: str = "gen_a") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 1], n)
    return pd.DataFrame({
        "path": [f"{i}.png" for i in range(3 * n)], "label": labels,
        "generator": np.repeat(["real", gen_a, "gen_b"], n), "source": "", "split": "test",
        "group": [f"photo{i % 30}" for i in range(3 * n)], "logit": rng.normal(size=3 * n) + strength * labels,
    })  # fmt: skip


def test_without_known_training_data_the_verdict_is_over_all() -> None:
    runs = {"bce": [(0, predictions())], "good": [(0, predictions(3.0, 1))]}
    comparison = compare(runs, "bce", None, None, n_resamples=100)
    told = verdict(comparison)
    assert told[0].startswith("On all generators (2, with 120 fakes), bce reaches mAP")
    assert "good" in told[1]
    assert "above" in told[1]
    assert [row.section for row in rows(comparison)] == ["unknown", "unknown", "mean"]


def test_rows_without_a_group_are_groups_of_their_own() -> None:
    comparison = compare({"bce": [(0, predictions().assign(group=""))]}, "bce", None, SEEN, n_resamples=20)
    assert comparison.n_groups == 180
    assert comparison.support == {"map_seen": 60, "map_unseen": 60, "map": 60}
    assert not any("rest on only" in sentence for sentence in verdict(comparison))


def test_the_rarer_class_decides_how_many_photographs_carry_a_mean() -> None:
    """Sixty photographs of reals do not help where all fakes of a generator come from four prompts."""
    frame = predictions()
    fake_b = frame["generator"] == "gen_b"
    frame["group"] = [f"prompt{i % 4}" if b else f"photo{i}" for i, b in enumerate(fake_b)]
    comparison = compare({"bce": [(0, frame)]}, "bce", None, SEEN, n_resamples=20)
    assert comparison.support == {"map_seen": 60, "map_unseen": 4, "map": 60}
    assert any("rest on only 4 photographs or prompts" in sentence for sentence in verdict(comparison))


def test_seeds_are_paired_by_number_and_not_by_place() -> None:
    first, second = predictions(0.5, 0), predictions(3.0, 1)
    comparison = compare({"bce": [(0, first), (1, second)], "same": [(1, second), (0, first)]},
                         "bce", None, SEEN, n_resamples=50)  # fmt: skip
    gap = comparison.differences["ap"]["map"]["same"].interval
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)
    assert comparison.seeds == {"bce": [0, 1], "same": [0, 1]}
    assert any("With 2 seeds per method" in sentence for sentence in verdict(comparison))


def test_without_resamples_there_are_values_and_no_intervals(tmp_path: Path) -> None:
    runs = {"bce": [(0, predictions())], "good": [(0, predictions(3.0, 1))]}
    comparison = compare(runs, "bce", None, SEEN, n_resamples=0)
    write_page(Page("t", comparison, [], [], {}, "c"), tmp_path / "r.html")
    shown = [*verdict(comparison), markdown(comparison), (tmp_path / "r.html").read_text()]
    assert not any("nan" in one for one in shown)
    assert comparison.values["ap"]["map"]["bce"].text().count("[") == 0
    assert comparison.differences["ap"]["map"]["good"].way == ""


def test_a_generator_without_reals_is_shown_and_named_where_a_mean_lacks_it() -> None:
    comparison = compare({"bce": [(0, predictions())]}, "bce", {"gen_a": ["!real"]}, SEEN, n_resamples=20)
    listed = {row.name: row for row in rows(comparison)}
    assert listed["gen_a"].cells["bce"].text() == "–"
    assert listed["mean, all"].counts == "1 generator, without gen_a"
    assert "mean, seen" not in listed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: pd.concat([f, f.assign(view="jpeg")]), "180 images are there twice"),
        (lambda f: f.iloc[:150], "they share 150 of 180 images"),
        (lambda f: f.replace({"generator": {"gen_b": "gen_c"}}), "60 images have other generators"),
        (lambda f: f.assign(group="one"), "180 images have other groups"),
    ],
)
def test_runs_over_other_data_are_refused(change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        align({"bce": predictions(), "other": change(predictions())})


def test_a_method_without_runs_is_named() -> None:
    with pytest.raises(UserError, match="no finished run of empty"):
        compare({"bce": [(0, predictions())], "empty": []}, "bce", None, SEEN)


def test_reals_of_another_split_may_be_named_in_pairs() -> None:
    pairs = {"gen_a": ["real", "train_only"]}
    runs = {"bce": [(0, predictions())]}
    with pytest.raises(UserError, match="train_only"):
        compare(runs, "bce", pairs, SEEN, n_resamples=5)
    comparison = compare(runs, "bce", pairs, SEEN, n_resamples=5, known_reals={"real", "train_only"})
    assert comparison.generators["gen_a"].rule == "pairs"


@pytest.mark.parametrize("name", ["sd[v2]", "a[/b]", "a|b", "$x_{$", "_hidden", "<i>"])
def test_names_are_shown_as_they_are(name: str, tmp_path: Path) -> None:
    """Rich, Markdown, matplotlib and HTML each read some names as markup."""
    runs = {name: [(0, predictions(gen_a=name))], "bce": [(0, predictions(2.0, 1, gen_a=name))]}
    comparison = compare(runs, "bce", None, [name], n_resamples=10)
    console = Console(width=100, file=io.StringIO())
    console.print(console_table(comparison, name))
    assert console.file.getvalue().count(name) == 3  # title, column and row
    lines = markdown(comparison).splitlines()
    assert {line.replace(r"\|", "").count("|") for line in lines} == {4}
    listed = {row.name: {m: cell.to_dict() for m, cell in row.cells.items()} for row in rows(comparison)}
    plot_intervals(listed, name, tmp_path / "a.png", {row.name: row.section for row in rows(comparison)})
    frame = runs[name][0][1]
    plot_scores(frame, tmp_path / "b.png", {name})
    places, share = project(np.random.default_rng(0).normal(size=(len(frame), 4)))
    draw_map(frame.assign(map_x=places[:, 0], map_y=places[:, 1]), share, {name}, tmp_path / "c.png")
    assert all((tmp_path / f"{letter}.png").stat().st_size > 5000 for letter in "abc")


def test_six_methods_fit_a_hundred_columns() -> None:
    methods = ["trace", "bce", "bce_init", "supcon", "transfer", "transfer_soft"]
    comparison = compare({m: [(0, predictions(1, i))] for i, m in enumerate(methods)}, "bce", None, SEEN, 10)
    console = Console(width=100, file=io.StringIO())
    console.print(console_table(comparison, "title"))
    shown = console.file.getvalue()
    assert all(method in shown for method in methods)
    assert "…" not in shown


def test_diverged_rows_do_not_stop_the_figures(tmp_path: Path) -> None:
    frame = predictions(n=4)
    frame.loc[5, "logit"] = np.inf
    plot_scores(frame, tmp_path / "s.png")
    embedding = np.random.default_rng(0).normal(size=(12, 3))
    embedding[3] = np.nan
    for given in (embedding, np.full((12, 3), np.nan)):
        places, share = project(given)
        draw_map(frame.assign(map_x=places[:, 0], map_y=places[:, 1]), share, set(), tmp_path / "e.png")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("s.png", "e.png"))


def test_the_csv_holds_the_differences(tmp_path: Path) -> None:
    runs = {"bce": [(0, predictions())], "good": [(0, predictions(3.0, 1))]}
    comparison = compare(runs, "bce", None, SEEN, n_resamples=50)
    write_csv(comparison, tmp_path / "t.csv")
    table = pd.read_csv(tmp_path / "t.csv").set_index(["metric", "name", "method"])
    gap = comparison.differences["auc"]["map"]["good"]
    line = table.loc[("auc", "map", "good")]
    assert (line["difference"], line["p"]) == pytest.approx((gap.interval.value, gap.p))
    assert table.loc[("auc", "map", "bce"), ["difference", "p"]].isna().all()


def test_p_is_the_resamples_beyond_zero_and_never_nought() -> None:
    runs = {"bce": [(0, predictions(1.0, 0))], "good": [(0, predictions(6.0, 1))]}
    comparison = compare(runs, "bce", None, SEEN, n_resamples=99)
    assert comparison.differences["ap"]["map"]["good"].p == pytest.approx(2 / 100)


def test_runs_with_other_facts_share_one_table(tmp_path: Path) -> None:
    comparison = compare({"bce": [(0, predictions())]}, "bce", None, SEEN, n_resamples=5)
    page = Page("t", comparison, [], [{"seed": 0}, {"seed": 1, "warning": "resumed"}], {}, "c")
    write_page(page, tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert html.count("resumed") == 1
    assert ">warning</th>" in html
    assert "Differences to" not in html


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(label=[None, "a", "b"] * 4), "labels must be 0"),
        (lambda f: f.assign(logit="0.5"), "logits must be floating-point"),
        (lambda f: f.assign(content=[[0.5] * (i + 1) for i in range(len(f))]), "content holds something else"),
        (lambda f: f.assign(content=[["a"]] * len(f)), "content holds something else"),
    ],
)
def test_columns_of_another_kind_are_named(change, message: str, tmp_path: Path) -> None:
    change(predictions(n=4)).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "p.parquet")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    path.write_text("old")
    with pytest.raises(UserError, match="without the column id, view, crop"):
        write_predictions(predictions(n=4), path, {})
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.parquet"]
