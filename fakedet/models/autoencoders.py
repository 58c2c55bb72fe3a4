"""Auto-encoders that make copies of photographs: the content stays, the fine texture is the decoder's.

Any module that maps float RGB (N, 3, H, W) in [0, 1], H and W multiples of 8, to RGB of the same shape can be named as
``model.copies.autoencoder``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fakedet.errors import UserError, one_line
from fakedet.models.backbones import read_weights

WANTED = (
    "model.copies.autoencoder.path: copies of the kind vae need a tiny auto-encoder: fetch NAME_encoder.pth and "
    "NAME_decoder.pth (taesd, taesd3, taef1 or taef2; MIT) from github.com/madebyollin/taesd, and pass "
    "model.copies.autoencoder.path=FOLDER or FOLDER/NAME (or export FAKEDET_VAE=FOLDER)"
)


class _Block(nn.Module):
    """Three convolutions and a skip connection; ``pool`` tells each place about the whole image."""

    def __init__(self, pools: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(64, 64), nn.ReLU(), _conv(64, 64), nn.ReLU(), _conv(64, 64))
        wide = (nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(), nn.Conv2d(256, 64, 1, bias=False))
        self.pool = nn.Sequential(*wide) if pools else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3.0) * 3.0


def _conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def _blocks(pools: bool = False) -> list[nn.Module]:
    return [_Block(pools) for _ in range(3)]


class TinyAutoencoder(nn.Module):
    """A tiny auto-encoder of a diffusion model's latents: taesd, taesd3, taef1 or taef2 (github.com/madebyollin/taesd).

    The number of latent channels, and whether the middle blocks pool over the image, are read from the weights, which
    are never trained.

    Args:
        path: folder with one file ``*_encoder.*`` and one ``*_decoder.*`` of weights, or FOLDER/NAME for its
            ``NAME_encoder.*`` and ``NAME_decoder.*``; None: the module can be built, but not called.

    Raises:
        UserError: files that are missing, or of another model; says what to fetch.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__()
        if path is None:
            return
        states = [read_weights(_file(Path(path).expanduser(), part), "model.copies.autoencoder.path")
                  for part in ("encoder", "decoder")]  # fmt: skip
        latent = max((int(key.split(".")[0]), value.shape[0]) for key, value in states[0].items()
                     if key.split(".")[0].isdecimal())[1] if "0.weight" in states[0] else 4  # fmt: skip
        pools = any(".pool." in key for key in states[0])
        half = {"stride": 2, "bias": False}
        self.encoder = nn.Sequential(
            _conv(3, 64), _Block(False), _conv(64, 64, **half), *_blocks(), _conv(64, 64, **half), *_blocks(),
            _conv(64, 64, **half), *_blocks(pools), _conv(64, latent),
        )  # fmt: skip
        layers = [_Clamp(), _conv(latent, 64), nn.ReLU()]
        for blocks in (_blocks(pools), _blocks(), _blocks()):
            layers += [*blocks, nn.Upsample(scale_factor=2), _conv(64, 64, bias=False)]
        self.decoder = nn.Sequential(*layers, _Block(False), _conv(64, 3))
        try:
            self.encoder.load_state_dict(states[0])
            self.decoder.load_state_dict(states[1])
        except RuntimeError as error:
            raise UserError(f"{path} holds weights of another model ({one_line(error)[:160]} …). {WANTED}") from error
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode and decode float RGB (N, 3, H, W) in [0, 1]; H and W are multiples of 8.

        Raises:
            UserError: no ``path`` was given.
        """
        if not hasattr(self, "encoder"):
            raise UserError(WANTED)
        decoded: Tensor = self.decoder(self.encoder(images))
        return decoded


def _file(path: Path, part: str) -> Path:
    folder, pattern = (path, f"*_{part}.*") if path.is_dir() else (path.parent, f"{path.name}_{part}.*")
    found = sorted(file for file in folder.glob(pattern) if file.suffix in (".pth", ".pt", ".safetensors"))
    if len(found) != 1:
        told = ", ".join(file.name for file in found) or "no such file"
        raise UserError(f"{folder} must hold one file {pattern}; there is: {told}. {WANTED}")
    return found[0]


class DiffusersAutoencoder(nn.Module):
    """An ``AutoencoderKL`` or ``AutoencoderTiny`` of diffusers (``pip install diffusers``), never trained.

    Args:
        name: of a model on the Hugging Face hub, or a folder that ``save_pretrained`` wrote.
        subfolder: of it that holds the auto-encoder, often "vae".
        kind: the class of diffusers.

    Raises:
        UserError: diffusers is not installed or has no such class, or the model cannot be had.
    """

    def __init__(self, name: str, subfolder: str | None = None, kind: str = "AutoencoderKL") -> None:
        super().__init__()
        try:
            import diffusers

            self.model = getattr(diffusers, kind).from_pretrained(name, subfolder=subfolder)
        except ImportError as error:
            raise UserError(
                f"model.copies.autoencoder: diffusers cannot be imported ({one_line(error)}); pip install diffusers, "
                "or take fakedet.models.autoencoders.TinyAutoencoder, which needs no package"
            ) from error
        except Exception as error:  # whatever diffusers, the hub's client or the network raises
            raise UserError(
                f"model.copies.autoencoder: diffusers has no {kind} '{name}' here: {one_line(error)[:300]}; name a "
                "model of the hub or a folder with config.json and weights"
            ) from error
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode to the mean latent and decode: float RGB (N, 3, H, W) in [0, 1] to the same shape."""
        coded = self.model.encode(images * 2.0 - 1.0)
        latent = coded.latents if hasattr(coded, "latents") else coded.latent_dist.mode()
        decoded: Tensor = self.model.decode(latent).sample
        return (decoded + 1.0) / 2.0
