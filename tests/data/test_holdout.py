"""Held-out generators, against a naive loop over random tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.manifest import Manifest, hold_out
from fakedet.errors import UserError


def table(seed: int = 0) -> Manifest:
    """Groups keep to one split; some fakes share their photograph's group."""
    random = np.random.default_rng(seed)
    rows = []
    for group in range(120):
        split = random.choice(["train", "val", "test"])
        for _ in range(random.integers(1, 5)):
            generator = random.choice(["camera", "a", "b", "c"])
            rows.append((int(generator != "camera"), generator, split, f"g{group}"))
    frame = pd.DataFrame(rows, columns=["label", "generator", "split", "group"])
    return Manifest(frame, Path(), "0")


def test_their_fakes_leave_train_and_val_and_nothing_else_moves() -> None:
    manifest = table()
    held = hold_out(manifest, ["a", "c"]).frame
    for before, after in zip(manifest.frame.itertuples(), held.itertuples(), strict=True):
        leaves = before.generator in ("a", "c") and before.split != "test"
        assert after.split == ("aside" if leaves else before.split)


@pytest.mark.parametrize("seed", range(5))
def test_measuring_the_held_out_shares_nothing_with_training_nor_with_the_test_split(seed: int) -> None:
    manifest = table(seed)
    before, after = manifest.frame, hold_out(manifest, ["b"], "held_out").frame
    tested = after["split"] == "test"
    used = after["split"].isin(["train", "val"])
    assert not set(after.loc[tested, "group"]) & set(after.loc[used, "group"])
    assert not (before.loc[tested | used, "split"] == "test").any(), "the test split is not looked at"
    assert set(after.loc[tested & (after["label"] == 1), "generator"]) == {"b"}
    assert "b" not in set(after.loc[used & (after["label"] == 1), "generator"])
    reals = (before["split"] == "val") & (before["label"] == 0)
    groups = before.loc[reals, "group"].nunique()
    assert after.loc[tested & reals, "group"].nunique() == groups // 2
    assert not (tested & (before["label"] == 0) & ~reals).any(), "training reals are not measured"
    kept = (before["split"] == "train") & (before["generator"] != "b")
    assert (after.loc[kept, "split"] == "train").all()


def test_the_draw_of_photographs_does_not_depend_on_the_order_of_rows() -> None:
    manifest = table()
    shuffled = manifest.frame.sample(frac=1, random_state=1)
    one = hold_out(manifest, ["a"], "held_out").frame["split"]
    two = hold_out(Manifest(shuffled, Path(), "0"), ["a"], "held_out").frame["split"]
    pd.testing.assert_series_equal(one, two.sort_index())


def test_mistakes_are_named() -> None:
    manifest = table()
    with pytest.raises(UserError, match=r"hold_out: .* 'camera'; valid: a, b, c"):
        hold_out(manifest, ["camera"])
    with pytest.raises(UserError, match=r"measure=held_out needs generators"):
        hold_out(manifest, [], "held_out")
    with pytest.raises(UserError, match=r"'heldout' is not known; did you mean 'held_out'"):
        hold_out(manifest, ["a"], "heldout")
    assert hold_out(manifest, []) is manifest


def test_a_data_module_trains_and_measures_without_them(tiny_manifest: Path) -> None:
    whole = ImageDataModule(str(tiny_manifest), crop_size=24)
    name = whole.seen_generators[0]
    module = ImageDataModule(str(tiny_manifest), crop_size=24, hold_out=[name])
    assert module.seen_generators == whole.seen_generators[1:]
    assert module.manifest.sha256 == whole.manifest.sha256, "the data are the same table"
    fakes = module.manifest.frame.loc[[int(i) for batch in module.train_dataloader() for i in batch["id"]]]
    assert name not in set(fakes["generator"])
