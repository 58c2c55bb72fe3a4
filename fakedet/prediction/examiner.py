"""From the path of an image to its row: read, score, judge."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fakedet.data.decode import DecodeError, decode_image, read_bytes
from fakedet.data.degrade import ORIGINAL, View, degraded_views
from fakedet.data.header import Header, parse_header
from fakedet.errors import UserError
from fakedet.methods.detector import Detector
from fakedet.metrics.operating_point import OperatingPoint
from fakedet.prediction.desk import Rules, state
from fakedet.prediction.heatmap import overlay
from fakedet.prediction.tiles import Tiles, cut_tiles

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
        said = state(
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
