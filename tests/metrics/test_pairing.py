import numpy as np
import pandas as pd
import pytest

from fakedet.errors import UserError
from fakedet.metrics.pairing import pairing_notes, real_counterparts


def _frame(*rows):
    return pd.DataFrame(rows, columns=["label", "generator", "source"])


FRAME = _frame(
    (0, "real_imagenet", "imagenet"),
    (1, "adm", "imagenet"),
    (0, "real_laion", "laion"),
    (1, "ldm_200", "laion"),
    (1, "ldm_200_cfg", "coco"),
    (0, "real_coco", "coco"),
    (1, "progan", "horse"),
    (0, "progan", "horse"),
    (1, "dalle", ""),
)
REALS = [0, 2, 5, 7]


def _pick(found, name):
    return found[name].real_rows.tolist(), found[name].rule


def test_without_pairs_same_name_then_source_then_all():
    found = real_counterparts(FRAME, None)
    assert list(found) == ["adm", "dalle", "ldm_200", "ldm_200_cfg", "progan"]
    assert _pick(found, "progan") == ([7], "generator")
    assert _pick(found, "adm") == ([0], "source")
    assert _pick(found, "ldm_200") == ([2], "source")
    assert _pick(found, "dalle") == (REALS, "all")
    assert found["dalle"].reals == ["progan", "real_coco", "real_imagenet", "real_laion"]
    assert found["adm"].fake_rows.tolist() == [1]


def test_same_name_wins_over_source():
    frame = _frame((1, "g", "s"), (0, "other", "s"), (0, "g", "t"))
    assert _pick(real_counterparts(frame, None), "g") == ([2], "generator")


def test_unknown_sources_do_not_match_each_other():
    frame = _frame((1, "g", ""), (0, "a", ""), (0, "b", "s"))
    assert _pick(real_counterparts(frame, None), "g") == ([1, 2], "all")


def test_missing_source_column_and_values_count_as_unknown():
    frame = pd.DataFrame({"label": [1, 0], "generator": ["g", "a"]})
    assert _pick(real_counterparts(frame, None), "g") == ([1], "all")
    frame["source"] = [np.nan, None]
    assert _pick(real_counterparts(frame, None), "g") == ([1], "all")


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ("real_coco", [5]),
        ("coco", [5]),  # a source
        (["real_imagenet", "laion"], [0, 2]),
        ("real_*", [0, 2, 5]),
        (["real_*", "!real_coco"], [0, 2]),
        (["!real_coco", "real_*"], [0, 2]),  # the order does not matter
        (["!coco", "!imagenet"], [2, 7]),  # from all reals
    ],
)
def test_pairs_come_first(value, rows):
    assert _pick(real_counterparts(FRAME, {"progan": value}), "progan") == (rows, "pairs")


def test_the_most_specific_key_wins_whatever_the_order():
    pairs = {"*": "progan", "ldm_200*": "coco", "ldm_*": "imagenet", "ldm_200": "laion"}
    for keys in (list(pairs), list(pairs)[::-1]):
        found = real_counterparts(FRAME, {key: pairs[key] for key in keys})
        assert _pick(found, "ldm_200") == ([2], "pairs")
        assert _pick(found, "ldm_200_cfg") == ([5], "pairs")
        assert _pick(found, "adm") == ([7], "pairs")


def test_a_name_that_looks_like_a_glob_matches_itself():
    frame = _frame((1, "sd[2]", ""), (0, "real[1]", ""), (0, "real1", ""))
    assert _pick(real_counterparts(frame, {"sd[2]": "real[1]"}), "sd[2]") == ([1], "pairs")


def test_keys_of_other_splits_are_left_aside():
    found = real_counterparts(FRAME, {"glide": "reals_of_another_split"})
    assert {counterparts.rule for counterparts in found.values()} == {"generator", "source", "all"}


@pytest.mark.parametrize("value", ["real_cocoa", ["real_laion", "real_cocoa"], ["real_laion", "!real_cocoa"]])
def test_a_value_that_matches_no_real_is_an_error_that_names_the_nearest(value):
    with pytest.raises(UserError, match=r"'adm'.*'real_cocoa'.*did you mean 'real_coco'"):
        real_counterparts(FRAME, {"adm": value})


def test_a_key_without_reals_is_an_error():
    with pytest.raises(UserError, match="'adm' names no reals"):
        real_counterparts(FRAME, {"adm": []})


def test_reals_of_another_split_leave_the_generator_without():
    found = real_counterparts(FRAME, {"adm": "real_ffhq"}, known_reals=["real_ffhq", "real_coco"])
    assert _pick(found, "adm") == ([], "pairs")
    assert found["adm"].reals == []


def test_a_frame_without_reals_gives_empty_counterparts():
    fakes = FRAME[FRAME["label"] == 1]
    for pairs in (None, {"adm": "real_coco"}):
        assert all(not len(rows.real_rows) for rows in real_counterparts(fakes, pairs).values())


def test_reals_that_are_used_in_part_are_named_by_source():
    frame = _frame((1, "adm", "faces"), (0, "photos", "faces"), (0, "photos", "streets"), (1, "x", ""))
    found = real_counterparts(frame, None)
    assert (found["adm"].reals, found["x"].reals) == (["photos:faces"], ["photos"])


KINDS = _frame((0, "a", "faces"), (0, "b", "streets"), (1, "x", ""), (1, "y", "faces"))


@pytest.mark.parametrize(
    ("frame", "pairs", "told"),
    [
        (KINDS, None, ["x: compared with all reals, of all sources (faces 1, streets 1)"]),
        (KINDS, {"x": "faces"}, []),
        (KINDS, {"z": "faces", "x": "a"}, ["'z' matches no generator"]),
        (KINDS.assign(source="one"), None, []),  # one kind only
        (KINDS.drop(columns="source"), None, []),
        (KINDS, {"x": "elsewhere"}, ["x: data.pairs names reals that are not among these images"]),
        (KINDS[KINDS["label"] == 0], {"z": "faces"}, []),
        (KINDS[KINDS["label"] == 1], None, []),
    ],
)
def test_what_a_table_would_not_lead_to_expect_is_said(frame, pairs, told):
    found = pairing_notes(frame, pairs, known_reals=["elsewhere"])
    assert len(found) == len(told)
    assert all(part in note for part, note in zip(told, found, strict=True))
    assert not any("matches no generator" in note for note in pairing_notes(frame, pairs, None, ["elsewhere"], ["z"]))


def test_other_reals_than_by_other_pairs_are_said():
    found = pairing_notes(KINDS, {"x": "a"}, {"in training": {"x": "streets", "y": "faces"}})
    assert found == ["x: compared with a here, and with b by the pairs in training"]
    assert pairing_notes(KINDS, {"x": "a"}, {"in training": {"x": "faces"}}) == []
    assert "name reals that these data do not have" in pairing_notes(KINDS, {"x": "a"}, {"there": {"x": "gone"}})[0]
