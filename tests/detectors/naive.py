"""Naive preprocessing and file-making that tests of published detectors share, written with PIL and numpy alone."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Make a picture with smooth and rough parts."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(small, np.int64) + noise, 0, 255).astype(np.uint8))


def centre(image: Image.Image, size: int) -> Image.Image:
    """Cut out the centre as torchvision does, rows first rounded to even, with zeros around a smaller picture."""
    pixels = np.asarray(image)
    missing = [max(0, size - side) for side in pixels.shape[:2]]
    pixels = np.pad(pixels, [(m // 2, (m + 1) // 2) for m in missing] + [(0, 0)])
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return Image.fromarray(pixels[top : top + size, left : left + size])


def shorter(image: Image.Image, size: int, mode: Image.Resampling) -> Image.Image:
    """Resize the shorter side; the longer is rounded down."""
    width, height = image.size
    wide = size if width <= height else int(size * width / height)
    return image.resize((wide, size if height <= width else int(size * height / width)), mode)


def normalised(image: Image.Image, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Turn a picture into float (1, 3, H, W), normalised."""
    mean, std = (np.asarray(values) for values in statistics)
    pixels = (np.asarray(image, np.float64) / 255.0 - mean) / std
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()


def with_random_statistics(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give a net weights and batch statistics that are not those it starts with, and evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                value.normal_(0, 0.1, generator=generator)
    return net.eval()


def saved(content: object, folder: Path, name: str = "published.pth") -> Path:
    """Write what torch.save writes."""
    torch.save(content, folder / name)
    return folder / name
