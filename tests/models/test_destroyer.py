"""Trace-destroyed copies: their randomness, blend and steps."""

import pytest
import torch

from fakedet.errors import UserError
from fakedet.methods.destroy import METHODS, TraceDestroyer


def images(count=32, side=32):
    x = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    return (x * 255).round() / 255


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_generator_alone_decides():
    x, destroyer = images(), TraceDestroyer()
    first = destroyer(x, seeded(1))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(destroyer(x, seeded(1)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(destroyer(x, seeded(2)), first)
    torch.manual_seed(3)
    unseeded = destroyer(x)
    torch.manual_seed(3)
    assert torch.equal(destroyer(x), unseeded)


def test_images_draw_their_own_kind_and_strength():
    same = images(1).expand(64, -1, -1, -1)
    made = TraceDestroyer()(same, seeded())
    assert len({tuple(image.flatten().tolist()) for image in made}) == 64
    alone = [TraceDestroyer((kind,))(same, seeded()) for kind in METHODS]
    matches = torch.stack([(made == other).flatten(1).all(dim=1) for other in alone], dim=1)
    assert (matches.sum(dim=1) == 1).all()  # each image is exactly what one kind makes of its draws
    assert (matches.sum(dim=0) > 4).all()  # and no kind is left out


def test_a_copy_is_a_blend_of_the_drawn_strength():
    x = images()
    full = TraceDestroyer(("smooth",), min_strength=1.0)(x, seeded())
    half = TraceDestroyer(("smooth",), min_strength=0.4)(x, seeded())
    draws = torch.rand(len(x), 11, generator=seeded())[:, 1]
    strength = (0.4 + 0.6 * draws).view(-1, 1, 1, 1)
    assert torch.allclose(half, x + strength * (full - x), atol=1.1 / 255)
    fitted = ((half - x) * (full - x)).flatten(1).sum(1) / (full - x).square().flatten(1).sum(1)
    assert torch.allclose(fitted, strength.flatten(), atol=0.02)
    assert float(fitted.min()) > 0.38


def test_means_stay_and_high_frequencies_fall():
    x = images()
    made = TraceDestroyer()(x, seeded())
    assert torch.allclose(made.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)), atol=0.02)

    def detail(rows):
        return (rows[..., 1:] - rows[..., :-1]).square().mean(dim=(1, 2, 3))

    assert (detail(made) < 0.9 * detail(x)).all()


def test_copies_are_valid_stored_images():
    sharp = (images() > 0.5).float()
    made = TraceDestroyer()(sharp, seeded())
    assert made.shape == sharp.shape
    assert made.dtype == sharp.dtype
    assert float(made.min()) >= 0.0
    assert float(made.max()) <= 1.0
    assert torch.allclose(made * 255, (made * 255).round(), atol=1e-4)


def test_autocast_changes_nothing_and_no_gradients_flow():
    x = images().requires_grad_()
    made = TraceDestroyer()(x, seeded())
    assert not made.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(TraceDestroyer()(x, seeded()), made)


def test_no_images_is_fine():
    assert TraceDestroyer()(images()[:0], seeded()).shape == (0, 3, 32, 32)


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match=r"model\.copies\.kinds: 'lowpas'.*did you mean 'lowpass'"):
        TraceDestroyer(("lowpas",))
    with pytest.raises(UserError, match="at least one"):
        TraceDestroyer(())
    with pytest.raises(UserError, match=r"model\.copies\.min_strength"):
        TraceDestroyer(min_strength=1.4)
