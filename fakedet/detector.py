"""detector"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig

from fakedet.build import load_detector
from fakedet.data.decode import DecodeError, Header, decode_image, parse_header, read_bytes
from fakedet.data.degrade import ORIGINAL, View, degraded_views, parse_view
from fakedet.data.transforms import pad_to
from fakedet.errors import UserError
from fakedet.methods.base import Detector
from fakedet.metrics.decisions import OperatingPoint

REAL, FAKE, UNKNOWN = "real", "fake", "can't tell"


@dataclass(frozen=True)
class Rules:
    """The errors that a desk accepts."""

    false_alarm: float
    """Share of real photographs that may be called fake."""
    miss: float
    """Share of fakes, of generators like those in validation, that may be called real."""


@dataclass(frozen=True)
class Statement:
    """What is said of one image."""

    verdict: str
    score: float
    """Calibrated P(fake), for as many reals as fakes."""
    p_value: float
    """How unusual the image is among held-out reals; NaN if the checkpoint has no reference."""
    stability: float
    """Share of altered copies and tiles that fall on the same side of the threshold as the image itself."""
    reason: str
    """Why it can't be told; "" otherwise."""


def decide(
    point: OperatingPoint,
    rules: Rules,
    logit: float,
    distance: float,
    others: Mapping[str, float],
    doubts: list[str],
) -> Statement:
    """Say what the numbers allow.

    *Fake* needs a p-value among reals of at most ``false_alarm``, *real* a logit below all but ``miss`` of the
    validation fakes and no such p-value. Between the two, where both hold, where altered copies disagree, and
    where the image lies outside of what the detector was made for, it can't be told.

    Args:
        point: of the detector.
        rules: of the desk.
        logit: of the image.
        distance: of the image; NaN where the method has none.
        others: view → logit of altered copies and of the tiles' mean.
        doubts: why the image lies outside of what the detector was made for.
    """
    score = float(point.calibration([logit])[0])
    p_value = float(point.reference.p_values([logit], [distance])[0]) if point.reference else math.nan
    side = logit > point.threshold
    apart = [name for name, value in others.items() if (value > point.threshold) != side]
    stability = 1 - len(apart) / len(others) if others else math.nan
    unusual = p_value <= rules.false_alarm if not math.isnan(p_value) else logit > point.threshold
    low = logit <= point.lowest_fake(rules.miss)
    if doubts:
        reason = "; ".join(doubts)
    elif apart:
        reason = f"another answer for {', '.join(_in_words(name) for name in apart)}"
    elif unusual == low:
        reason = (
            "unlike the photographs and unlike the fakes that the detector was tested with"
            if unusual
            else "neither clearly like the photographs nor clearly like the fakes that the detector was tested with"
        )
    else:
        return Statement(FAKE if unusual else REAL, score, p_value, stability, "")
    return Statement(UNKNOWN, score, p_value, stability, reason)


def _in_words(view: str) -> str:
    """Say what was done to a copy."""
    family, _, severity = view.partition("/")
    if family == "jpeg":
        return f"a copy saved as JPEG of quality {severity}"
    if family == "resize":
        return f"a copy scaled by {severity}"
    return "the squares of the picture" if family == "tiles" else f"a copy altered by {view}"


def resolution(point: OperatingPoint) -> float:
    """Give the smallest p-value that the reference can show."""
    count = len(point.reference.scores) if point.reference else 0
    return float(1 / (count + 1)) if count else float(np.nan)


Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tiles:
    """Squares spread evenly over an image."""

    places: list[tuple[int, int]]
    """(top, left) of each."""
    crops: list[Pixels]
    shape: tuple[int, int]
    """Height and width of the (padded) image."""


def cut_tiles(image: Pixels, size: int, most: int) -> Tiles:
    """Cut at most ``most`` squares out of an image, evenly spread; all of it where so many suffice.

    Args:
        image: (H, W, 3).
        size: side of a square.
        most: at least 1.
    """
    image = pad_to(image, size, size)
    height, width = image.shape[:2]
    rows, columns = -(-height // size), -(-width // size)
    while rows * columns > most:
        # The side with the denser squares gives one up.
        if (rows / height > columns / width and rows > 1) or columns == 1:
            rows -= 1
        else:
            columns -= 1
    places = [(top, left) for top in _spread(height, size, rows) for left in _spread(width, size, columns)]
    crops = [image[top : top + size, left : left + size].copy() for top, left in places]
    return Tiles(places, crops, (height, width))


def _spread(side: int, size: int, count: int) -> list[int]:
    """Put a square into the middle of each of ``count`` equal parts of a side."""
    middles = [(number + 0.5) * side / count for number in range(count)]
    return [min(max(0, round(middle - size / 2)), side - size) for middle in middles]


OPACITY = 0.45


def overlay(image: NDArray[np.uint8], tiles: Tiles, scores: ArrayLike) -> NDArray[np.uint8]:
    """Lay the scores of tiles over an image: blue is real, red is fake, white is in between.

    Each pixel shows the mean score of the tiles that cover it; pixels that no tile covers stay as they are. These are
    the scores of separate squares, not an explanation of the verdict.

    Args:
        image: (H, W, 3).
        tiles: cut out of it.
        scores: (n,) P(fake) of each tile.

    Returns:
        (H, W, 3) uint8.
    """
    total, count = np.zeros(tiles.shape), np.zeros(tiles.shape)
    for (top, left), crop, score in zip(
        tiles.places, tiles.crops, np.asarray(scores, dtype=float), strict=True
    ):
        total[top : top + crop.shape[0], left : left + crop.shape[1]] += score
        count[top : top + crop.shape[0], left : left + crop.shape[1]] += 1
    # An image smaller than a tile was padded on all sides alike.
    top, left = ((side - own) // 2 for side, own in zip(tiles.shape, image.shape[:2], strict=True))
    part = np.s_[top : top + image.shape[0], left : left + image.shape[1]]
    covered = count[part] > 0
    mean = np.where(covered, total[part] / np.maximum(1, count[part]), 0.5)
    red, blue = np.clip(2 * mean, 0, 1), np.clip(2 - 2 * mean, 0, 1)
    colours = 255 * np.stack([red, np.minimum(red, blue), blue], axis=-1)
    mixed = np.where(covered[..., None], (1 - OPACITY) * image + OPACITY * colours, image)
    return np.asarray(cv2.convertScaleAbs(mixed), dtype=np.uint8)


TILES = "tiles"


@dataclass(frozen=True)
class _Seen:
    """One image, as far as it could be read."""

    path: str
    error: str
    header: Header | None
    image: NDArray[np.uint8] | None
    """Kept for a heatmap only."""
    crops: dict[str, list[NDArray[np.uint8]]]
    """View → its crops."""
    tiles: Tiles | None


class Examiner:
    """Read, score and judge images, a few at a time.

    Args:
        method: the detector, in evaluation mode.
        point: its operating point.
        rules: of the desk.
        views: altered copies that must agree.
        tiles: most squares that an image is also looked at in; 0: none.
        batch_size: crops scored at a time.
        draw: takes the name of an image and the picture with its tiles' scores; None: none are made.
    """

    def __init__(
        self,
        method: Detector,
        point: OperatingPoint,
        rules: Rules,
        views: list[View],
        tiles: int,
        batch_size: int,
        draw: Callable[[str, NDArray[np.uint8]], None] | None = None,
    ) -> None:
        self.method, self.point, self.rules = method, point, rules
        self.views = [View(ORIGINAL, 0), *views]
        self.size, self.policy = method.identity["crop_size"], method.identity["eval_policy"]
        self.tiles, self.batch_size, self.draw = tiles, batch_size, draw
        self.qualities = (method.identity.get("training_data") or {}).get("jpeg_quality")

    def rows(self, paths: list[str]) -> list[dict[str, Any]]:
        """Give the row of each path."""
        with ThreadPoolExecutor(4) as pool:
            return self._rows(list(pool.map(self._look, paths)))

    def row(self, name: str, data: bytes) -> dict[str, Any]:
        """Give the row of a file's content."""
        return self._rows([self._look_at(name, data)])[0]

    def _rows(self, seen: list[_Seen]) -> list[dict[str, Any]]:
        logits, distances = self._score(
            [crop for one in seen for crops in one.crops.values() for crop in crops]
        )
        rows, start = [], 0
        for one in seen:
            row: dict[str, Any] = {"path": shown_path(one.path), "error": one.error or None}
            if one.header is not None:
                row |= {"width": one.header.width, "height": one.header.height, "format": one.header.format,
                        "jpeg_quality": one.header.jpeg_quality or None}  # fmt: skip
            if one.crops:
                stop = start + sum(len(crops) for crops in one.crops.values())
                row |= self._judge(one, logits[start:stop], distances[start:stop])
                start = stop
            rows.append(row)
        return rows

    def _look(self, path: str) -> _Seen:
        try:
            return self._look_at(path, read_bytes(path))
        except DecodeError as error:
            return _Seen(path, error.reason, None, None, {}, None)

    def _look_at(self, path: str, data: bytes) -> _Seen:
        header = None
        try:
            header = parse_header(data)
            image = decode_image(data)
        except DecodeError as error:
            return _Seen(path, error.reason, header, None, {}, None)
        # Copied: a crop that is a part of its image would keep all of it in memory.
        crops = {
            view.name: [crop.copy() for crop in degraded_views(image, view, self.size, self.policy, 0)]
            for view in self.views
        }
        tiles = cut_tiles(image, self.size, self.tiles) if self.tiles else None
        if tiles is not None:
            crops[TILES] = tiles.crops
        return _Seen(path, "", header, image if self.draw else None, crops, tiles)

    def _score(self, crops: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        logits, distances = [np.zeros(0)], [np.zeros(0)]
        with torch.inference_mode():
            for start in range(0, len(crops), self.batch_size):
                part = np.stack(crops[start : start + self.batch_size]).transpose(0, 3, 1, 2)
                images = (
                    torch.from_numpy(np.ascontiguousarray(part)).to(self.method.device).float().div(255.0)
                )
                scores = self.method.score_views(images[:, None])
                logits.append(scores.logit.cpu().double().numpy())
                distances.append(scores.trace_distance.cpu().double().numpy())
        return np.concatenate(logits), np.concatenate(distances)

    def _judge(
        self, one: _Seen, logits: NDArray[np.float64], distances: NDArray[np.float64]
    ) -> dict[str, Any]:
        means, start = {}, 0
        for name, crops in one.crops.items():
            part = slice(start, start := start + len(crops))
            means[name] = (float(logits[part].mean()), float(distances[part].mean()))
        logit, distance = means.pop(ORIGINAL)
        if not math.isfinite(logit):
            return {"error": "the detector gave no number for it"}
        said = decide(
            self.point,
            self.rules,
            logit,
            distance,
            {name: own for name, (own, _) in means.items()},
            self._doubts(one),
        )
        row = {**said.__dict__, "logit": logit}
        if one.tiles is not None:
            scores = self.point.calibration(logits[-len(one.tiles.crops) :])
            row["tile_score"] = float(scores.mean())
            if self.draw is not None and one.image is not None:
                self.draw(one.path, overlay(one.image, one.tiles, scores))
        return row

    def _doubts(self, one: _Seen) -> list[str]:
        """Say why an image lies outside of what the detector was made for."""
        assert one.header is not None
        doubts = []
        shorter = min(one.header.width, one.header.height)
        if shorter < self.size:
            doubts.append(f"smaller than the {self.size} pixels that the detector looks at")
        if self.qualities and 0 < one.header.jpeg_quality < self.qualities[0]:
            doubts.append(
                f"compressed harder (JPEG quality {one.header.jpeg_quality}) than 95 in 100 of the pictures that the "
                f"detector learned from (quality {self.qualities[0]:.0f} and up)"
            )
        return doubts


def write_heatmap(folder: Path, path: str, picture: NDArray[np.uint8]) -> None:
    """Write the picture of an image's tiles into a folder.

    Raises:
        UserError: the folder cannot be written.
    """
    # Files of one name may lie in several folders.
    mark = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    target = folder / f"{shown_path(Path(path).stem)[:80]}_{mark}.png"
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.tobytes() if done else b"")
    except OSError as error:
        raise UserError(f"heatmaps={folder} cannot be written: {error.strerror}") from error


def shown_path(path: str) -> str:
    """Write a path so that any file can hold it."""
    return path.encode("utf-8", "backslashreplace").decode()


log = logging.getLogger("fakedet")


def open_detector(config: DictConfig) -> tuple[Detector, OperatingPoint]:
    """Load the checkpoint, check the desk's settings, and say what the detector knows.

    Raises:
        UserError: no such checkpoint, or one without an operating point, or settings out of range.
    """
    _check_numbers(config)
    for name in config.views:
        parse_view(str(name), "views")
    method = load_detector(config.checkpoint)
    point = method.operating_point
    if point is None:
        raise UserError(
            f"checkpoint={config.checkpoint} has no operating point, so nothing can be said of single images; train it "
            "anew with this version, or use `fakedet evaluate`"
        )
    _introduce(method, point, Rules(config.false_alarm, config.miss))
    return method.eval().to(_device(config.device)), point


def make_examiner(
    config: DictConfig,
    method: Detector,
    point: OperatingPoint,
    draw: Callable[[str, NDArray[np.uint8]], None] | None,
) -> Examiner:
    """Give the examiner that the desk's settings describe."""
    views = [parse_view(str(name), "views") for name in config.views]
    rules = Rules(config.false_alarm, config.miss)
    return Examiner(method, point, rules, views, config.tiles, config.batch_size, draw)


def _check_numbers(config: DictConfig) -> None:
    for name in ("false_alarm", "miss"):
        if not 0 < config[name] < 1:
            raise UserError(f"{name}={config[name]}: a share between 0 and 1, such as 0.05")
    for name, least in (
        ("tiles", 0),
        ("batch_size", 1),
        ("images_at_a_time", 1),
        ("max_mb", 1),
        ("per_minute", 1),
    ):
        if name in config and config[name] < least:
            raise UserError(f"{name}={config[name]}: must be at least {least}")


def _introduce(method: Detector, point: OperatingPoint, rules: Rules) -> None:
    """Say what the detector knows, and what it cannot promise."""
    data = method.identity.get("training_data") or {}
    log.info("detector '%s', trained on fakes of: %s", method.identity["name"],
             ", ".join(method.identity["seen_generators"]) or "none (it knows reals only)")  # fmt: skip
    if data:
        log.info("and on reals of the sources: %s", ", ".join(data["real"]))
    log.info("of photographs like its %d validation reals (the same sources) about %g %% are called fake; of fakes "
             "like its %d validation fakes about %g %% are called real; of other photographs and generators nothing "
             "is promised",
             point.n_real, 100 * rules.false_alarm, point.n_fake, 100 * rules.miss)  # fmt: skip
    if resolution(point) > rules.false_alarm:
        log.warning("with %d validation reals no p-value can be below %.3f: nothing will be called fake",
                    point.n_real, resolution(point))  # fmt: skip


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}; valid: auto, cpu, cuda") from error
    return device
