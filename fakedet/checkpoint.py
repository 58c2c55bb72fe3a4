"""Read a checkpoint as plain tensors and values: a stranger's file cannot run code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from fakedet.errors import UserError
from fakedet.published import ENDING, locate, read_published

IDENTITY = (
    "model",
    "stage1",
    "seen_generators",
    "crop_size",
    "eval_policy",
    "manifest_sha256",
    "pairs",
    "name",
)
"""What every checkpoint of ours says of itself."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of fakedet as plain tensors and values.

    Args:
        path: of a file that training wrote, of a safetensors file that `fakedet export` wrote, or the name of one
            that comes with fakedet.

    Raises:
        UserError: no such file, or not a checkpoint of fakedet.
    """
    path = locate(path)
    if not path.is_file():
        raise UserError(
            f"no checkpoint at {path}; `fakedet train` writes checkpoints/best.ckpt in its folder"
        )
    checkpoint = read_published(path) if path.suffix == ENDING else _unpickle(path)
    identity = checkpoint["fakedet"]
    lacking = [key for key in IDENTITY if not isinstance(identity, dict) or key not in identity]
    if lacking or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(
            f"{path} is damaged or of another version: it lacks {', '.join(lacking) or 'state_dict'}"
        )
    return checkpoint


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the unpickler raise
        if path.suffix in (".onnx", ".pt2"):
            raise UserError(
                f"{path} is an export for other programs; fakedet reads the .ckpt that it was made from, or an export "
                "to .safetensors"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        if "weights_only" in reason:  # PyTorch's advice is to let the file run code
            reason = "it is damaged, or holds more than tensors and plain values"
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict) or "fakedet" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint that fakedet wrote: it has no 'fakedet' entry")
    _check_whole(path)
    return checkpoint


def _check_whole(path: Path) -> None:
    """Compare the checksums that torch.save wrote, which torch.load does not."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path} is damaged: the checksum of '{damaged}' in it is wrong; copy it anew")
