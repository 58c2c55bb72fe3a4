"""What the trace residual is fitted to: training images alone, siblings of one photograph in one half."""

import types
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fakedet.data.datamodule import ImageDataModule
from fakedet.methods.ntf import fit_residual


def test_siblings_share_a_half_and_nothing_but_training_images_is_seen(tiny_manifest: Path) -> None:
    frame = pd.read_csv(tiny_manifest)
    reals = (frame["split"] == "train") & (frame["label"] == 0)
    frame["group"] = frame["path"]
    frame.loc[reals, "group"] = [f"photo{index // 3}" for index in range(int(reals.sum()))]
    frame.to_csv(tiny_manifest, index=False)
    data = ImageDataModule(str(tiny_manifest), crop_size=24)
    data.prepare()
    seen: dict[str, Any] = {}
    residual: Any = types.SimpleNamespace(
        size=100, fit=lambda reals, half, fakes: seen.update(reals=reals, half=half.tolist(), fakes=fakes)
    )
    encoder = types.SimpleNamespace(features=lambda images: images.mean(dim=(2, 3)))
    module: Any = types.SimpleNamespace(trainer=types.SimpleNamespace(datamodule=data), device=torch.device("cpu"))
    fit_residual(residual, encoder, module)
    rows = data.manifest.rows("train")
    assert len(seen["reals"]) == len(seen["half"]) == (rows["label"] == 0).sum()
    assert len(seen["fakes"]) == (rows["label"] == 1).sum()
    groups = rows.loc[rows["label"] == 0, "group"].tolist()
    of_group: dict[str, set[int]] = {}
    for group, half in zip(groups, seen["half"], strict=True):
        of_group.setdefault(group, set()).add(half)
    assert all(len(halves) == 1 for halves in of_group.values())
    assert set(seen["half"]) == {0, 1}
