"""checkpoint"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from fakedet.errors import UserError
from fakedet.utils import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints so that a kill or a full disk leaves the last one whole.

    Lightning's own writes to the system's temporary folder first; from another file system that ends in a copy,
    which a kill can cut in two.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_whole(checkpoint, Path(path))


def write_whole(content: Any, path: Path) -> None:
    """Write ``torch.save``'s bytes into a file, whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written; what was there is still there.
    """
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # PyTorch's writer hides the system's error in one of its own
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            file.flush()
            os.fsync(file.fileno())
    except (UserError, RuntimeError) as error:
        raise UserError(
            f"checkpoint: {str(error).splitlines()[0]}. Make room, then give the same command again: it goes on from "
            "the last checkpoint"
        ) from error


SAFETENSORS = ".safetensors"
SHIPPED = {"demo": Path(__file__).parent / "weights" / f"demo{SAFETENSORS}"}
"""Names that stand for a checkpoint wherever one is asked for."""


def locate(checkpoint: str | Path) -> Path:
    """Give the file of a checkpoint: a path, or the name of one that comes with fakedet."""
    shipped = SHIPPED.get(str(checkpoint))
    return shipped if shipped is not None and not Path(checkpoint).is_file() else Path(checkpoint)


def write_published(path: Path, weights: dict[str, Tensor], identity: dict[str, Any]) -> None:
    """Write weights, their checksum, and what the detector says of itself into one safetensors file."""
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    told = json.dumps(identity)
    metadata = {"fakedet": told, "sha256": _digest(whole, told)}
    # Not save_file, whose files no other user may read, whatever the umask.
    path.write_bytes(safetensors.torch.save(whole, metadata))


def read_published(path: Path) -> dict[str, Any]:
    """Read such a file as what a checkpoint holds: ``state_dict`` and ``fakedet``.

    Raises:
        UserError: it is damaged, or fakedet did not write it.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        told = metadata.get("fakedet", "null")
        identity = json.loads(told)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors: {' '.join(str(error).split())}; copy it anew"
        ) from error
    if not isinstance(identity, dict):
        raise UserError(
            f"{path} holds weights alone, not a detector; `fakedet export output=x{SAFETENSORS}` writes those, and "
            "model.encoder.weights=FILE starts an encoder from weights"
        )
    if metadata.get("sha256") != _digest(weights, told):
        raise UserError(f"{path} is damaged: its checksum is wrong; copy it anew")
    return {"state_dict": weights, "fakedet": identity}


def _digest(weights: dict[str, Tensor], told: str) -> str:
    digest = hashlib.sha256(told.encode())
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).numpy().tobytes())
    return digest.hexdigest()


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
    checkpoint = read_published(path) if path.suffix == SAFETENSORS else _unpickle(path)
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
