"""The predictions file: what is written is read back, and foreign files are refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fakedet.errors import UserError
from fakedet.evaluation.predictions import read_predictions, write_predictions


def frame(n: int = 6) -> pd.DataFrame:
    return pd.DataFrame({
        "id": range(n), "path": [f"ü {i}.png" for i in range(n)], "label": [0, 1] * (n // 2),
        "generator": ["real", "gen"] * (n // 2), "source": "", "group": [f"g{i}" for i in range(n)], "split": "test",
        "view": "original", "crop": "crop64", "logit": np.linspace(-3, 40, n), "score": 0.5,
        "trace_distance": [np.nan, 0.25] * (n // 2), "p_value": [np.nan, 0.5] * (n // 2),
        "verdict": ["", "real"] * (n // 2), "map_x": np.nan, "map_y": np.arange(n) / 4,
    })  # fmt: skip


def test_round_trip_keeps_every_value_and_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(frame(), path, {"seen_generators": ["gen"], "pairs": None})
    back, info = read_predictions(path)
    pd.testing.assert_frame_equal(back, frame(), check_dtype=False)
    assert back["logit"].dtype == np.float64
    assert info == {"seen_generators": ["gen"], "pairs": None}
    assert [entry.name for entry in tmp_path.iterdir()] == ["predictions.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="logit"), "no column logit"),
        (lambda table: table.assign(label=table["label"] + 1), r"labels must be 0 \(real\) or 1 \(fake\)"),
        (lambda table: table.assign(logit=[1.0, np.nan] * 3), "3 of 6 logits are NaN, first: ü 1.png"),
    ],
)
def test_wrong_files_are_named(change, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.parquet"
    change(frame()).to_parquet(path)
    with pytest.raises(UserError, match=message):
        read_predictions(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no predictions file"):
        read_predictions(tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="is not a parquet file"):
        read_predictions(tmp_path / "text.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.assign(logit=[1.0, np.inf] * 3), "3 logits are infinite, first: ü 1.png"),
        (lambda table: table.assign(score="high"), "the column score holds values that are not numbers"),
        (lambda table: table.iloc[:0], "needs real and fake images"),
        (lambda table: table[table["label"] == 1], "needs real and fake images"),
        (lambda table: table.assign(view="jpeg/50"), "no rows of the view 'original'"),
    ],
)
def test_files_without_what_a_report_needs_are_named(change, message: str, tmp_path: Path) -> None:
    change(frame()).to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "odd.parquet")


def test_the_needed_columns_suffice_in_other_kinds(tmp_path: Path) -> None:
    needed = frame()[["path", "label", "generator", "logit"]].assign(generator=[1, 2] * 3)
    needed.assign(label=needed["label"].astype(float)).to_parquet(tmp_path / "few.parquet")
    table, info = read_predictions(tmp_path / "few.parquet")
    assert table["generator"].tolist() == ["1", "2"] * 3
    assert table["label"].tolist() == [0, 1] * 3
    assert table["score"].to_numpy() == pytest.approx(1 / (1 + np.exp(-frame()["logit"])))
    assert info == {}


@pytest.mark.parametrize("info", [[1], {"seed": "x"}, {"seen_generators": 3}, {"operating_point": "y"}])
def test_a_strange_identity_is_named(info: object, tmp_path: Path) -> None:
    write_predictions(frame(), tmp_path / "p.parquet", info)
    with pytest.raises(UserError, match="in its metadata is not what fakedet writes"):
        read_predictions(tmp_path / "p.parquet")
