"""Pictures are decoded once where they fit, and are the same pictures."""

from pathlib import Path

import numpy as np
import pytest

from fakedet.data import dataset as module
from fakedet.data.datamodule import ImageDataModule
from fakedet.data.dataset import PictureMemory, decode_image
from fakedet.data.transforms import Augmentation


def test_what_fits_is_kept_and_is_the_callers_own() -> None:
    memory = PictureMemory(2 * 12)
    first, second = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.ones((2, 2, 3), np.uint8)
    memory.keep(5, first)
    memory.keep(5, second)
    given = memory.get(5)
    assert given is not None
    np.testing.assert_array_equal(given, np.arange(12).reshape(2, 2, 3))
    given[:] = 0
    first[:] = 0
    np.testing.assert_array_equal(memory.get(5), np.arange(12).reshape(2, 2, 3))
    memory.keep(6, second)
    memory.keep(7, second)
    assert memory.get(6) is not None
    assert memory.get(7) is None, "the first fill it"
    assert memory.get(8) is None


@pytest.mark.parametrize(("workers", "recipe"), [(0, "none"), (0, "light"), (2, "none")])
def test_epochs_are_the_same_with_and_without_it(
    tiny_manifest: Path, monkeypatch: pytest.MonkeyPatch, workers: int, recipe: str
) -> None:
    def epochs() -> tuple[list[np.ndarray], list[int]]:
        data = ImageDataModule(str(tiny_manifest), crop_size=32, batch_size=16, num_workers=workers,
                               augment=Augmentation(recipe))  # fmt: skip
        data.prepare()
        loader, seen, decoded = data.train_dataloader(), [], []
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            before = len(calls)
            seen += [batch["image"].numpy() for batch in loader]
            decoded.append(len(calls) - before)
        return seen, decoded

    calls: list[int] = []
    original = decode_image
    monkeypatch.setattr(module, "decode_image", lambda content: calls.append(1) or original(content))
    kept, decoded = epochs()
    if workers == 0:
        assert decoded[0] > 0
        assert decoded[1] < 0.2 * decoded[0]
    monkeypatch.setattr(PictureMemory, "keep", lambda *_: None)
    plain, decoded = epochs()
    if workers == 0:
        assert decoded[0] == decoded[1]
    assert len(kept) == len(plain) > 0
    for one, other in zip(kept, plain, strict=True):
        np.testing.assert_array_equal(one, other)
