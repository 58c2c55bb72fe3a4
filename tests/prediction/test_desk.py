"""What may be said, by rules that can be checked by hand."""

import math

import numpy as np
import pytest

from fakedet.detector import FAKE, REAL, UNDECIDED, Rules, cut_tiles, decide, overlay
from fakedet.metrics.calibration import Calibration
from fakedet.metrics.decisions import OperatingPoint, Reference

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
    assert said(4.0, jpeg80=3.5) == (FAKE, "")
    assert said(-3.0, jpeg80=-3.5) == (REAL, "")
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


def test_heatmap_colours_where_the_tiles_are() -> None:
    image = np.full((64, 128, 3), 100, np.uint8)
    tiles = cut_tiles(image, 64, 9)
    assert len(tiles.crops) == 2
    mixed = overlay(image, tiles, [0.0, 1.0]).astype(int)
    left, right = mixed[:, :64].reshape(-1, 3).mean(axis=0), mixed[:, 64:].reshape(-1, 3).mean(axis=0)
    assert left[2] > 150 > left[0]  # blue: real
    assert right[0] > 150 > right[2]  # red: fake
    assert overlay(np.zeros((10, 12, 3), np.uint8), cut_tiles(np.zeros((10, 12, 3), np.uint8), 64, 1), [0.5]).shape == (
        10,
        12,
        3,
    )
