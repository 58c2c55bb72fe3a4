"""Where training images never change, the source's traces are kept, and nothing else changes."""

from pathlib import Path

import cv2
import pandas as pd
import pytest
import torch

from fakedet.methods.ntf import ContrastiveTransfer
from fakedet.training.train import train
from tests.runs.test_training import composed


@pytest.mark.parametrize(
    ("augment", "width", "remembers"),
    [
        ("none", 32, True),
        ("light", 32, False),
        ("none", 40, False),
    ],
)
def test_traces_are_kept_where_images_never_change(
    tiny_manifest: Path,
    tmp_path: Path,
    augment: str,
    width: int,
    remembers: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = pd.read_csv(tiny_manifest)
    for name in table["path"]:
        file = str(tiny_manifest.parent / name)
        cv2.imwrite(file, cv2.resize(cv2.imread(file), (width, 32)))
    table.assign(width=width, height=32).to_csv(tiny_manifest, index=False)
    calls: list[bool] = []
    original = ContrastiveTransfer._traces

    def watched(
        self: ContrastiveTransfer, images: torch.Tensor, copies: torch.Tensor, batch: dict
    ) -> torch.Tensor:
        calls.append(self._memory is not None)
        found = original(self, images, copies, batch)
        torch.testing.assert_close(found, self.source(torch.cat([images, copies])))
        return found

    monkeypatch.setattr(ContrastiveTransfer, "_traces", watched)
    train(composed(tmp_path / "run", "model=transfer", f"data.manifest={tiny_manifest}", f"augment={augment}",
                   "header_audit=false", "test_after_fit=false"))  # fmt: skip
    assert calls
    assert set(calls) == {remembers}
