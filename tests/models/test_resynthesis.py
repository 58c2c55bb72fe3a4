"""Each way to re-synthesise against a naive computation."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from fakedet.methods.destroy import DRAWS, METHODS, lowpass, resample, smooth, zero_insert


def images(height=16, width=16, count=3):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def draws(count=3, seed=1):
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 11), (2, 3), (64, 5)])
def test_shape_and_flat_grey_are_kept(name, height, width):
    grey = torch.full((3, 3, height, width), 0.4)
    made = METHODS[name](grey, draws())
    assert made.shape == grey.shape
    assert torch.allclose(made, grey, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_an_image_depends_on_its_own_draws_alone(name):
    x, u = images(), draws()
    together = METHODS[name](x, u)
    for i in range(3):
        assert torch.allclose(together[i : i + 1], METHODS[name](x[i : i + 1], u[i : i + 1]), atol=1e-6)
    assert not torch.allclose(METHODS[name](x, draws(seed=2)), together, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_fine_detail_is_lost_and_coarse_content_stays(name):
    noise = images(64, 64)
    made = METHODS[name](noise, draws())

    def energy(x, low, high):
        radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None])
        power = np.abs(np.fft.fft2(x.numpy())) ** 2
        return power[..., (radius >= low) & (radius < high)].sum()

    assert energy(made, 0.4, 1) < 0.6 * energy(noise, 0.4, 1)
    assert energy(made, 0.001, 0.08) == pytest.approx(energy(noise, 0.001, 0.08), rel=0.5)
    assert float(made.mean()) == pytest.approx(float(noise.mean()), abs=0.01)


def test_zero_insert_is_a_transposed_convolution_of_the_halved_image():
    x, u = images(6, 8, count=2), draws(2)
    made = zero_insert(x, u)
    for n in range(2):
        kernel = 0.1 + u[n].double().numpy().reshape(3, 3)
        small = x[n].double().numpy().reshape(3, 3, 2, 4, 2).mean(axis=(2, 4))
        for c in range(3):
            for i in range(6):
                for j in range(8):
                    seen = [  # the inserted samples under the kernel, mirrored at the lower and right border
                        (kernel[di + 1, dj + 1], small[c, _mirror(i + di, 6) // 2, _mirror(j + dj, 8) // 2])
                        for di in (-1, 0, 1)
                        for dj in (-1, 0, 1)
                        if (i + di) % 2 == 0 and (j + dj) % 2 == 0
                    ]
                    expected = sum(k * s for k, s in seen) / sum(k for k, _ in seen)
                    assert float(made[n, c, i, j]) == pytest.approx(expected, abs=1e-5)


def _mirror(index, size):
    return abs(index) if index < size else 2 * (size - 1) - index


def test_smooth_is_a_gaussian():
    x = images(24, 24, count=2)
    u = draws(2)
    made = smooth(x, u)
    for n in range(2):
        sigma = 0.5 + float(u[n, 0])
        expected = gaussian_filter(x[n].double().numpy(), (0, sigma, sigma), mode="mirror", radius=(0, 5, 5))
        assert made[n].numpy() == pytest.approx(expected, abs=1e-5)


def test_lowpass_keeps_waves_below_the_cut_and_removes_those_above():
    u = torch.zeros(1, DRAWS)
    u[0, 0] = 0.4  # cuts at 0.25 cycles a pixel
    at = torch.arange(64.0)
    for frequency, kept in ((4 / 64, 1.0), (28 / 64, 0.0)):
        wave = 0.5 + 0.4 * torch.cos(2 * math.pi * frequency * at).expand(1, 3, 64, 64)
        made = lowpass(wave, u)[..., 16:48, 16:48] - 0.5
        assert float(made.std() / wave[..., 16:48, 16:48].std()) == pytest.approx(kept, abs=0.05)


def test_resample_loses_pixels():
    u = torch.zeros(1, DRAWS)  # to 0.4 of the sides and back, bilinear both ways
    x = images(20, 20, count=1)
    small = torch.nn.functional.interpolate(x, size=(8, 8), mode="bilinear", antialias=True)
    expected = torch.nn.functional.interpolate(small, size=(20, 20), mode="bilinear")
    assert torch.allclose(resample(x, u), expected, atol=1e-6)
    assert np.linalg.matrix_rank(resample(x, u)[0, 0].double().numpy(), tol=1e-4) <= 8


@pytest.mark.parametrize("name", METHODS)
def test_content_stays_in_its_place(name):
    down, across = torch.linspace(0.1, 0.5, 64)[:, None], torch.linspace(0.0, 0.4, 64)[None, :]
    slope = (down + across).expand(3, 3, 64, 64)
    assert torch.allclose(METHODS[name](slope, draws()), slope, atol=0.03)
