"""JPEG compression of a batch in the middle of training, where its images have no file yet."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fakedet.errors import UserError

GRID = 3
"""Uniform draws that an image takes: quality, and where its crop lies on JPEG's grid, down and across."""
BLOCK = 8


def check_qualities(pair: Sequence[int], name: str) -> tuple[int, int]:
    """Give the least and the greatest JPEG quality.

    Raises:
        UserError: not two whole numbers from 1 to 100, the least first.
    """
    whole = [value for value in pair if isinstance(value, int) and not isinstance(value, bool)]
    if len(pair) != 2 or len(whole) != 2 or not 1 <= whole[0] <= whole[1] <= 100:
        raise UserError(f"{name}={list(pair)}: two JPEG qualities from 1 to 100, the least first, or null")
    return whole[0], whole[1]


def recompress(levels: Tensor, draws: Tensor, qualities: tuple[int, int]) -> Tensor:
    """Compress each image as a JPEG and decode it.

    Each image is laid on JPEG's 8×8 grid at an offset of its own: were its corner always a block's, the offset
    would tell it from crops of files, which were compressed before they were cut.

    Args:
        levels: float RGB (N, 3, H, W) of whole numbers from 0 to 255, H and W at least 8.
        draws: uniform (N, 3) in [0, 1) on the CPU.
        qualities: least and greatest, uniform between.

    Returns:
        The same shape, dtype and device.
    """
    low, high = qualities
    height, width = levels.shape[-2:]
    padded = F.pad(levels, (BLOCK - 1,) * 4, mode="reflect").to("cpu", torch.uint8)
    # OpenCV's colours stand in the other order.
    pictures = padded.flip(1).permute(0, 2, 3, 1).numpy()
    done = []
    for picture, (quality, down, across) in zip(pictures, draws.tolist(), strict=True):
        top, left = BLOCK - 1 - int(down * BLOCK), BLOCK - 1 - int(across * BLOCK)
        setting = [cv2.IMWRITE_JPEG_QUALITY, low + int(quality * (high - low + 1))]
        _, code = cv2.imencode(".jpg", np.ascontiguousarray(picture[top:, left:]), setting)
        decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
        assert decoded is not None  # OpenCV reads what it wrote
        y, x = BLOCK - 1 - top, BLOCK - 1 - left
        done.append(torch.from_numpy(decoded[y : y + height, x : x + width]))
    if not done:
        return levels
    return torch.stack(done).permute(0, 3, 1, 2).flip(1).to(levels)
