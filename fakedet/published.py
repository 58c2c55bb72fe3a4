"""Detectors to hand on: safetensors with all that a checkpoint says of itself, and those that come with fakedet."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fakedet.errors import UserError

ENDING = ".safetensors"
SHIPPED = {"demo": Path(__file__).parent / "weights" / f"demo{ENDING}"}
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
            f"{path} holds weights alone, not a detector; `fakedet export output=x{ENDING}` writes those, and "
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
