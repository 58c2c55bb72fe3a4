"""A loaded detector: verdicts, logits and embeddings of images, for Python, `fakedet predict` and `fakedet serve`.

For a verdict, crops of the image, of altered copies and of tiles spread over it are scored in batches; each group's
logits are averaged; :func:`decide` compares them with the detector's operating point.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fakedet.checkpoint import load_detector, locate
from fakedet.data import decode
from fakedet.data.decode import MAX_MEMORY, Budget, DecodeError, Header
from fakedet.data.degrade import FAMILIES, ORIGINAL, View, degraded_views, parse_view
from fakedet.data.kinds import FIRST, NOT_LOOKED_AT, is_named_like_an_image, not_looked_at, what_is
from fakedet.data.scan import walk
from fakedet.data.transforms import evaluation_views, is_whole
from fakedet.data.video import frames_of
from fakedet.errors import UserError
from fakedet.methods import base
from fakedet.metrics.decisions import PUBLISHED, OperatingPoint
from fakedet.provenance import WORDS, Provenance, read_provenance
from fakedet.published import load_published, settings_of
from fakedet.shipped import DEFAULT, DEMO, SHIPPED
from fakedet.tiles import Pixels, Tiles, cut_tiles, draw_heatmap

log = logging.getLogger("fakedet")

Single: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Pixels"
SINGLE = (str, os.PathLike, bytes, Image.Image, np.ndarray)
Result = TypeVar("Result")
Verdict: TypeAlias = Literal["real", "fake", "undecided"]

REAL: Verdict = "real"
FAKE: Verdict = "fake"
UNDECIDED: Verdict = "undecided"
FRAME = "frame"  # begins the names of a video's frames among its views
TILES = "tiles"  # stands for the tiles' mean among the views of an image
CROPS = ("crop", "multi-crop")  # policies that look at a picture's own pixels
# Whether video compression looks like generation to a detector, or hides it, was not measured.
UNTRIED = "a video, and the detector was tested with pictures only"
READERS = 4  # threads that read and decode files
HEATMAP = "heatmap"  # stands for the tiles of the heatmap, which have no part in the verdict
STAGES = {ORIGINAL: 0, FRAME: 0, HEATMAP: 0, TILES: 2}  # in which views are scored; altered copies between
HEATMAP_BYTES = 4.0  # for each pixel of an image, which stays in memory until the heatmap is drawn
HEATMAP_TILES = 64  # squares of a heatmap at most


@dataclass(frozen=True)
class Rules:
    """The errors that a user accepts, and what must agree; UserError for a value out of range and an unknown view."""

    false_alarm: float = 0.05  # share of real photographs that may be called fake
    miss: float = 0.05  # share of fakes, of generators like those in validation, that may be called real
    views: tuple[str, ...] = ("jpeg/80", "resize/0.75")  # altered copies that must agree, as in conf/robustness
    tiles: int = 9  # largest number of squares, spread over the image, whose mean must agree too; 0: none
    frames: int = 8  # of a video, spread over it, that are judged; 0: videos are not looked at
    # Score copies and tiles of every image, also where the image alone leaves the verdict undecided.
    all_views: bool = False

    def __post_init__(self) -> None:
        for name in ("false_alarm", "miss"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: a share between 0 and 1, such as 0.05")
        for name in ("tiles", "frames"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 0")
        for name in self.views:
            parse_view(name, "views")


@dataclass(frozen=True)
class Prediction:
    """What a detector says about one image; a file that cannot be read has ``error`` and no verdict."""

    path: str = ""
    """The file; "" for an image that was given as pixels or bytes."""
    verdict: Verdict | None = None
    """"real", "fake" or "undecided"; None if the file cannot be read. Never "real" for a file that declares AI."""
    declares: str = ""
    """What the file says of itself: "generated", "edited" (with AI), "captured" (by a camera), or "" for nothing."""
    provenance: str = ""
    """The same in a sentence, with the field where it stands; "" for pixels. Anybody can write and remove it."""
    c2pa: str = ""
    """State of the file's C2PA manifest: "valid", "invalid", "unread" (c2pa-python is missing), or "" for none."""
    score: float = math.nan
    """Calibrated P(fake), for as many real as fake images."""
    p_value: float = math.nan
    """Share of held-out real images that look at least as unusual; NaN if the checkpoint has no reference."""
    stability: float = math.nan
    """Share of altered copies and tiles on the same side of the threshold as the image, of those that were scored; NaN
    without any, as where the image alone leaves the verdict undecided."""
    reason: str = ""
    """Why the verdict is what it is. Of a video, also which of its frames look fake."""
    logit: float = math.nan
    """What the detector gives before calibration; higher is more likely fake."""
    tile_score: float = math.nan
    """Mean calibrated P(fake) of the tiles; NaN where none were scored."""
    width: int | None = None
    """Of the file, in pixels, before its EXIF orientation is applied, as is the height."""
    height: int | None = None
    format: str | None = None
    """PIL's name of the file format, such as JPEG; None for pixels."""
    jpeg_quality: int | None = None
    """1 to 100, estimated from the quantisation tables; None if not a JPEG."""
    error: str | None = None
    """Why the file cannot be read or scored, or, beginning with "not looked at", is no image; None otherwise."""
    sha256: str = ""
    """Of the file, which ties the answer to it; "" for a video, a file that was not looked at, and pixels."""


COLUMNS = tuple(one.name for one in fields(Prediction))  # of predictions.csv and of Detector.predict's table


def decide(
    point: OperatingPoint, rules: Rules, logit: float, distance: float, others: dict[str, float], doubts: Sequence[str]
) -> Prediction:
    """Give the verdict that the numbers allow, as a prediction without path and file facts.

    ``logit`` and ``distance`` are those of the image (the trace distance is NaN where the method has none), ``others``
    holds the mean logit of each altered copy and of the tiles, and ``doubts`` say why the detector was not made for
    such an image. "fake" needs a p-value among real images of at most ``rules.false_alarm``; "real" needs a logit below
    all but ``rules.miss`` of the validation fakes, and no such p-value. The verdict is "undecided" where neither or
    both hold, where an altered copy or the tiles disagree, and where there are doubts.
    """
    score = float(point.calibration([logit])[0])
    p_value = float(point.reference.p_values([logit], [distance])[0]) if point.reference else math.nan
    above = logit > point.threshold
    disagree = [name for name, value in others.items() if (value > point.threshold) != above]
    stability = 1 - len(disagree) / len(others) if others else math.nan
    unusual = above if math.isnan(p_value) else p_value <= rules.false_alarm
    low = logit <= point.lowest_fake(rules.miss)
    verdict, reason = UNDECIDED, ""
    if doubts:
        reason = "; ".join(doubts)
    elif unusual and low:
        reason = "unlike the photographs and unlike the fakes that the detector was tested with"
    elif not unusual and not low:
        reason = "neither clearly like the photographs nor clearly like the fakes that the detector was tested with"
    elif disagree:
        reason = f"another answer for {', '.join(_in_words(name) for name in disagree)}"
    else:
        agreed = "; its copies and tiles say the same" if TILES in others else ""
        verdict = FAKE if unusual else REAL
        reason = (f"it looks less like a photograph than {100 * (1 - rules.false_alarm):g} in 100 photographs that the "
                  f"detector was tested with{agreed}") if unusual else (
                  f"it looks more like a photograph than {100 * (1 - rules.miss):g} in 100 fakes that the detector was "
                  f"tested with{agreed}")  # fmt: skip
    return Prediction(verdict=verdict, score=score, p_value=p_value, stability=stability, reason=reason, logit=logit)


def _in_words(view: str) -> str:
    family, _, severity = view.partition("/")
    words = {"jpeg": "saved as JPEG of quality", "resize": "scaled by"}
    told = f"{words[family]} {severity}" if family in words else f"altered by {view}"
    return {TILES: "the tiles of the image", FRAME: f"the frame at {severity}"}.get(family, f"a copy {told}")


def _told_frames(logits: Mapping[str, float], threshold: float) -> str:
    """Say which of a video's frames look fake."""
    above = [name.partition("/")[2] for name, logit in logits.items() if logit > threshold]
    where = f", at {', '.join(above)}" if above else ""
    return f"{len(above)} of {len(logits)} frames look fake{where}"


@dataclass(frozen=True)
class Picture:
    """An image as far as it could be read, and what is cut out of it to be scored."""

    path: str = ""
    header: Header | None = None
    pixels: Pixels | None = None  # (H, W, 3) RGB; None if it could not be read, or is not needed any more
    error: str | None = None
    crops: Mapping[str, list[Pixels]] = field(default_factory=dict)  # of each view
    tiles: Mapping[str, Tiles] = field(default_factory=dict)  # "tiles" and "heatmap"
    provenance: Provenance = Provenance()  # noqa: RUF009  # frozen
    sha256: str = ""


def read_picture(source: Single, max_memory: int = MAX_MEMORY, each: float = 0.0) -> Picture:
    """Read an image; a file that cannot be read gives a picture with an ``error``.

    So does one that takes more than ``max_memory`` bytes to read and decode, or at ``each`` bytes a pixel. UserError
    for an object that is no image, and for an array that is not uint8 (H, W, 3).
    """
    _check_image(source)
    path, header, provenance, digest = "", None, Provenance(), ""
    try:
        if isinstance(source, Image.Image):
            header = decode.header_of(source)
            return Picture(path, header, decode.decode_opened(source))
        if isinstance(source, np.ndarray):
            return Picture(path, Header("", source.shape[1], source.shape[0], 0, ""), source)
        if isinstance(source, str | os.PathLike):
            path = shown_path(os.fspath(source))
            if not is_named_like_an_image(path) and (why := not_looked_at(decode.read_bytes(source, FIRST), path)):
                return Picture(path, error=why)
        data = source if isinstance(source, bytes) else decode.read_bytes(os.fspath(source))
        digest, provenance = hashlib.sha256(data).hexdigest(), read_provenance(data)
        left = max_memory - 2 * len(data)
        header = decode.parse_header(data, left, each)
        pixels = decode.decode_image(data, max_memory=left)
        return Picture(path, header, pixels, provenance=provenance, sha256=digest)
    except DecodeError as error:
        return Picture(path, header, error=error.reason, provenance=provenance, sha256=digest)


def shown_path(path: str) -> str:
    """Write a path so that any file can hold it: bytes that are not UTF-8 become escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


def files_below(folder: str | os.PathLike[str], left_behind: Counter[str]) -> Iterator[str]:
    """Yield the paths of all files in and below a folder, by name, whether they are images or not.

    What systems and other programs keep there is left aside, and added to ``left_behind``.
    """
    for listing in walk(Path(folder)):
        left_behind.update(listing.left_behind)
        names = [name for name, _, _ in listing.images] + [name for name, _ in listing.problems] + listing.others
        yield from (str(Path(folder, listing.folder, name)) for name in sorted(names))


def _use(given: Single | Picture, budget: Budget, use: Callable[[Picture], Result], each: float = 0.0) -> Result:
    """Use an image; one that is not read yet is read as soon as the budget has the memory for it and its use."""
    if isinstance(given, Picture):
        return use(given)
    with budget.take(0 if isinstance(given, Image.Image | np.ndarray) else decode.memory_to_read(given, budget, each)):
        return use(read_picture(given, budget.total, each))


class Detector:
    """A trained detector of AI-generated images; :func:`load` makes one."""

    def __init__(self, module: base.Detector, device: torch.device, path: Path) -> None:
        self.module = module.eval().to(device)
        """The LightningModule, in evaluation mode; ``module(images)`` keeps gradients."""
        self.path = path
        """The file of the checkpoint."""
        self.info: dict[str, Any] = module.info
        """What the checkpoint says about itself: model config, training data, seed, operating point, ..."""
        self.operating_point: OperatingPoint | None = module.operating_point
        """Threshold, calibration and reference, fitted after training; None if the checkpoint has none."""
        self.crop_size = int(self.info["crop_size"])
        """Side in pixels of the squares that the detector looks at."""
        self.crop_policy = str(self.info["eval_policy"])
        """How they are taken: "crop" (the centre), "multi-crop" (the mean of five), "resize" (the shorter side to that
        many pixels, then the centre), torchvision's steps, such as "shorter256-bicubic+centre", or whole pictures."""
        self.generators: list[str] = list(self.info["seen_generators"])
        """Generators whose fakes it was trained on."""
        self.memory_mb = MAX_MEMORY // 10**6
        """Megabytes that files may take beside the model while they are read; one that takes more gets an error."""

    def __repr__(self) -> str:
        return (f"Detector('{self.path}', method '{self.info['model']['name']}', crops of {self.crop_size} pixels, "
                f"trained on fakes of: {', '.join(self.generators) or 'none'})")  # fmt: skip

    @overload
    def predict(  # type: ignore[overload-overlap]  # an array is an iterable of anything
        self, x: Image.Image | Pixels | bytes, *, false_alarm: float = ..., miss: float = ...,
        views: Sequence[str] = ..., tiles: int = ..., frames: int = ..., all_views: bool = ..., batch_size: int = ...
    ) -> Prediction: ...  # fmt: skip
    @overload
    def predict(self, x: str | os.PathLike[str], *, false_alarm: float = ..., miss: float = ...,
                views: Sequence[str] = ..., tiles: int = ..., frames: int = ..., all_views: bool = ...,
                batch_size: int = ...) -> Any: ...  # fmt: skip
    @overload
    def predict(self, x: Iterable[Single] | Tensor, *, false_alarm: float = ..., miss: float = ...,
                views: Sequence[str] = ..., tiles: int = ..., frames: int = ..., all_views: bool = ...,
                batch_size: int = ...) -> pd.DataFrame: ...  # fmt: skip

    def predict(
        self, x: Single | Iterable[Single] | Tensor, *, false_alarm: float = 0.05, miss: float = 0.05,
        views: Sequence[str] = ("jpeg/80", "resize/0.75"), tiles: int = 9, frames: int = 8, all_views: bool = False,
        batch_size: int = 64,
    ) -> Prediction | pd.DataFrame:  # fmt: skip
        """Classify images as real, fake or undecided.

        Args:
            x: a path of an image or a video, a folder (searched to all depths; each file gets a row), a PIL image, a
                uint8 array (H, W, 3) in RGB, the bytes of an image file, a list of these, or a tensor (N, 3, H, W),
                uint8 or float in [0, 1] (rounded to 8 bits).
            false_alarm: share of real photographs that may be called fake.
            miss: share of fakes, of generators like those in validation, that may be called real.
            views: altered copies that must agree, family/severity as in conf/robustness.
            tiles: largest number of squares, spread over the image, whose mean must agree; 0: none.
            frames: number of a video's frames, spread over it, that are judged; 0: videos are not looked at.
            all_views: score copies and tiles of every image, also where the image alone leaves the verdict undecided;
                verdicts are the same, ``stability`` and ``tile_score`` are known of all.
            batch_size: number of crops to score at a time.

        Returns:
            A :class:`Prediction` for one image; for a folder, a list or a tensor, a table with its fields as columns.

        Raises:
            UserError: the checkpoint has no operating point, a setting is out of range, or ``x`` has a wrong type,
                dtype, range or shape. A file that cannot be read is a prediction with an ``error``.
        """
        _check_batch_size(batch_size)
        rules = Rules(false_alarm, miss, (views,) if isinstance(views, str) else tuple(views), tiles, frames, all_views)
        pictures = _pictures(x)
        found: list[Prediction] = []
        while part := list(islice(pictures, 16)):  # all crops of so many images are in memory at once
            found += [prediction for prediction, _ in self.examine(part, rules, batch_size)]
        if isinstance(x, SINGLE) and not (isinstance(x, str | os.PathLike) and os.path.isdir(x)):
            return found[0]
        return pd.DataFrame([asdict(one) for one in found], columns=list(COLUMNS))

    def embed(self, x: Single | Iterable[Single] | Tensor, *, batch_size: int = 64) -> NDArray[np.float32]:
        """Give the embedding of images, the mean over the crops of :attr:`crop_policy`.

        Args:
            x: as for :meth:`predict`, without videos; of a folder, the files that are named like images; a tensor is
                cropped as in a call of the detector.
            batch_size: number of images to embed at a time.

        Returns:
            (N, D) float32, in the order of ``x``; (1, D) for one image.

        Raises:
            UserError: ``x`` has a wrong type, dtype, range or shape, or a file cannot be read.
        """
        _check_batch_size(batch_size)
        batch_size = 1 if is_whole(self.crop_policy) else batch_size
        budget = Budget(self.memory_mb * 10**6)

        def crops(picture: Picture) -> Pixels:
            if picture.pixels is None:
                raise UserError(f"{picture.path or 'an image'} cannot be read: {picture.error}")
            return np.stack(evaluation_views(picture.pixels, self.crop_size, self.crop_policy))

        with ThreadPoolExecutor(READERS) as pool, torch.no_grad():
            if isinstance(x, Tensor):
                _check_tensor(x)
                batches: Iterable[Tensor] = (self._views(part) for part in x.split(batch_size))
            else:
                pictures = _pictures(x, all_files=False)
                parts = iter(lambda: list(islice(pictures, batch_size)), [])
                read = (list(pool.map(lambda given: _use(given, budget, crops), part)) for part in parts)
                batches = (self._on_device(np.stack(views)).movedim(-1, 2) for views in read)
            # One black image first, whose row is left out: no image at all has a (0, D) embedding too.
            none = torch.zeros(1, 1, 3, self.crop_size, self.crop_size, device=self.module.device)
            found = [self.module.score_views(none).embedding[:0]]
            found += [self.module.score_views(views).embedding for views in batches if len(views)]
        return torch.cat(found).float().cpu().numpy()

    def __call__(self, images: Tensor, *, batch_size: int = 64) -> Tensor:
        """Give the logits of a batch, without gradients.

        Images of any size are cropped by :attr:`crop_policy`: "crop" scores the centre square of :attr:`crop_size`
        pixels, "multi-crop" averages the centre and the four corners, and smaller images are padded by reflection. A
        detector that resizes takes only images of :attr:`crop_size`, one that looks at whole pictures any.

        Args:
            images: float (N, 3, H, W), RGB in [0, 1], not normalised, on any device.
            batch_size: number of images to score at a time.

        Returns:
            (N,) float32 on the device of ``images``; higher is more likely fake.

        Raises:
            UserError: another type, dtype, range or shape.
        """
        wanted = "wanted a float tensor (N, 3, H, W) in [0, 1]"
        if not isinstance(images, Tensor):
            raise UserError(f"{_kind(images)}: {wanted}; predict and embed take other images")
        if not images.is_floating_point():
            raise UserError(f"a tensor of {images.dtype}: {wanted}; divide uint8 by 255, as in detector(images / 255)")
        _check_tensor(images)
        _check_batch_size(batch_size)
        with torch.no_grad():
            parts = [self.module.score_views(self._views(part)).logit for part in images.split(batch_size)]
        return torch.cat(parts).to(images.device)

    def heatmap(self, x: Single, *, tiles: int = HEATMAP_TILES) -> Pixels:
        """Draw the scores of squares of an image over it, in grey: blue is real, red is fake, white is in between.

        Args:
            x: one image, as for :meth:`predict`.
            tiles: largest number of squares, at least 1; they overlap by half if that many suffice.

        Returns:
            (H, W, 3) uint8 in RGB: the image, shrunk to at most 1600 pixels, and a legend below it.

        Raises:
            UserError: as by :meth:`predict`, and for a file that cannot be read.
        """
        if tiles < 1:
            raise UserError(f"tiles={tiles}: must be at least 1")
        ((prediction, drawn),) = self.examine([read_picture(x)], Rules(), heatmap_tiles=tiles)
        if drawn is None:
            raise UserError(f"{prediction.path or 'the image'} cannot be read: {prediction.error}")
        return drawn

    def examine(
        self, pictures: Sequence[Single | Picture], rules: Rules, batch_size: int = 64, heatmap_tiles: int = 0
    ) -> Iterator[tuple[Prediction, Pixels | None]]:
        """Judge a few images, given as for :meth:`predict` or as read, all of whose crops are in memory at once.

        Copies and tiles are scored where they can change the verdict, or if the rules ask for all. ``batch_size`` crops
        are scored at a time. Yields each image's prediction, and, with ``heatmap_tiles`` above 0, for which all pixels
        stay in memory, its heatmap of at most so many squares. UserError if the checkpoint has no operating point.
        """
        point, budget = self.require_operating_point(), Budget(self.memory_mb * 10**6)
        each = HEATMAP_BYTES if heatmap_tiles else 0.0
        if self.crop_policy != "crop":  # whole images are altered
            altered = [parse_view(name, "views") for name in rules.views]
            scales = [max(1.0, FAMILIES[view.family].scale(view.severity)) for view in altered]
            each = max([each, *(3 + 12 * scale**2 for scale in scales)])
        with ThreadPoolExecutor(READERS) as pool:
            cut = partial(self._cut, rules=rules, heatmap_tiles=heatmap_tiles)
            seen = list(pool.map(lambda given: self._other(given, rules, budget) or _use(given, budget, cut, each),
                                 pictures))  # fmt: skip
        numbers: list[dict[str, NDArray[np.float64]]] = [{} for _ in seen]
        for stage in range(3):
            still = [place for place, picture in enumerate(seen) if rules.all_views or not numbers[place]
                     or self._judge(picture, point, rules, numbers[place]).verdict in (REAL, FAKE)]  # fmt: skip
            wanted = [(place, view) for place in still for view in seen[place].crops
                      if STAGES.get(view.partition("/")[0], 1) == stage]  # fmt: skip
            scored = self._score([seen[place].crops[view] for place, view in wanted], batch_size)
            for (place, view), values in zip(wanted, scored, strict=True):
                numbers[place][view] = values
            for own, picture in zip(numbers, seen, strict=True):
                if own and ORIGINAL not in picture.crops:  # a video is all its frames
                    own.setdefault(ORIGINAL, np.concatenate(list(own.values()), axis=1))
        for picture, own in zip(seen, numbers, strict=True):
            said, drawn = self._judge(picture, point, rules, own), None
            if picture.pixels is not None and HEATMAP in own and said.verdict is not None:
                words = f"{said.verdict}, P(fake) {said.score:.2f}"
                drawn = draw_heatmap(picture.pixels, picture.tiles[HEATMAP], point.calibration(own[HEATMAP][0]), words)
            yield said, drawn

    def _cut(self, picture: Picture, rules: Rules, heatmap_tiles: int) -> Picture:
        """Cut the crops of an image and its copies; its pixels are kept only where a heatmap is drawn on them."""
        if (image := picture.pixels) is None:
            return picture
        crops = {}
        for view in (View(ORIGINAL, 0), *(parse_view(name, "views") for name in rules.views)):
            try:
                cut = degraded_views(image, view, self.crop_size, self.crop_policy, 0)
            except DecodeError as error:
                return replace(picture, pixels=None, error=error.reason)
            # Copied: a crop that is a part of its image would keep all of it in memory.
            crops[view.name] = [crop.copy() for crop in cut]
        asked = {TILES: (rules.tiles, False), HEATMAP: (heatmap_tiles, True)}
        tiles = {
            name: cut_tiles(image, self.crop_size, most, overlap) for name, (most, overlap) in asked.items() if most
        }
        crops |= {name: one.crops for name, one in tiles.items()}
        return replace(picture, pixels=image if heatmap_tiles else None, crops=crops, tiles=tiles)

    def _score(self, groups: Sequence[Sequence[Pixels]], batch_size: int) -> list[NDArray[np.float64]]:
        """Give the logits and trace distances (2, n) of each group of crops."""
        crops = [crop for group in groups for crop in group]
        numbers = [np.zeros((2, 0))]
        batch_size = 1 if is_whole(self.crop_policy) else batch_size
        with torch.inference_mode():
            for start in range(0, len(crops), batch_size):
                batch = np.ascontiguousarray(np.stack(crops[start : start + batch_size]).transpose(0, 3, 1, 2))
                scores = self.module.score_views(self._on_device(batch)[:, None])
                numbers.append(torch.stack([scores.logit, scores.trace_distance]).cpu().double().numpy())
        ends = np.cumsum([len(group) for group in groups], dtype=int)
        return np.split(np.concatenate(numbers, axis=1), ends, axis=1)[: len(groups)]

    def _other(self, given: Single | Picture, rules: Rules, budget: Budget) -> Picture | None:
        """Tell a file that is no image by its first bytes, and cut the crops of a video's frames; None for an image."""
        if not isinstance(given, str | os.PathLike) or is_named_like_an_image(path := shown_path(os.fspath(given))):
            return None
        try:
            first = decode.read_bytes(given, FIRST)
            if not (what := what_is(first, path)).startswith("a video"):
                why = not_looked_at(first, path)
                return Picture(path, error=why) if why else None
            if not rules.frames:
                return Picture(path, error=f"{NOT_LOOKED_AT}: {what}, and frames=0")
            crops, size = dict[str, list[Pixels]](), (0, 0)  # which take the place of altered copies and tiles
            with budget.take(budget.total):
                for seconds, frame in frames_of(given, rules.frames, budget.total):
                    name = f"{FRAME}/{int(seconds) // 60}:{int(seconds) % 60:02}"
                    cut = degraded_views(frame, View(ORIGINAL, 0), self.crop_size, self.crop_policy, 0)
                    crops.setdefault(name, []).extend(crop.copy() for crop in cut)
                    size = frame.shape[1::-1]
        except DecodeError as error:
            return Picture(path, error=error.reason)
        header = Header(what.partition("(")[2].rstrip(")"), *size, 0, "")
        return Picture(path, header, crops=crops)

    def _judge(
        self, picture: Picture, point: OperatingPoint, rules: Rules, numbers: Mapping[str, NDArray[Any]]
    ) -> Prediction:
        """Turn the logits and trace distances (2, n) of the views that were scored into a prediction."""
        origin = picture.provenance
        facts: dict[str, Any] = {"path": picture.path, "error": picture.error, "sha256": picture.sha256,
                                 "declares": origin.declares, "provenance": origin.sentence,
                                 "c2pa": origin.c2pa}  # fmt: skip
        if (header := picture.header) is not None:
            facts |= {"width": header.width, "height": header.height, "format": header.format or None,
                      "jpeg_quality": header.jpeg_quality or None}  # fmt: skip
        if not numbers:
            return Prediction(**facts)
        means = {view: [float(row.mean()) for row in rows] for view, rows in numbers.items() if view != HEATMAP}
        logit, distance = means.pop(ORIGINAL)
        if not math.isfinite(logit):
            return Prediction(**facts | {"error": "the detector gave no number for it"})
        others = {name: mean for name, (mean, _) in means.items()}
        doubts = self._doubts(header)
        if frames := {name: mean for name, mean in others.items() if name.startswith(FRAME)}:
            doubts += [UNTRIED, _told_frames(frames, point.threshold)]
        said = decide(point, rules, logit, distance, others, doubts)
        if said.verdict == REAL and origin.declares in WORDS:
            why = f"the file says of itself that it was {WORDS[origin.declares]} ({origin.claims[0].where})"
            said = replace(said, verdict=UNDECIDED, reason=why)
        if TILES in numbers:
            facts["tile_score"] = float(point.calibration(numbers[TILES][0]).mean())
        return replace(said, **facts)

    def require_operating_point(self) -> OperatingPoint:
        """Give the operating point; UserError if there is none, because single images cannot be judged without it."""
        if self.operating_point is None:
            raise UserError(f"checkpoint={self.path} has no operating point, so nothing can be said of single images; "
                            "train it anew with this version, or use `fakedet evaluate`")  # fmt: skip
        return self.operating_point

    def _doubts(self, header: Header | None) -> list[str]:
        """Say why an image lies outside of what the detector was made for."""
        assert header is not None
        doubts: list[str] = []
        if self.require_operating_point().split == PUBLISHED:  # its authors' code has none
            return doubts
        if min(header.width, header.height) < self.crop_size:
            doubts.append(f"smaller than the {self.crop_size} pixels that the detector looks at")
        qualities = (self.info.get("training_data") or {}).get("jpeg_quality")
        # Five points of quality change little, and 75, the default of many programs, is often just below.
        if qualities and 0 < header.jpeg_quality < qualities[0] - 5:
            doubts.append(f"compressed harder (JPEG quality {header.jpeg_quality}) than 95 in 100 of the pictures that "
                          f"the detector learned from (quality {qualities[0]:.0f} and up)")  # fmt: skip
        return doubts

    def _on_device(self, pixels: Pixels) -> Tensor:
        return torch.from_numpy(pixels).to(self.module.device).float().div(255.0)

    def _views(self, images: Tensor) -> Tensor:
        """Crop a batch (N, 3, H, W) as evaluation does, into float (N, V, 3, S, S) on the detector's device."""
        size, (height, width) = self.crop_size, images.shape[-2:]
        if is_whole(self.crop_policy):
            return images.to(self.module.device).float().div(255.0 if images.dtype == torch.uint8 else 1.0)[:, None]
        if self.crop_policy not in CROPS and (height, width) != (size, size):
            raise UserError(f"a tensor of images of {height} x {width} pixels: this detector resizes images to {size} "
                            f"x {size} first; give it a tensor of that size, or files")  # fmt: skip
        # Crop a picture of pixel numbers in place of the images: the same places and the same padding for all.
        rows, columns = np.indices((height, width))
        numbers = np.stack([rows, columns, columns], axis=-1)
        policy = self.crop_policy if self.crop_policy in CROPS else "crop"
        batch = images.to(self.module.device)
        batch = batch.float().div(255.0) if batch.dtype == torch.uint8 else batch.float()
        crops = [
            batch[..., torch.from_numpy(crop[..., 0].copy()), torch.from_numpy(crop[..., 1].copy())]
            for crop in evaluation_views(numbers, size, policy)  # type: ignore[arg-type]
        ]
        return torch.stack(crops, dim=1)


def load(
    checkpoint: str | os.PathLike[str] = DEFAULT, device: str | torch.device = "auto", trust: Sequence[str] = (),
    backbone: str | os.PathLike[str] | None = None, *, detector: str | Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Detector:  # fmt: skip
    """Load a detector.

    Args:
        checkpoint: a .ckpt file that ``fakedet train`` wrote, a .safetensors file that ``fakedet export`` wrote, or the
            name of a detector that comes with fakedet: "wide", which needs CLIP's weights, or "demo", a demonstration;
            or hf://OWNER/NAME, one on the Hugging Face hub.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        trust: names of packages, besides fakedet, whose classes the checkpoint may name.
        backbone: a file of the public weights of a frozen backbone, which checkpoints leave out; None: timm's cache or
            the network, or the file that FAKEDET_CLIP or FAKEDET_LITE names.
        detector: name of a published detector, which takes the place of the checkpoint, such as "univfd" (see
            docs/detectors.md), or its config.
        weights: the file that its authors published.

    Raises:
        UserError: no such file or device, no checkpoint of fakedet, a class from a package that is not trusted, a
            backbone that is not here or has other weights, or a file that is not of the published detector.
    """
    path = os.fspath(checkpoint)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: {str(error).splitlines()[0]}; valid: auto, cpu, cuda") from error
    if detector is not None:
        settings = settings_of(detector) if isinstance(detector, str) else detector
        return Detector(load_published(settings, weights, backbone), found, Path(weights or "").expanduser())
    packages = (trust,) if isinstance(trust, str) else tuple(trust)
    file = None if backbone is None else os.fspath(backbone)
    if (place := locate(path)) == SHIPPED["demo"]:
        log.warning("%s", DEMO)
    return Detector(load_detector(path, packages, file), found, place)


def _check_batch_size(size: int) -> None:
    if size < 1:
        raise UserError(f"batch_size={size}: must be at least 1")


def _pictures(x: Single | Iterable[Single] | Tensor, all_files: bool = True) -> Iterator[Single | Picture]:
    """Check all that :meth:`Detector.predict` takes, then list it, to be read by threads.

    Of folders all files, or those that are named like images.
    """
    if isinstance(x, Tensor):
        _check_tensor(x)
        pixels = x if x.dtype == torch.uint8 else (x.float() * 255).round().to(torch.uint8)
        items: Sequence[Single] = list(np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy()))
    else:
        items = [x] if isinstance(x, SINGLE) or not isinstance(x, Iterable) else list(x)
    for item in items:
        _check_image(item)
    for item in items:
        if isinstance(item, str | os.PathLike) and os.path.isdir(item):
            below = (path for path in files_below(item, Counter()) if all_files or is_named_like_an_image(path))
            if (first := next(below, None)) is None:
                raise UserError(f"{os.fspath(item)}: there are no images (jpg, png, webp, bmp, tif, ...)")
            yield first
            yield from below
        else:
            yield read_picture(item) if isinstance(item, Image.Image) else item  # PIL reads one in one thread only


def _check_image(image: object) -> None:
    """Refuse what is no image, and an array that is not (H, W, 3) uint8, and say how to make it one."""
    if not isinstance(image, SINGLE):
        raise UserError(f"{_kind(image)} is not an image; wanted: a path, a folder, a PIL image, a uint8 array (H, W, "
                        "3) in RGB, the bytes of an image file, a list of these, or a tensor (N, 3, H, W)")  # fmt: skip
    if not isinstance(image, np.ndarray):
        return
    told = f"an array of {image.dtype} of shape {image.shape}: wanted uint8 (H, W, 3) in RGB"
    if image.ndim == 4:
        raise UserError(f"{told}; pass a batch as a list, as in predict(list(images))")
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        raise UserError(f"{told}; put the channels last, as in image.transpose(1, 2, 0)")
    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"{told}; Image.fromarray(image).convert('RGB') converts grey and transparent images")
    if image.dtype != np.uint8:
        raise UserError(f"{told}, with values from 0 to 255; a batch of floats in [0, 1] is given as a tensor "
                        "(N, 3, H, W)")  # fmt: skip
    if 0 in image.shape:
        raise UserError(f"{told}, with at least one pixel")


def _check_tensor(images: Tensor) -> None:
    """Refuse a tensor that is not (N, 3, H, W), uint8 or float in [0, 1], and say how to make it one."""
    wanted = "wanted (N, 3, H, W) in RGB, uint8 or float in [0, 1]"
    told = f"a tensor of {images.dtype} of shape {tuple(images.shape)}: {wanted}"
    if images.ndim == 3:
        raise UserError(f"{told}; give a single image a batch dimension, as in image[None]")
    if images.ndim == 4 and images.shape[1] != 3 and images.shape[3] == 3:
        raise UserError(f"{told}; put the channels second, as in images.permute(0, 3, 1, 2)")
    is_image = images.dtype == torch.uint8 or images.is_floating_point()
    if not is_image or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise UserError(told)
    if images.is_floating_point():
        base.check_range(images)


def _kind(value: object) -> str:
    return f"an object of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
