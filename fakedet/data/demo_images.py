"""data/demo_images"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fakedet.data.decode import DecodeError, read_image
from fakedet.errors import UserError

log = logging.getLogger("fakedet")

# package, folder in it, file. Read off the folder: scikit-image's own functions would download what is missing.
SKIMAGE, SKLEARN, MATPLOTLIB = (
    ("skimage", "data"),
    ("sklearn", "datasets/images"),
    ("matplotlib", "mpl-data/sample_data"),
)
PHOTOS: dict[str, dict[str, tuple[tuple[str, str], str]]] = {
    "train": {
        "astronaut": (SKIMAGE, "astronaut.png"),
        "coffee": (SKIMAGE, "coffee.png"),
        "motorcycle": (SKIMAGE, "motorcycle_left.png"),
        "grass": (SKIMAGE, "grass.png"),
        "brick": (SKIMAGE, "brick.png"),
        "hubble": (SKIMAGE, "hubble_deep_field.jpg"),
        "clock": (SKIMAGE, "clock_motion.png"),
        "cell": (SKIMAGE, "cell.png"),
        "grace_hopper": (MATPLOTLIB, "grace_hopper.jpg"),
    },
    "val": {
        "flower": (SKLEARN, "flower.jpg"),
        "moon": (SKIMAGE, "moon.png"),
        "ihc": (SKIMAGE, "ihc.png"),
        "page": (SKIMAGE, "page.png"),
    },
    "test": {
        "chelsea": (SKIMAGE, "chelsea.png"),
        "china": (SKLEARN, "china.jpg"),
        "rocket": (SKIMAGE, "rocket.jpg"),
        "gravel": (SKIMAGE, "gravel.png"),
        "coins": (SKIMAGE, "coins.png"),
        "retina": (SKIMAGE, "retina.jpg"),
        "camera": (SKIMAGE, "camera.png"),
    },
}
# Fewer than these and a split says nothing.
LEAST = {"train": 6, "val": 2, "test": 4}
# Crops with less contrast are sky or black borders; both classes leave them out alike.
LEAST_STD = 6.0


def load_photos(split: str) -> dict[str, NDArray[np.uint8]]:
    """Read the photographs of a split: name → (H, W, 3) uint8; a missing one is left out.

    Raises:
        UserError: too few are there.
    """
    found = {}
    for name, ((package, folder), file) in PHOTOS[split].items():
        try:
            found[name] = read_image(Path(str(files(package).joinpath(folder).joinpath(file))))
        except (DecodeError, ModuleNotFoundError):
            # Another version of the package may have dropped it: the data then differ from those of the docs.
            log.warning("demo data: %s is not in the installed %s; going on without it", file, package)
    if len(found) < LEAST[split]:
        raise UserError(
            f"demo data: only {len(found)} of {len(PHOTOS[split])} photographs for '{split}' are in the installed "
            "scikit-image, scikit-learn and matplotlib; install the versions of requirements.lock"
        )
    return found


def crops(
    photos: dict[str, NDArray[np.uint8]], size: int, rng: np.random.Generator, margin: int = 0
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Cut endless random crops, photograph after photograph, whose middle is not flat.

    Args:
        photos: name → (H, W, 3) uint8.
        size: side of the middle, which is what an image will show.
        rng: of the places.
        margin: around the middle; a crop is (size + 2 margin, size + 2 margin, 3). The places and the flatness
            of the middle depend on it, so both classes have to use the same.
    """
    while True:
        for name, photo in photos.items():
            yield name, _crop(photo, size, margin, rng)


def middle(crop: NDArray[np.uint8], margin: int) -> NDArray[np.uint8]:
    """Cut a margin off all four sides of (H, W, 3)."""
    return crop[margin : crop.shape[0] - margin, margin : crop.shape[1] - margin]


def _crop(photo: NDArray[np.uint8], size: int, margin: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    side = size + 2 * margin
    for _ in range(50):
        top = int(rng.integers(photo.shape[0] - side + 1))
        left = int(rng.integers(photo.shape[1] - side + 1))
        cut = photo[top : top + side, left : left + side]
        if middle(cut, margin).std() >= LEAST_STD:
            break
    return cut


SEEN = ("transposed", "nearest", "shuffle")
UNSEEN = ("bilinear", "bicubic", "quantised", "denoiser")
CHANNELS = 24
# Levels of the quantised latent.
LEVELS = 7


class AutoEncoder(nn.Module):
    """Halve, and come back up by one kind of upsampling; one level only, because two would blur.

    Args:
        kind: "transposed", "nearest", "shuffle", "bilinear", "bicubic" or "quantised".
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.encoder = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 5, 2, 2, padding_mode="reflect"),
            nn.LeakyReLU(0.1),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, padding_mode="reflect"),
        )
        if kind == "transposed":
            self.decoder: nn.Module = nn.Sequential(
                nn.LeakyReLU(0.1),
                nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, 2, 1),
                nn.LeakyReLU(0.1),
                _conv(3),
            )
        elif kind == "shuffle":
            self.decoder = nn.Sequential(nn.LeakyReLU(0.1), _conv(12), nn.PixelShuffle(2))
        else:
            mode = {"quantised": "bilinear"}.get(kind, kind)
            self.decoder = nn.Sequential(
                nn.LeakyReLU(0.1),
                nn.Upsample(scale_factor=2, mode=mode),
                _conv(CHANNELS),
                nn.LeakyReLU(0.1),
                _conv(3),
            )

    def forward(self, images: Tensor) -> Tensor:
        """Re-make images (N, 3, H, W) in [0, 1], H and W even."""
        latent = self.encoder(images - 0.5)
        if self.kind == "quantised":
            soft = torch.tanh(latent) * (LEVELS // 2)
            latent = soft + (soft.round() - soft).detach()
        made: Tensor = self.decoder(latent) + 0.5
        return made


class Denoiser(nn.Module):
    """Predict the clean image from a noisy one and its noise level."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(4, CHANNELS, 3, 1, 1, padding_mode="reflect")]
        for _ in range(2):
            layers += [nn.LeakyReLU(0.1), _conv(CHANNELS)]
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.1), _conv(3))

    def forward(self, noisy: Tensor, level: Tensor) -> Tensor:
        """Clean images (N, 3, H, W) of noise with standard deviations (N,)."""
        plane = level.view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[-2:])
        clean: Tensor = noisy - self.layers(torch.cat([noisy - 0.5, plane], dim=1))
        return clean


Generate = Callable[[Tensor], Tensor]


def train_generator(kind: str, batches: Callable[[], Tensor], steps: int, seed: torch.Generator) -> Generate:
    """Train one simulated generator and give the function that re-makes images with it.

    Args:
        kind: of :data:`SEEN` or :data:`UNSEEN`.
        batches: gives training batches (N, 3, H, W) in [0, 1].
        steps: of Adam.
        seed: of the noise; weights are drawn from the global state, which the caller forks.
    """
    net: nn.Module = Denoiser() if kind == "denoiser" else AutoEncoder(kind)
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        images = batches()
        if kind == "denoiser":
            level = 0.25 * torch.rand(len(images), generator=seed)
            noise = torch.randn(images.shape, generator=seed) * level.view(-1, 1, 1, 1)
            made = net(images + noise, level)
        else:
            made = net(images)
        loss = F.l1_loss(made, images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    return (lambda images: _denoise(net, images, seed)) if kind == "denoiser" else net


def _denoise(net: nn.Module, images: Tensor, seed: torch.Generator) -> Tensor:
    """Noise images, then clean them step by step; each step keeps some noise for the next."""
    levels = [0.15, 0.10, 0.06, 0.03]
    made = images + levels[0] * torch.randn(images.shape, generator=seed)
    for level, following in zip(levels, [*levels[1:], 0.012], strict=True):
        clean = net(made, torch.full((len(images),), level))
        made = clean + following * torch.randn(images.shape, generator=seed)
    return made


def _conv(out: int) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, out, 3, 1, 1, padding_mode="reflect")


def postprocess(image: NDArray[np.uint8], rng: np.random.Generator) -> bytes:
    """Blur or noise an RGB image at random, a little, and give it as JPEG of a random quality.

    The draws do not look at the class: whatever this leaves behind says nothing about it.
    """
    pixels = image.astype(np.float32)
    if rng.random() < 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.2, 0.6))).astype(np.float32)
    if rng.random() < 0.3:
        pixels = pixels + rng.normal(0.0, rng.uniform(0.5, 3.0), pixels.shape).astype(np.float32)
    rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    quality = int(rng.integers(85, 99))
    done, data = cv2.imencode(".jpg", rounded[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return bytes(data)
