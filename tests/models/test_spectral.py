"""Block spectra against NumPy, block by block and frequency by frequency; the whitening against its definition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from fakedet import build
from fakedet.commands.session import register_resolvers
from fakedet.data.datamodule import ImageDataModule
from fakedet.errors import UserError
from fakedet.models.spectral import BlockSpectra, SpectralEncoder
from fakedet.runs.training import train


def pictures(count: int, height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    """Noise of which neighbours depend on each other, so that frequencies and colours differ."""
    noise = torch.rand(count, 3, height + 2, width + 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, (3, 5), 1)
    return (smooth + 0.1 * noise[..., 1:-1, 2:-2]) * torch.tensor([0.9, 0.5, 0.3]).view(3, 1, 1)


def naive(image: np.ndarray, side: int) -> np.ndarray:
    """Mean and spread of log power over blocks, full FFT, frequencies grouped by (larger, smaller) of |u|, |v|."""
    window = np.outer(np.hanning(side), np.hanning(side))
    window /= np.sqrt((window**2).sum())
    half = [min(k, side - k) for k in range(side)]
    orbits = sorted({(max(a, b), min(a, b)) for a in half for b in half})
    means, spreads = [], []
    for plane in image * 255.0:
        logs = []
        for top in range(0, plane.shape[0] - side + 1, side // 2):
            for left in range(0, plane.shape[1] - side + 1, side // 2):
                block = plane[top : top + side, left : left + side]
                power = np.abs(np.fft.fft2((block - block.mean()) * window)) ** 2
                logs.append(np.log(power + 0.1))
        for numbers, found in ((np.mean(logs, axis=0), means), (np.std(logs, axis=0), spreads)):
            for orbit in orbits:
                members = [numbers[u, v] for u in range(side) for v in range(side)
                           if (max(half[u], half[v]), min(half[u], half[v])) == orbit]  # fmt: skip
                found.append(np.mean(members))
    return np.array(means + spreads)


@pytest.mark.parametrize(("side", "height", "width"), [(8, 40, 56), (16, 33, 47), (4, 4, 4)])
def test_spectra_are_those_of_a_naive_loop(side: int, height: int, width: int) -> None:
    images = pictures(3, height, width)
    spectra = BlockSpectra(side)
    found = spectra(images)
    assert found.shape == (3, spectra.out_dim)
    for image, row in zip(images.double().numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(row, naive(image, side), rtol=2e-3, atol=2e-3)


def test_flips_and_quarter_turns_change_nothing() -> None:
    images = pictures(2, 48, 48)
    spectra = BlockSpectra(16)
    for turned in (images.flip(-1), images.flip(-2), images.transpose(-1, -2)):
        torch.testing.assert_close(spectra(turned), spectra(images), rtol=0.01, atol=0.06)


def test_whitened_reals_have_no_mean_and_unit_covariance() -> None:
    images = pictures(400)
    encoder = SpectralEncoder(block=8, components=12, hidden=4).eval()
    encoder.fit_reals(images.split(64))
    white = encoder.whiten(encoder.spectra(images)).double()
    torch.testing.assert_close(white.mean(0), torch.zeros(12).double(), rtol=0, atol=2e-3)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(12).double(), rtol=0, atol=5e-3)
    before = encoder.whitening.clone()
    encoder.fit_reals([pictures(50, seed=9)])
    assert torch.equal(encoder.whitening, before), "once fitted it stays"


def test_few_photographs_leave_directions_blind_and_one_is_refused() -> None:
    encoder = SpectralEncoder(block=8, components=12, hidden=4)
    encoder.fit_reals([pictures(5)])
    white = encoder.whiten(encoder.spectra(pictures(3, seed=3)))
    assert torch.isfinite(white).all()
    assert (white[:, 4:] == 0).all(), "five photographs span four directions"
    with pytest.raises(UserError, match="at least two"):
        SpectralEncoder(block=8, components=12).fit_reals([pictures(1)])


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match=r"block=7: needs an even"):
        BlockSpectra(7)
    with pytest.raises(UserError, match=r"components=2000: valid are 1 to 90"):
        SpectralEncoder(block=8, components=2000)
    for wrong in ({"hidden": 0}, {"dropout": 1.0}, {"dropout": float("nan")}, {"noise": -1.0}):
        with pytest.raises(UserError, match="at least one hidden unit"):
            SpectralEncoder(block=8, components=12, **wrong)
    with pytest.raises(UserError, match=r"block=32: images of 24×24 are smaller"):
        BlockSpectra(32)(torch.rand(1, 3, 24, 24))


def test_training_fits_it_to_reals_alone_and_the_checkpoint_holds_it(
    tiny_manifest: Path, tmp_path: Path
) -> None:
    register_resolvers()
    settings = [
        "model=transfer", "model/encoder=spectral", "model.encoder.block=8", "model.encoder.components=6",
        "data=manifest", f"data.manifest={tiny_manifest}", "data.crop_size=24", "data.batch_size=16",
        "debug=step", f"output_dir={tmp_path / 'run'}", f"trace_cache={tmp_path / 'stage1'}",
    ]  # fmt: skip
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        done = train(compose("train", overrides=settings))
    loaded: Any = build.load_detector(done.checkpoint).encoder
    assert bool(loaded.fitted)
    data = ImageDataModule(str(tiny_manifest), crop_size=24)
    frame = data.manifest.frame
    reals = frame.index[(frame["split"] == "train") & (frame["label"] == 0)].to_numpy()
    images = torch.cat([batch["image"][:, 0] for batch in data.subset_dataloader(reals)]).float() / 255.0
    expected = SpectralEncoder(block=8, components=6)
    expected.fit_reals([images])
    torch.testing.assert_close(loaded.mean, expected.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.whitening.abs(), expected.whitening.abs(), rtol=1e-3, atol=1e-3)
