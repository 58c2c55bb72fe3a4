"""The demo data: real crops of photographs that installed packages bring along, and fakes of simulated generators.

Nothing is downloaded. The generators are small networks, trained only on the training photographs, that re-make crops.
No processing step gives the class away: fakes have the channel means and deviations of their crop, are grey where it is
grey, and lose their border; both classes are cut from windows of one size and go through the same blur, noise and JPEG,
and all files have the same number of bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.decode import DecodeError, read_image
from fakedet.data.manifest import Manifest, load_manifest
from fakedet.data.transforms import Pixels
from fakedet.errors import UserError
from fakedet.utils import bar, default_cache, threads

log = logging.getLogger("fakedet")

VERSION = 4  # Part of the cache's key; raise it when the code changes what it makes
# Package, folder in it; the order of photographs decides which crops are drawn. Read from the folder: scikit-image's
# own functions would download what is missing.
SKIMAGE, SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
MATPLOTLIB = ("matplotlib", "mpl-data/sample_data")
PHOTOS: dict[str, dict[str, tuple[tuple[str, str], str]]] = {
    "train": {
        "astronaut": (SKIMAGE, "astronaut.png"), "coffee": (SKIMAGE, "coffee.png"),
        "motorcycle": (SKIMAGE, "motorcycle_left.png"), "grass": (SKIMAGE, "grass.png"),
        "brick": (SKIMAGE, "brick.png"), "hubble": (SKIMAGE, "hubble_deep_field.jpg"),
        "clock": (SKIMAGE, "clock_motion.png"), "cell": (SKIMAGE, "cell.png"),
        "grace_hopper": (MATPLOTLIB, "grace_hopper.jpg"),
    },
    "val": {
        "flower": (SKLEARN, "flower.jpg"), "moon": (SKIMAGE, "moon.png"), "ihc": (SKIMAGE, "ihc.png"),
        "page": (SKIMAGE, "page.png"),
    },
    "test": {
        "chelsea": (SKIMAGE, "chelsea.png"), "china": (SKLEARN, "china.jpg"), "rocket": (SKIMAGE, "rocket.jpg"),
        "gravel": (SKIMAGE, "gravel.png"), "coins": (SKIMAGE, "coins.png"), "retina": (SKIMAGE, "retina.jpg"),
        "camera": (SKIMAGE, "camera.png"),
    },
}  # fmt: skip
LEAST_PHOTOS = {"train": 6, "val": 2, "test": 4}  # With fewer photographs a split says nothing
LEAST_STD = 6.0  # Crops with less contrast are sky or black borders; both classes skip them
SEEN = ("transposed", "nearest", "shuffle")
UNSEEN = ("bilinear", "bicubic", "quantised", "denoiser")
CHANNELS = 24

Crops = Iterator[tuple[str, Pixels]]  # Name of a photograph, crop


@dataclass(frozen=True)
class DemoRecipe:
    """Sizes of the demo data."""

    size: int = 80  # Side of an image
    margin: int = 12  # Made around each fake and cut off, because the border of a network's output gives it away
    steps: int = 220  # Of training, for each generator
    batch: int = 12  # Training crops of a step
    real: tuple[tuple[str, int], ...] = (("train", 900), ("val", 300), ("test", 200))  # Number of reals by split
    # Number of fakes of each generator by split; unseen generators are in test only.
    fake: tuple[tuple[str, int], ...] = (("train", 300), ("val", 100), ("test", 200))


class DemoDataModule(ImageDataModule):
    """The demo data; they are made once and kept.

    Args:
        cache: folder that they are kept in; None: ``FAKEDET_CACHE`` or ``~/.cache/fakedet``.
        recipe_seed: seed of the data themselves, apart from the run's seed.
        **settings: see :class:`fakedet.data.datamodule.ImageDataModule`.
    """

    def __init__(self, cache: str | None = None, recipe_seed: int = 0, **settings: Any) -> None:
        super().__init__(manifest="", **settings)
        self.cache, self.recipe_seed = Path(cache or default_cache()), recipe_seed

    def read_manifest(self) -> Manifest:
        """Make the images if they are not there yet, and return their manifest."""
        return load_manifest(demo_data(self.cache, self.recipe_seed), None, self.allow_group_leak)


def demo_data(cache: Path, seed: int = 0, recipe: DemoRecipe | None = None) -> Path:
    """Return the path of the demo data's manifest; make the data first if they are not whole in the cache folder.

    A UserError if the cache cannot be written.
    """
    recipe = recipe or DemoRecipe()
    key = hashlib.sha256(f"{VERSION} {seed} {recipe}".encode()).hexdigest()[:12]
    folder = cache / f"demo-{key}"
    try:
        if not _is_whole(folder):  # without a lock, so that a cache that can only be read serves too
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"demo-{key}.lock"):
                if not _is_whole(folder):
                    _fill_cache(folder, seed, recipe)
    except OSError as error:
        raise UserError(f"the demo data cannot be kept in {cache}: {error.strerror or error}; set FAKEDET_CACHE or "
                        "data.cache to a folder that can be written") from error  # fmt: skip
    return folder / "manifest.csv"


def _fill_cache(folder: Path, seed: int, recipe: DemoRecipe) -> None:
    # We hold the lock: whatever is here was left by a process that was killed.
    for left in folder.parent.glob(f"{folder.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    building = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    log.info("making the demo data in %s (once, about a minute)", folder)
    try:
        make_demo_data(building, seed, recipe)
        (building / "files.txt").write_text(_listing(building), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Compare names and sizes with what was written: cheap, and notices what was cut or deleted."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / "files.txt").read_text(encoding="utf-8") == _listing(folder)
    return False


def _listing(folder: Path) -> str:
    # Beside the manifest it is noted how often its test split was scored.
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".txt", ".jsonl"))
    return "".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n" for path in found)


def make_demo_data(folder: Path, seed: int = 0, recipe: DemoRecipe | None = None) -> Path:
    """Write the demo's images and ``manifest.csv`` into a folder, empty or not there yet; return the manifest's path.

    The same seed gives the same bytes on the same machine.
    """
    recipe = recipe or DemoRecipe()
    folder.mkdir(parents=True, exist_ok=True)
    photos = {split: load_photos(split) for split in ("train", "val", "test")}
    rows: list[dict[str, object]] = []

    def rng_of(stage: int, *names: str) -> np.random.Generator:
        return np.random.default_rng([seed, stage, *(zlib.crc32(name.encode()) for name in names)])

    def write(kind: str, split: str, count: int, rng: np.random.Generator, make: Callable[[Pixels], Pixels]) -> None:
        (folder / split / kind).mkdir(parents=True, exist_ok=True)
        stream = crops(photos[split], recipe.size, rng, recipe.margin)
        for number, (photo, crop) in enumerate(islice(stream, count)):
            path, label = f"{split}/{kind}/{photo}_{number:04d}.jpg", int(kind != "real")
            (folder / path).write_bytes(postprocess(make(crop), rng))
            rows.append({"path": path, "label": label, "generator": kind, "split": split, "group": photo})

    # Weights are drawn from the global random state, which the caller gets back. With several threads, sums depend on
    # how they were divided, and small networks gain nothing.
    with torch.random.fork_rng(devices=[]), threads(1), bar("demo data", len(SEEN + UNSEEN)) as shown:
        torch.manual_seed(seed)
        for split, count in recipe.real:
            write("real", split, count, rng_of(0, split), partial(middle, margin=recipe.margin))
        for place, kind in enumerate(SEEN + UNSEEN):
            shown.show(place, f"simulated generator '{kind}'")
            noise = torch.Generator().manual_seed(seed)
            generate = train_generator(kind, crops(photos["train"], 48, rng_of(1, kind)), recipe, noise)
            for split, count in recipe.fake:
                if kind in SEEN or split == "test":
                    remade = partial(_remade, generate=generate, margin=recipe.margin)
                    write(kind, split, count, rng_of(2, kind, split), remade)
    path = folder / "manifest.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def load_photos(split: str) -> dict[str, Pixels]:
    """Read the photographs of a split: name → (H, W, 3) uint8; missing ones are left out, too many a UserError."""
    found = {}
    for name, ((package, folder), file) in PHOTOS[split].items():
        try:
            found[name] = read_image(Path(str(files(package).joinpath(folder).joinpath(file))))
        except (DecodeError, ModuleNotFoundError):
            # Another version of the package may have dropped it: the data then differ from those of the docs.
            log.warning("demo data: %s is not in the installed %s; going on without it", file, package)
    if len(found) < LEAST_PHOTOS[split]:
        raise UserError(f"demo data: only {len(found)} of {len(PHOTOS[split])} photographs for '{split}' are in the "
                        "installed scikit-image, scikit-learn and matplotlib; install the versions of "
                        "requirements.lock")  # fmt: skip
    return found


def crops(photos: dict[str, Pixels], size: int, rng: np.random.Generator, margin: int = 0) -> Crops:
    """Yield (name, crop) endlessly: random crops, photograph after photograph, whose middle is not flat.

    A crop is (size + 2 margin, size + 2 margin, 3); an image will show its middle, of side ``size``. The places and the
    flatness of the middle depend on the margin, so both classes have to use the same.
    """
    side = size + 2 * margin
    while True:
        for name, photo in photos.items():
            for _ in range(50):
                top, left = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
                crop = photo[top : top + side, left : left + side]
                if middle(crop, margin).std() >= LEAST_STD:
                    break
            yield name, crop


def middle(crop: Pixels, margin: int) -> Pixels:
    """Cut a margin off all four sides of (H, W, 3)."""
    return crop[margin : crop.shape[0] - margin, margin : crop.shape[1] - margin]


def postprocess(image: Pixels, rng: np.random.Generator) -> bytes:
    """Slightly blur an RGB image or add noise, at random, and compress it as JPEG of a random quality.

    The draws do not depend on the class, so their traces say nothing about it. A comment of zeros fills every file up
    to one length, since smooth fakes take fewer bytes than photographs.
    """
    pixels = image.astype(np.float32)
    if rng.random() < 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.2, 0.6))).astype(np.float32)
    if rng.random() < 0.3:
        pixels = pixels + rng.normal(0.0, rng.uniform(0.5, 3.0), pixels.shape).astype(np.float32)
    rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    quality = int(rng.integers(85, 99))
    done, encoded = cv2.imencode(".jpg", rounded[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    jpeg = encoded.tobytes()
    left = 1024 + 2 * rounded[..., 0].size - len(jpeg)
    assert done
    assert left >= 4
    head = 4 + int.from_bytes(jpeg[4:6])  # bytes of the segments SOI and APP0, which have to stay first
    return jpeg[:head] + b"\xff\xfe" + (left - 2).to_bytes(2) + bytes(left - 4) + jpeg[head:]


def _remade(crop: Pixels, generate: nn.Module, margin: int) -> Pixels:
    """Re-make a crop, keep its statistics, and cut the margin off."""
    source = _tensor([crop])
    with torch.no_grad():
        made = generate(source)
    # A grey photograph has three equal channels, a network's output never quite: the tint would tell the class.
    if bool((source == source[:, :1]).all()):
        made = made.mean(1, keepdim=True).expand_as(made)
    inner = slice(margin, len(crop) - margin)
    fake = match_statistics(made[..., inner, inner], source[..., inner, inner])
    return np.asarray((fake[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def match_statistics(made: Tensor, source: Tensor) -> Tensor:
    """Give each channel of (N, C, H, W) the mean and standard deviation that it has in the source."""
    at = (2, 3)
    scale = source.std(at, keepdim=True) / made.std(at, keepdim=True).clamp(min=1e-4)
    return (made - made.mean(at, keepdim=True)) * scale + source.mean(at, keepdim=True)


def _tensor(images: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255.0)


def train_generator(kind: str, stream: Crops, recipe: DemoRecipe, noise: torch.Generator) -> nn.Module:
    """Train one simulated generator on a stream of crops; return the network that re-makes images (N, 3, H, W).

    The denoiser draws from ``noise``, weights from the global random state.
    """
    net = Denoiser(noise) if kind == "denoiser" else AutoEncoder(kind)
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    for _ in range(recipe.steps):
        images = _tensor([next(stream)[1] for _ in range(recipe.batch)])
        loss = F.l1_loss(net(images), images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def _conv(out: int) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, out, 3, 1, 1, padding_mode="reflect")


class AutoEncoder(nn.Module):
    """Halve the size, and double it again by one kind of upsampling; more levels would blur."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        first = nn.Conv2d(3, CHANNELS, 5, 2, 2, padding_mode="reflect")
        self.encoder = nn.Sequential(first, nn.LeakyReLU(0.1), _conv(CHANNELS))
        upsampling: list[nn.Module]
        if kind == "shuffle":
            upsampling = [_conv(12), nn.PixelShuffle(2)]
        elif kind == "transposed":
            upsampling = [nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, 2, 1), nn.LeakyReLU(0.1), _conv(3)]
        else:
            mode = {"quantised": "bilinear"}.get(kind, kind)
            upsampling = [nn.Upsample(scale_factor=2, mode=mode), _conv(CHANNELS), nn.LeakyReLU(0.1), _conv(3)]
        self.decoder = nn.Sequential(nn.LeakyReLU(0.1), *upsampling)

    def forward(self, images: Tensor) -> Tensor:
        """Re-make images (N, 3, H, W) in [0, 1], H and W even."""
        latent = self.encoder(images - 0.5)
        if self.kind == "quantised":
            soft = torch.tanh(latent) * 3  # quantised to 7 levels, -3 ... 3
            latent = soft + (soft.round() - soft).detach()
        return self.decoder(latent) + 0.5


class Denoiser(nn.Module):
    """Add noise to images, and predict the clean images from the noisy ones and the noise level."""

    def __init__(self, noise: torch.Generator) -> None:
        super().__init__()
        self.noise = noise
        first, relu = nn.Conv2d(4, CHANNELS, 3, 1, 1, padding_mode="reflect"), nn.LeakyReLU(0.1)
        self.layers = nn.Sequential(first, relu, _conv(CHANNELS), relu, _conv(CHANNELS), relu, _conv(3))

    def forward(self, images: Tensor) -> Tensor:
        """Re-make images (N, 3, H, W) in [0, 1]: in training once, of any level; else in steps of less noise."""
        if self.training:
            level = 0.25 * torch.rand(len(images), generator=self.noise)
            added = torch.randn(images.shape, generator=self.noise) * level.view(-1, 1, 1, 1)
            return self._clean(images + added, level)
        made = images + 0.15 * torch.randn(images.shape, generator=self.noise)
        for before, after in pairwise((0.15, 0.10, 0.06, 0.03, 0.012)):
            clean = self._clean(made, torch.full((len(images),), before))
            made = clean + after * torch.randn(images.shape, generator=self.noise)
        return made

    def _clean(self, noisy: Tensor, level: Tensor) -> Tensor:
        """Remove noise of standard deviations (N,) from images (N, 3, H, W)."""
        plane = level.view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[-2:])
        return noisy - self.layers(torch.cat([noisy - 0.5, plane], dim=1))
