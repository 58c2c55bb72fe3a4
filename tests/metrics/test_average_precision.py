"""The public average_precision: against scikit-learn, against metrics.json's form, and on wrong input."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from fakedet.errors import UserError
from fakedet.metrics.per_generator import average_precision, evaluate_frame


def predictions(n: int = 40) -> pd.DataFrame:
    """Rows as in a predictions file: three generators, ties, groups, and ids that do not begin at 0."""
    rng = np.random.default_rng(0)
    generators = np.repeat(["photo", "sdxl", "flux", "gan"], n)
    labels = (generators != "photo").astype(int)
    logits = np.round(rng.normal(labels * 1.2, 1.0), 1)
    return pd.DataFrame({
        "id": np.arange(4 * n) + 500, "label": labels, "generator": generators, "view": "original",
        "source": np.where(generators == "gan", "lsun", ""), "group": [f"p{i % 37}" for i in range(4 * n)],
        "logit": logits, "score": 1 / (1 + np.exp(-logits)),
    })  # fmt: skip


def test_values_are_scikit_learns() -> None:
    frame = predictions()
    found = average_precision(frame["label"], frame["logit"], frame["generator"], resamples=100)
    assert list(found.generators) == ["flux", "gan", "sdxl"]
    for name, row in found.generators.items():
        own = frame[frame["generator"].isin(["photo", name])]
        assert row.ap.value == pytest.approx(average_precision_score(own["label"], own["logit"]), abs=1e-12)
        assert row.auc.value == pytest.approx(roc_auc_score(own["label"], own["logit"]), abs=1e-12)
        assert (row.n_real, row.n_fake, row.n_groups) == (40, 40, 80)
        assert (row.seen, row.reals) == (None, ["photo"])
        assert row.ap.low < row.ap.value < row.ap.high
    mean = found.means["all"]
    assert mean.generators == ["flux", "gan", "sdxl"]
    assert mean.auc.value == pytest.approx(np.mean([row.auc.value for row in found.generators.values()]))
    assert found.means["seen"].generators == found.means["unseen"].generators == []


def test_it_equals_metrics_json_for_the_same_rows() -> None:
    frame = predictions()
    pairs, seen = {"gan": "photo"}, ["sdxl", "flux"]
    expected = evaluate_frame(frame, pairs, seen, n_resamples=200, seed=3)
    options = {"pairs": pairs, "seen": seen, "resamples": 200, "seed": 3}
    assert average_precision(frame, **options).to_dict() == expected  # type: ignore[arg-type]
    columns = (frame["label"].to_numpy(), torch.tensor(frame["logit"].to_numpy()), list(frame["generator"]))
    named = {"groups": frame["group"].tolist(), "sources": frame["source"].to_numpy()}
    found = average_precision(*columns, **named, **options)  # type: ignore[arg-type]
    assert found.to_dict() == expected
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_lists_and_booleans_give_the_same(dtype: torch.dtype) -> None:
    frame = predictions()
    logits = torch.tensor(frame["logit"].to_numpy()).to(dtype)
    groups = torch.arange(len(frame)) % 37
    found = average_precision(
        torch.tensor(frame["label"].to_numpy()),
        logits.requires_grad_(),
        frame["generator"],
        groups=groups,
        resamples=50,
    )
    other = average_precision(
        (frame["label"] == 1).tolist(), logits.detach().double().tolist(), frame["generator"].tolist(),
        groups=groups.numpy(), resamples=50,
    )  # fmt: skip
    assert found.to_dict() == other.to_dict()


def test_a_column_score_is_taken_where_there_is_no_logit() -> None:
    frame = predictions()
    expected = average_precision(frame).to_dict()
    assert average_precision(frame.drop(columns="logit")).to_dict() == expected
    # Where there are both, the logit is ranked by, as in metrics.json.
    assert average_precision(frame.assign(score=-frame["score"])).to_dict() == expected


def test_the_table_shows_generators_and_means() -> None:
    found = average_precision(predictions(), seen=["sdxl"], resamples=20, level=0.8)
    table = found.to_frame()
    assert table.index.tolist() == ["flux", "gan", "sdxl", "mean", "mean, seen", "mean, unseen"]
    assert table.loc["flux", ["n_real", "n_fake"]].tolist() == [40, 40]
    assert table.loc["mean", "n_real"] is pd.NA
    gan = found.generators["gan"]
    assert table.loc["gan", ["ap", "ap_low", "ap_high"]].tolist() == [gan.ap.value, gan.ap.low, gan.ap.high]
    unseen = found.means["unseen"].auc
    assert table.loc["mean, unseen", ["auc", "auc_low", "auc_high"]].tolist() == [
        unseen.value, unseen.low, unseen.high,
    ]  # fmt: skip
    wide = average_precision(predictions(), resamples=20, level=0.99).to_frame()
    assert wide.index.tolist() == ["flux", "gan", "sdxl", "mean"]
    assert (wide["auc_high"] - wide["auc_low"])["mean"] > (table["auc_high"] - table["auc_low"])["mean"]


def test_reals_need_no_generator_and_no_resamples_give_no_interval() -> None:
    found = average_precision([0, 0, 1, 1], [-2.0, 0.5, 0.1, 3.0], [None, None, "sdxl", "flux"], resamples=0)
    assert found.generators["sdxl"].ap.value == 0.5
    assert found.generators["flux"].ap.value == 1.0
    assert found.means["all"].ap.value == 0.75
    assert np.isnan(found.means["all"].ap.low)


def test_a_generator_without_reals_is_nan_and_left_out_of_the_mean() -> None:
    frame = predictions()
    found = average_precision(frame, pairs={"gan": ["!photo"]}, resamples=10)
    assert np.isnan(found.generators["gan"].ap.value)
    assert found.means["all"].left_out == ["gan"]
    assert found.means["all"].generators == ["flux", "sdxl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1, 1], [0.1, 0.2], ["a", "a", "a"]), "3 labels, 2 scores, 3 generators; one of each per image"),
        (([0, 1, 2], [0.1, 0.2, 0.3], ["a"] * 3), r"1 of 3 labels are neither 0 \(real\) nor 1 .*in row 2"),
        (([0, -1, 1], [0.1, 0.2, 0.3], ["a"] * 3), "first in row 1"),
        ((["real", "fake"], [0.1, 0.2], ["a", "a"]), "labels must be numbers.*'real'"),
        (([0, 1, 1], [0.1, float("nan"), float("nan")], ["a"] * 3), "2 of 3 scores are NaN.*first in row 1"),
        (([0, 1], [[0.1, 0.9], [0.2, 0.8]], ["a", "a"]), r"scores have the shape \(2, 2\); one value per image"),
        (([0, 1], torch.rand(2, 1), ["a", "a"]), r"scores have the shape \(2, 1\)"),
        (([0, 1], ["high", "low"], ["a", "a"]), "scores must be numbers"),
        (([0, 1, 1], [0.1, 0.2, 0.3], [None, "a", None]), "1 of 3 fakes have no generator.*first in row 2"),
        (([0, 1],), "scores and generators missing"),
        (([0, 1], [0.1, 0.2]), "generators missing"),
        ((predictions(), [0.1, 0.2]), "with a DataFrame, scores must be among its columns"),
        ((predictions().drop(columns=["logit", "score"]),), "no column logit or score"),
        ((predictions().drop(columns="generator"),), "no column generator"),
        ((predictions().assign(logit=np.nan),), "160 of 160 scores are NaN"),
        ((predictions().assign(view=["a", "b"] * 80),), "several views"),
        ((predictions().replace({"generator": {"gan": "map"}}),), "named .'map'."),
    ],
)  # fmt: skip
def test_wrong_input_is_told(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        average_precision(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 95}, "level=95 must be between 0 and 1"),
        ({"resamples": -1}, "resamples=-1"),
        ({"groups": ["a"]}, "4 labels, 4 scores, 4 generators, 1 groups"),
        ({"pairs": {"sdxl": "foto"}}, "did you mean 'photo'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        average_precision([0, 0, 1, 1], [0.0, 1.0, 2.0, 3.0], ["photo", "photo", "sdxl", "sdxl"], **options)  # type: ignore[arg-type]
