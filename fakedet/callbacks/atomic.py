"""Checkpoints that are whole or not there: written beside their place, brought to the disk, then renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from fakedet.errors import UserError


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
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # PyTorch's writer hides the system's error in a RuntimeError of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        said = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error).splitlines()[0]
        _remove(temporary)
        kept = f"; {path.name} is as it was" if path.exists() else ""
        raise UserError(
            f"the checkpoint {path} cannot be written: {said}{kept}. Make room, then give the same command again: it "
            "goes on from the last checkpoint"
        ) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # a folder that cannot be written holds no leftovers of ours
