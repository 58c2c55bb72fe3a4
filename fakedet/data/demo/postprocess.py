"""What happens to every demo image, real or fake alike, before it is saved."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


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
