"""JPEG in the middle of training: the grid it must leave, and what each quality keeps."""

import numpy as np
import pytest
import torch

from fakedet.errors import UserError
from fakedet.methods.destroy import BLOCK, TraceDestroyer, check_qualities, recompress


def pictures(count: int = 4, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, 3, size, size, generator=generator) * 255).round()


def blockiness(picture: torch.Tensor, offset: int) -> float:
    """Mean step between columns that meet at a block's edge, if blocks began at ``offset``."""
    steps = (picture[:, :, 1:] - picture[:, :, :-1]).abs().mean(dim=(0, 1))
    return float(steps[offset - 1 :: BLOCK].mean()) if offset else float(steps[BLOCK - 1 :: BLOCK].mean())


@pytest.mark.parametrize("draw", [0.0, 0.4, 0.99])
def test_blocks_begin_where_the_draw_says(draw: float) -> None:
    ramp = torch.linspace(60, 200, 64).expand(1, 3, 64, 64)
    noisy = (ramp + 25 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))).round()
    seen = recompress(noisy.clamp(0, 255), torch.tensor([[0.0, 0.0, draw]]), (8, 8))[0]
    edges = [blockiness(seen, offset) for offset in range(BLOCK)]
    # The image begins `int(draw * 8)` pixels into a block, so the next block begins that much earlier.
    assert int(np.argmax(edges)) == (BLOCK - int(draw * BLOCK)) % BLOCK


def test_high_quality_keeps_a_smooth_picture_and_low_quality_does_not() -> None:
    x = pictures()
    smooth = torch.nn.functional.avg_pool2d(x, 9, 1, 4).round()
    draws = torch.rand(4, 3, generator=torch.Generator().manual_seed(2))
    fine = recompress(smooth, draws, (98, 98))
    assert fine.shape == smooth.shape
    assert torch.equal(fine, fine.round())
    assert float((fine - smooth).abs().mean()) < 2
    assert float((recompress(x, draws, (10, 10)) - x).abs().mean()) > 20
    assert recompress(x[:0], draws[:0], (70, 90)).shape == (0, 3, 64, 64)


def test_qualities_are_drawn_from_the_whole_range() -> None:
    x = pictures(2)
    low = recompress(x, torch.tensor([[0.0, 0.0, 0.0], [0.999, 0.0, 0.0]]), (30, 90))
    assert torch.equal(low[:1], recompress(x[:1], torch.zeros(1, 3), (30, 30)))
    assert torch.equal(low[1:], recompress(x[1:], torch.zeros(1, 3), (90, 90)))


def test_a_copy_depends_on_its_own_draws_and_no_other_image() -> None:
    x = pictures() / 255
    destroyer = TraceDestroyer(("smooth",), recompress=(70, 90))
    together = destroyer(x, torch.Generator().manual_seed(5))
    alone = destroyer(x[:1], torch.Generator().manual_seed(5))
    assert torch.equal(together[:1], alone)
    assert destroyer.width == TraceDestroyer(("smooth",)).width + 3


@pytest.mark.parametrize("wrong", [(90, 70), (0, 50), (50, 101), (70,), (70.5, 80), (True, 80)])
def test_wrong_qualities_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="JPEG qualities from 1 to 100"):
        check_qualities(wrong, "model.copies.recompress")
