"""What may be said, by rules that can be checked by hand."""

import math

import numpy as np
import pytest

from fakedet.detector import FAKE, REAL, UNDECIDED, Rules, decide
from fakedet.metrics.calibration import Calibration
from fakedet.metrics.decisions import OperatingPoint, Reference
from fakedet.tiles import cut_tiles, draw_heatmap, smooth

RULES = Rules(0.05, 0.05)


def point(fakes: tuple[float, ...] = tuple(np.linspace(2, 6, 99))) -> OperatingPoint:
    """Give a point whose reals lie at -5 ... -1: 99 of them."""
    reals = tuple(np.linspace(-5, -1, 99))
    reference = Reference((0.0, math.nan), (1.0, 1.0), reals)
    return OperatingPoint(-1.0, 0.05, Calibration("temperature", 1.0, 0.0), reference,
                          99, len(fakes), "m", "val", (), fakes)  # fmt: skip


def said(logit: float, **others: float) -> tuple[str, str]:
    statement = decide(point(), RULES, logit, math.nan, others, [])
    return statement.verdict, statement.reason


def test_clear_images_are_told() -> None:
    assert said(4.0, jpeg80=3.5) == (
        FAKE, "it looks less like a photograph than 95 in 100 photographs that the detector was tested with"
    )  # fmt: skip
    assert said(-3.0, jpeg80=-3.5, tiles=-3) == (
        REAL, "it looks more like a photograph than 95 in 100 fakes that the detector was tested with; its copies and "
        "tiles say the same"
    )  # fmt: skip
    statement = decide(point(), RULES, 4.0, math.nan, {}, [])
    assert statement.p_value == pytest.approx(1 / 100)
    assert statement.score == pytest.approx(1 / (1 + math.exp(-4)))


def test_between_reals_and_fakes_nothing_is_said() -> None:
    verdict, reason = said(0.5)  # higher than all reals, lower than all fakes
    assert (verdict, reason) == (
        UNDECIDED,
        "unlike the photographs and unlike the fakes that the detector was tested with",
    )


def test_where_reals_and_fakes_lie_over_each_other_nothing_is_said() -> None:
    mixed = point(fakes=tuple(np.linspace(-6, -2, 99)))
    statement = decide(mixed, RULES, -3.0, math.nan, {}, [])
    assert (statement.verdict, statement.reason) == (
        UNDECIDED,
        "neither clearly like the photographs nor clearly like the fakes that the detector was tested with",
    )


def test_altered_copies_must_agree() -> None:
    assert said(4.0, jpeg80=-4.0, smaller=3.0) == (UNDECIDED, "another answer for a copy altered by jpeg80")
    assert decide(point(), RULES, 4.0, math.nan, {"a": -4.0, "b": 3.0}, []).stability == 0.5
    assert math.isnan(decide(point(), RULES, 4.0, math.nan, {}, []).stability)


def test_doubts_come_first() -> None:
    statement = decide(point(), RULES, 4.0, math.nan, {}, ["smaller than the crop", "JPEG quality 20"])
    assert (statement.verdict, statement.reason) == (UNDECIDED, "smaller than the crop; JPEG quality 20")


def test_stricter_rules_say_less() -> None:
    strict = Rules(0.005, 0.005)  # 99 references show no less than 1/100
    assert decide(point(), strict, 4.0, math.nan, {}, []).verdict == UNDECIDED
    assert decide(point(), strict, -3.0, math.nan, {}, []).verdict == UNDECIDED


def test_without_fakes_in_validation_nothing_is_called_real() -> None:
    assert decide(point(fakes=()), RULES, -3.0, math.nan, {}, []).verdict == UNDECIDED
    assert decide(point(fakes=()), RULES, 4.0, math.nan, {}, []).verdict == FAKE


@pytest.mark.parametrize(
    ("height", "width", "most"),
    [(64, 64, 9), (65, 64, 9), (640, 64, 9), (640, 480, 9), (20, 30, 4), (1, 1, 9), (300, 4000, 5)],
)
def test_tiles_lie_inside_and_spread_evenly(height: int, width: int, most: int) -> None:
    tiles = cut_tiles(np.zeros((height, width, 3), np.uint8), 64, most)
    assert 1 <= len(tiles.crops) <= most
    assert all(crop.shape == (64, 64, 3) for crop in tiles.crops)
    tops, lefts = zip(*tiles.places, strict=True)
    assert min(*tops, *lefts) >= 0
    assert max(tops) + 64 <= max(height, 64)
    assert max(lefts) + 64 <= max(width, 64)
    assert len(set(tiles.places)) == len(tiles.places)
    # Spread evenly: the middle of the squares is the middle of the image.
    assert np.mean(tops) + 32 == pytest.approx(max(height, 64) / 2, abs=1)
    assert np.mean(lefts) + 32 == pytest.approx(max(width, 64) / 2, abs=1)
    if -(-height // 64) * -(-width // 64) <= most and height >= 64 <= width:
        covered = np.zeros((height, width), bool)
        for top, left in tiles.places:
            covered[top : top + 64, left : left + 64] = True
        assert covered.all()


def test_overlapping_tiles_reach_from_edge_to_edge() -> None:
    image = np.arange(300 * 500 * 3, dtype=np.uint8).reshape(300, 500, 3)
    tiles = cut_tiles(image, 64, 1000, overlap=True)
    tops, lefts = (sorted({place[axis] for place in tiles.places}) for axis in (0, 1))
    assert (tops[0], tops[-1], lefts[0], lefts[-1]) == (0, 300 - 64, 0, 500 - 64)
    assert max(np.diff(tops)) <= 32
    assert max(np.diff(lefts)) <= 32
    for (top, left), crop in zip(tiles.places, tiles.crops, strict=True):
        assert np.array_equal(crop, image[top : top + 64, left : left + 64])
    assert len(cut_tiles(image, 64, 20, overlap=True).crops) <= 20
    assert cut_tiles(image[:50, :40], 64, 9, overlap=True).places == [(0, 0)]


def test_the_map_is_the_mean_of_the_scores_weighed_by_distance() -> None:
    tiles = cut_tiles(np.zeros((200, 400, 3), np.uint8), 64, 12, overlap=True)
    scores = np.random.default_rng(0).random(len(tiles.places))
    found = smooth((200, 400), tiles, scores)
    assert found.shape == (128, 256)
    tops, lefts = np.array(tiles.places).T
    wide = [max(16, np.diff(np.unique(starts)).max() / 2) for starts in (tops, lefts)]
    for y, x in ((0, 0), (60, 200), (127, 255)):  # points that are 400 / 256 pixels apart
        away = [((y + 0.5) * 400 / 256 - tops - 32) / wide[0], ((x + 0.5) * 400 / 256 - lefts - 32) / wide[1]]
        weights = np.exp(-0.5 * (away[0] ** 2 + away[1] ** 2))
        assert found[y, x] == pytest.approx((weights * scores).sum() / weights.sum())


def test_heatmap_colours_where_the_tiles_are() -> None:
    image = np.full((640, 1280, 3), 100, np.uint8)
    tiles = cut_tiles(image, 640, 9)
    assert len(tiles.crops) == 2
    drawn = draw_heatmap(image, tiles, [0.0, 1.0], "undecided, P(fake) 0.50")
    mixed, legend = drawn[:640].astype(int), drawn[640:]
    left, right = mixed[:, :300].reshape(-1, 3).mean(axis=0), mixed[:, -300:].reshape(-1, 3).mean(axis=0)
    assert left[2] > 150 > left[0]  # blue: real
    assert right[0] > 150 > right[2]  # red: fake
    assert legend.shape[0] > 50
    assert (legend == 255).all(axis=2).mean() > 0.5, "white, and on it"
    assert (legend.max(axis=2) < 60).sum() > 300, "black words"
    small = np.zeros((10, 12, 3), np.uint8)
    assert draw_heatmap(small, cut_tiles(small, 64, 1), [0.5], "real").shape[1] == 12
    large = np.zeros((4000, 6000, 3), np.uint8)
    spread = cut_tiles(large, 224, 64, overlap=True)
    drawn = draw_heatmap(large, spread, np.zeros(len(spread.places)), "real")
    assert drawn.shape[1] == 1600
    assert drawn.shape[0] < 1350
