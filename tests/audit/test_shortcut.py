"""The shortcut classifiers against scikit-learn and against data whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from fakedet.audit.shortcuts import content_shortcut, header_features, header_shortcut, measure


def facts(n: int, rng: np.random.Generator, **columns: object) -> pd.DataFrame:
    table = pd.DataFrame({
        "format": "JPEG", "width": 256, "height": 256, "bytes": rng.integers(20_000, 60_000, n),
        "jpeg_quality": rng.integers(75, 97, n), "jpeg_tables": "a",
    })  # fmt: skip
    return table.assign(**columns)


def alone(n: int) -> NDArray[np.object_]:
    return np.array([f"group {number}" for number in range(n)], dtype=object)


LABELS = np.repeat([0, 1], 150)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("format PNG", {"format": np.where(LABELS == 1, "PNG", "JPEG")}),
        ("width", {"width": np.where(LABELS == 1, 512, 500)}),
        ("JPEG tables", {"jpeg_tables": np.where(LABELS == 1, "b", "a")}),
        ("JPEG quality", {"jpeg_quality": np.where(LABELS == 1, 90, 85)}),
        ("bytes", {"bytes": np.where(LABELS == 1, 90_000, 80_000)}),
    ],
)
def test_each_header_confounder_is_found_and_named(name: str, values: dict[str, object]) -> None:
    found = header_shortcut(facts(300, np.random.default_rng(0), **values), LABELS, alone(300))
    assert found.auc.value > 0.99
    assert (found.n_real, found.n_fake) == (150, 150)
    if name not in ("width", "format PNG"):  # two features say the same; either may be named
        assert found.told_by.startswith(name)
    assert "AUC 1.00 alone" in found.told_by


def test_equal_distributions_are_not_told_apart() -> None:
    hits = []
    for seed in range(8):
        found = header_shortcut(facts(300, np.random.default_rng(seed)), LABELS, alone(300), 200)
        hits.append(found.auc.low <= 0.5 <= found.auc.high)
        assert found.auc.value < 0.65
        assert found.told_by == ""
    assert sum(hits) >= 6


def test_siblings_do_not_stand_on_both_sides_of_a_fold() -> None:
    """A feature that names the group tells its label; only a fold that splits groups could use it."""
    rng = np.random.default_rng(0)
    names = rng.permutation(30)
    group = np.repeat(np.arange(30), 10)
    labels = (names[group] % 2).astype(np.int64)
    # One column a group: nothing is shared between groups, so an unseen group says nothing.
    features = pd.DataFrame((group[:, None] == np.arange(30)).astype(float))
    text = np.array([f"photo {code}" for code in group], dtype=object)
    grouped = measure(features, labels, text, LogisticRegression(), 100)
    torn = measure(features, labels, alone(300), LogisticRegression(), 100)
    assert torn.auc.value > 0.99
    assert grouped.auc.value == pytest.approx(0.5, abs=0.15)


def test_auc_equals_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(200, 4))
    labels = (features[:, 0] + rng.normal(size=200) > 0).astype(np.int64)
    groups = np.array([f"g{code}" for code in rng.integers(0, 60, 200)], dtype=object)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(LogisticRegression(), features, labels, groups=groups, cv=folds, method="predict_proba")
    found = measure(pd.DataFrame(features), labels, groups, LogisticRegression(), 200)
    assert found.auc.value == pytest.approx(roc_auc_score(labels, scores[:, 1]), abs=1e-12)
    assert found.auc.low < found.auc.value < found.auc.high


def test_too_few_images_give_no_number() -> None:
    few = header_shortcut(facts(6, np.random.default_rng(0)), np.array([0, 0, 0, 1, 1, 1]), alone(6))
    assert np.isnan(few.auc.value)
    one_group = np.array(["a"] * 10 + list("bcdefghijk"), dtype=object)
    lonely = header_shortcut(facts(20, np.random.default_rng(0)), np.repeat([0, 1], 10), one_group)
    assert np.isnan(lonely.auc.value)


def test_unreadable_rows_make_no_feature() -> None:
    table = header_features(facts(4, np.random.default_rng(0), format=["JPEG", "", "PNG", "JPEG"]))
    assert [name for name in table if name.startswith("format")] == ["format JPEG", "format PNG"]
    assert np.isfinite(table.to_numpy()).all()


def test_content_sees_colours() -> None:
    rng = np.random.default_rng(0)
    content = rng.uniform(0, 1, (300, 216)).astype(np.float32)
    assert content_shortcut(content, LABELS, alone(300), 100).auc.value < 0.65
    content[LABELS == 1, 2::3] += 0.3
    assert content_shortcut(content, LABELS, alone(300), 100).auc.value > 0.95
