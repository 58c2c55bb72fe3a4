"""Held-out generators and families, against a naive loop over random tables."""

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
    frame["family"] = frame["generator"]
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


FAMILIES = {"a": "x", "b": "x", "c": "y", "d": "z", "camera": "camera"}


def table_of_families(seed: int) -> Manifest:
    """Make groups that hold photographs, fakes of one family or of several, each in one split."""
    random = np.random.default_rng(seed)
    rows = []
    for group in range(160):
        split = random.choice(["train", "train", "val", "test"])
        kinds = [["camera", "camera", "a", "c"], ["a", "b"], ["a", "c", "d"], ["d"]][group % 4]
        for _ in range(random.integers(1, 5)):
            generator = random.choice(kinds)
            rows.append((int(generator != "camera"), generator, FAMILIES[generator], split, f"g{group}"))
    frame = pd.DataFrame(rows, columns=["label", "generator", "family", "split", "group"])
    return Manifest(frame, Path(), "0")


def naive(manifest: Manifest, left_out: str) -> list[str]:
    """Give each row's split where a family is left out and measured, row by row."""
    rows = list(manifest.frame.itertuples())
    used = [row for row in rows if row.split != "test"]
    groups = []
    for name in sorted({row.group for row in used}):
        own = [row for row in used if row.group == name]
        if any(row.label == 0 for row in own) or len({row.family for row in own}) > 1:
            groups.append(name)
    drawn = list(np.random.default_rng(0).permutation(groups))[: len(groups) // 4]
    splits, trained = [], set()
    for row in rows:
        is_held = row.split != "test" and row.label == 1 and row.family == left_out
        if row.split == "test":
            splits.append("aside")
        elif is_held:
            splits.append("held")
        elif row.group in drawn:
            splits.append("aside" if row.label else "test")
        else:
            splits.append(row.split)
            trained.add(row.group)
    return [("aside" if row.group in trained else "test") if split == "held" else split
            for row, split in zip(rows, splits, strict=True)]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_family_is_left_out_and_measured_as_a_naive_loop_does(seed: int) -> None:
    manifest = table_of_families(seed)
    photographs = []
    for family in ("x", "y", "z"):
        held = hold_out(manifest, [], "held_out", [family]).frame
        assert held["split"].tolist() == naive(manifest, family)
        tested = held[held["split"] == "test"]
        assert set(tested.loc[tested["label"] == 1, "family"]) == {family}
        photographs.append(tested.index[tested["label"] == 0].tolist())
    assert photographs[0] == photographs[1] == photographs[2], "every family is measured against the same photographs"
    assert photographs[0]


@pytest.mark.parametrize("seed", range(4))
def test_collections_of_photographs_are_left_out_and_measured_as_a_naive_loop_does(seed: int) -> None:
    frame = table_of_families(seed).frame
    cameras = np.random.default_rng(seed).choice(["phone", "slr", "scan"], len(frame)).astype(object)
    frame["family"] = frame["family"].where(frame["label"] == 1, cameras)
    for left_out in (["phone"], ["phone", "scan"]):
        rows = list(frame.itertuples())
        photographs = {row.group for row in rows if row.split != "test" and not row.label and row.family in left_out}
        expected = []
        for row in rows:
            is_held = row.split != "test" and not row.label and row.family in left_out
            leaves = row.split == "test" or row.group in photographs
            expected.append("test" if is_held else "aside" if leaves else row.split)
        held = hold_out(Manifest(frame, Path(), "0"), [], "held_out", left_out).frame
        assert held["split"].tolist() == expected
        assert set(held.loc[held["split"] == "test", "family"]) == set(left_out)
        kept = hold_out(Manifest(frame, Path(), "0"), [], "test", left_out).frame["split"]
        assert kept.tolist() == ["test" if row.split == "test" else "aside" if row.group in photographs else row.split
                                 for row in rows]  # fmt: skip
    both = hold_out(Manifest(frame, Path(), "0"), [], "held_out", ["x", "phone"]).frame
    alone = hold_out(Manifest(frame, Path(), "0"), [], "held_out", ["x"]).frame
    tested, used = both[both["split"] == "test"], both[both["split"].isin(["train", "val"])]
    assert not set(tested["group"]) & set(used["group"])
    assert not set(used["family"]) & {"x", "phone"}
    reals = (frame["label"] == 0) & (frame["split"] != "test")
    drawn = reals & ((frame["family"] == "phone") | (alone["split"] == "test"))
    assert set(tested.index[tested["label"] == 0]) == set(frame.index[drawn])
    assert set(alone.index[(alone["split"] == "test") & (alone["label"] == 1)]) <= set(tested.index)


def test_a_name_that_fakes_and_photographs_share_is_of_the_fakes() -> None:
    frame = table_of_families(0).frame.assign(split="train")
    frame["family"] = frame["family"].replace("camera", "x")
    held = hold_out(Manifest(frame, Path(), "0"), [], "test", ["x"]).frame
    assert (held["split"] == "aside").tolist() == ((frame["label"] == 1) & (frame["family"] == "x")).tolist()


def test_generators_and_families_can_both_be_held_out() -> None:
    manifest = table_of_families(0)
    one = hold_out(manifest, ["d"], "test", ["x"]).frame
    other = hold_out(manifest, ["a", "b", "d"]).frame
    pd.testing.assert_frame_equal(one, other)
    with pytest.raises(UserError, match=r"data.hold_out_families: no .* images are of 'yy'; did you mean 'y'"):
        hold_out(manifest, [], "held_out", ["yy"])


def test_a_data_module_leaves_out_a_family(tiny_manifest: Path) -> None:
    frame = pd.read_csv(tiny_manifest)
    frame.assign(family=frame["generator"].replace({"gen_b": "two", "gen_c": "two"})).to_csv(tiny_manifest, index=False)
    module = ImageDataModule(str(tiny_manifest), crop_size=24, hold_out_families=["two"], measure="held_out")
    assert module.seen_generators == ["gen_a"]
    tested = module.manifest.rows("test")
    assert set(tested["generator"]) == {"real_x", "real_y", "gen_b"}, "gen_c is in the test split alone"
    assert set(module.as_read.frame.loc[tested.index, "split"]) == {"train", "val"}
