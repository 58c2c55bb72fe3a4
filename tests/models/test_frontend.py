"""Frontends against naive computations."""

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate

from fakedet.errors import UserError
from fakedet.models.frontends import FRONTENDS, HighPassFrontend, NprFrontend, RgbFrontend, build_frontend


def images(height=8, width=10, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_rgb_is_imagenets_normalisation_or_the_given_one():
    x = images()
    seen = RgbFrontend()(x)
    assert float(seen[1, 2, 3, 4]) == pytest.approx((float(x[1, 2, 3, 4]) - 0.406) / 0.225, rel=1e-5)
    assert float(seen[0, 0, 0, 0]) == pytest.approx((float(x[0, 0, 0, 0]) - 0.485) / 0.229, rel=1e-5)
    assert torch.allclose(RgbFrontend((0.5,) * 3, (0.5,) * 3)(x), 2 * x - 1, atol=1e-6)


def test_npr_is_the_published_residual():
    x = images(8, 6)
    half = F.interpolate(x, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
    published = x - F.interpolate(half, scale_factor=2.0, mode="nearest", recompute_scale_factor=True)
    assert torch.equal(NprFrontend(gain=1.5)(x), published)
    assert torch.allclose(NprFrontend(gain=1.0)(x), published * 2.0 / 3.0)


def test_npr_of_a_nearest_upsampled_image_is_zero():
    upsampled = images().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert (NprFrontend()(upsampled) == 0).all()
    assert (NprFrontend()(upsampled.roll(1, dims=3)) != 0).any()


def test_npr_cuts_odd_sizes():
    x = images(9, 7)
    assert torch.equal(NprFrontend()(x), NprFrontend()(x[..., :8, :6]))


def test_highpass_is_three_reflected_srm_filters_of_each_colour():
    x = images()
    seen = HighPassFrontend(gain=1.0)(x)
    assert seen.shape == (2, 9, 8, 10)
    line = torch.tensor([[1.0, -2.0, 1.0]]) / 2
    square3 = torch.outer(torch.tensor([1.0, -2.0, 1.0]), torch.tensor([1.0, -2.0, 1.0])) / -4
    square5 = torch.tensor([
        [-1.0, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]
    ]) / 12  # fmt: skip
    for colour in range(3):
        for index, kernel in enumerate((line, square3, square5)):
            expected = correlate(x[1, colour].double().numpy(), kernel.double().numpy(), mode="mirror")
            assert seen[1, 3 * colour + index].numpy() == pytest.approx(expected, abs=1e-5)


def test_highpass_sees_neither_brightness_nor_slopes():
    slope = torch.linspace(0.2, 0.8, 16).expand(1, 3, 16, 16) + 0.1
    assert HighPassFrontend(gain=1.0)(slope)[..., 2:-2, 2:-2].abs().max() < 1e-6


def test_residuals_keep_their_precision_under_autocast():
    x = images(16, 16)
    for name in ("npr", "highpass"):
        frontend = build_frontend(name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = frontend(x)
        assert mixed.dtype == torch.float32
        assert torch.equal(mixed, frontend(x))


@pytest.mark.parametrize("name", ["npr", "highpass"])
def test_residuals_of_photographs_are_near_unit_scale(name):
    from sklearn.datasets import load_sample_images

    for photograph in load_sample_images().images:
        x = torch.from_numpy(photograph.copy()).permute(2, 0, 1).unsqueeze(0).float() / 255
        assert 0.3 < float(build_frontend(name)(x).std()) < 3.0


def test_every_name_builds_and_states_its_channels():
    for name in FRONTENDS:
        frontend = build_frontend(name)
        assert frontend(images()).shape[1] == frontend.out_channels
        assert not frontend.state_dict()  # fixed: nothing to save, nothing that could be loaded wrongly
    with pytest.raises(UserError, match=r"model\.encoder\.frontend: 'nprr'.*did you mean 'npr'"):
        build_frontend("nprr")
