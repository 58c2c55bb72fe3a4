"""Copies that are kept are the copies that would have been made."""

import torch

from fakedet.methods.destroy import CopyMemory, TraceDestroyer
from fakedet.methods.ntf import fixed_draws


def test_copies_from_memory_are_bit_for_bit_those_of_the_destroyer() -> None:
    destroyer = TraceDestroyer(("resample", "zero_insert", "lowpass", "smooth"), 0.4, (75, 96))
    calls: list[int] = []
    original = destroyer.forward
    destroyer.forward = lambda images, **settings: calls.append(len(images)) or original(images, **settings)  # type: ignore[method-assign]
    images = torch.randint(0, 256, (9, 3, 24, 24), generator=torch.Generator().manual_seed(0)).float() / 255
    ids = torch.arange(20, 29)
    draws = fixed_draws(ids, destroyer.width)
    wanted = original(images, draws=draws)
    memory = CopyMemory(destroyer, capacity=7 * 3 * 24 * 24)
    for batch in ([0, 1, 2, 2], [1, 0, 5, 8], [8, 7, 6, 5, 4, 3, 2, 1, 0], list(range(9))):
        assert torch.equal(memory(images[batch], ids[batch], draws[batch]), wanted[batch])
    assert calls == [4, 2, 4, 2], "new ones alone, and the two that there was no room for again"
