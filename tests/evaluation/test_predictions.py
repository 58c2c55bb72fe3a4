"""The predictions file: what is written is read back, and foreign files are refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

import fakedet
from fakedet.errors import UserError
from fakedet.evaluation.predictions import method_settings, read_files, read_predictions, write_predictions


def frame(n: int = 6) -> pd.DataFrame:
    return pd.DataFrame({
        "id": range(n), "path": [f"ü {i}.png" for i in range(n)], "label": [0, 1] * (n // 2),
        "generator": ["real", "gen"] * (n // 2), "family": ["real", "gan"] * (n // 2),
        "source": "", "group": [f"g{i}" for i in range(n)], "split": "test",
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


def test_a_generator_is_its_own_family_in_older_files(tmp_path: Path) -> None:
    frame().drop(columns="family").to_parquet(tmp_path / "older.parquet")
    older = read_predictions(tmp_path / "older.parquet")[0]
    assert older["family"].tolist() == older["generator"].tolist()
    write_predictions(frame().drop(columns="family"), tmp_path / "now.parquet", {})
    assert read_predictions(tmp_path / "now.parquet")[0]["family"].tolist() == older["generator"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="logit"), "no column logit"),
        (lambda table: table.assign(label=table["label"] + 1), r"labels must be 0 \(real\) or 1 \(fake\)"),
        (
            lambda table: table.assign(generator=["real", None] * 3),
            r"wrong\.parquet: the column generator is empty in 3",
        ),
        (lambda table: table.assign(path=["a", None] * 3), r"wrong\.parquet: the column path is empty in 3 of 6 rows"),
        (lambda table: pd.concat([table, table[:2]]), r"wrong\.parquet: 2 images are there twice, first: ü 0\.png"),
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
        (lambda table: table.iloc[:0], "holds no images"),
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


@pytest.mark.parametrize("info", [
    [1], {"seed": "x"}, {"seen_generators": 3}, {"operating_point": "y"}, {"seen_generators": ["a", {}]},
    {"shortcut": {"gen_a": "x"}}, {"shortcut": {"gen_a": {"value": "x"}}},
])  # fmt: skip
def test_a_strange_identity_is_named(info: object, tmp_path: Path) -> None:
    write_predictions(frame(), tmp_path / "p.parquet", info)
    with pytest.raises(UserError, match="in its metadata is not what fakedet writes"):
        read_predictions(tmp_path / "p.parquet")


SETTINGS = {
    "model.loss._target_": "fakedet.losses.SoftContrastive",
    "augment.recipe": "light",
    "trainer.max_epochs": "3",
}


def written(path: Path, seed: int, settings: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = {"name": "transfer", "seed": seed, "settings": {**SETTINGS, **(settings or {})}, "crop_size": 64}
    write_predictions(frame(), path, info)
    return path


def names(paths: list[Path]) -> list[str]:
    return [one.method for one in read_files([str(path) for path in paths])]


def test_methods_of_one_name_are_told_apart_by_their_configs(tmp_path: Path) -> None:
    """Three methods of three seeds each, none of them shared, were one method of nine."""
    methods: list[dict[str, str]] = [{}, {"augment.recipe": "none"}, {"augment.recipe": "none", "model.extra": "1"}]
    paths = [written(tmp_path / f"{number}" / "p.parquet", number, methods[number // 3]) for number in range(9)]
    found = names(paths)
    assert [found[start : start + 3] for start in (0, 3, 6)] == [[found[start]] * 3 for start in (0, 3, 6)]
    assert found[::3] == ["transfer, augment.recipe=light, model.extra=null",
                          "transfer, augment.recipe=none, model.extra=null",
                          "transfer, augment.recipe=none, model.extra=1"]  # fmt: skip
    assert names(paths[:3]) == ["transfer"] * 3
    other = written(tmp_path / "loss" / "p.parquet", 9, {"model.loss._target_": "mine.SupCon"})
    assert names([paths[0], other]) == ["transfer, model.loss=SoftContrastive", "transfer, model.loss=SupCon"]


def test_runs_of_one_config_and_seed_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    places = [f"{method}/seed={seed}" for method in ("ours", "theirs") for seed in (0, 1)]
    paths = [written(tmp_path / place / "p.parquet", int(place[-1])) for place in places]
    assert names(paths) == ["transfer (ours)"] * 2 + ["transfer (theirs)"] * 2
    again = [written(tmp_path / place / "same" / "p.parquet", 0) for place in ("x/1", "y/1", "x/2", "y/2")]
    assert len(set(names(again))) == 4
    with pytest.raises(UserError, match="is there twice"):
        read_files([str(paths[0]), str(paths[0].parent / "../seed=0/p.parquet")])


def test_names_are_taken_from_the_user(tmp_path: Path) -> None:
    paths = [str(written(tmp_path / f"{number}" / "p.parquet", number)) for number in range(3)]
    read = read_files({"ours": paths[:2], "theirs": paths[2]})
    assert [(one.method, one.seed) for one in read] == [("ours", 0), ("ours", 1), ("theirs", 2)]
    with pytest.raises(UserError, match="name at least one"):
        read_files({"ours": []})


def test_a_config_without_what_differs_between_seeds_tells_methods_apart(tmp_path: Path) -> None:
    def settings(model: str, *words: str, stage1: dict[str, object] | None = None, **given: object) -> dict[str, str]:
        config = fakedet.compose("train", f"model={model}", "data=manifest", *words, data__manifest="x/m.csv", **given)
        return method_settings(OmegaConf.to_container(config, resolve=True), "0123456789", stage1)

    base = settings("bce", seed=0, output_dir="a")
    same = settings("bce", "logger=tensorboard", seed=1, output_dir="b", threads=2, data__root="/elsewhere",
                    data__match__seed=1, trainer__devices=2, stage1_checkpoint="s.ckpt")  # fmt: skip
    assert base == same
    assert base["data.manifest"] == "m.csv 01234567"
    for changed in (settings("bce", "augment=none"), settings("bce", model__optimizer__lr=0.1),
                    settings("bce", data__hold_out=["sd"]), settings("bce", trainer__max_epochs=3),
                    settings("supcon")):  # fmt: skip
        assert changed != base
    assert settings("bce", "augment@view_augment=light") == base, "the views of a stage 1 that it does not have"
    over = [settings("ntf", stage1={"settings": None, "model": {"loss": {"temperature": t}}}) for t in (0.1, 0.2)]
    assert [one["stage1.model.loss.temperature"] for one in over] == ["0.1", "0.2"]
    one = {"settings": {"model.epochs": "3", "augment.recipe": "light", "data.hold_out": "[]"}}
    other = {"settings": {"model.epochs": "3", "augment.recipe": "none", "data.hold_out": "[sd]"}}
    assert settings("ntf", stage1=one) == settings("ntf", stage1=other), "the same stage 1, of another run's cache"
