"""Over a frozen backbone a picture is decoded once in a process, and the numbers are those of decoding it each time."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

import fakedet
from fakedet.data import dataset
from fakedet.evaluation.predictions import read_predictions
from fakedet.models.features import FeatureCache


def write(tmp_path: Path, height: int) -> Path:
    """Write small pictures of the size of a crop, some of another height."""
    rng, rows = np.random.default_rng(0), []
    for label, split in ((label, split) for label in (0, 1) for split in ("train", "val", "test")):
        for number in range(6):
            image = rng.integers(0, 256, (height if number == 5 else 32, 32, 3), dtype=np.uint8)
            name = f"{label}-{split}-{number}.png"
            cv2.imwrite(str(tmp_path / name), cv2.GaussianBlur(image, (3, 3), 0) if label else image)
            rows.append({"path": name, "label": label, "generator": "ab"[label], "split": split, "group": name})
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


COPIES = {"model__copies_per_real": 0.5, "model__fixed_copies": True, "model__copies__kinds": ["lowpass"]}


@pytest.mark.parametrize(("height", "more"), [(32, {}), (32, COPIES), (40, {})], ids=["plain", "copies", "larger"])
def test_a_picture_is_decoded_once(
    height: int, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write(tmp_path, height)
    decoded: list[int] = []
    original = dataset.decode_image
    monkeypatch.setattr(dataset, "decode_image", lambda data: decoded.append(len(data)) or original(data))
    monkeypatch.delenv("FAKEDET_FEATURES", raising=False)
    logits, counts = {}, {}
    for name, workers in (("again", 1), ("once", 0), ("once more", 0)):
        FeatureCache.clear()
        decoded.clear()
        run = fakedet.train(
            "model=bce", experiment="frozen", data__manifest=str(manifest), data__crop_size=32, data__batch_size=8,
            data__steps_per_epoch=3, model__epochs=4, model__encoder__name="test_efficientnet",
            model__encoder__pretrained=False, model__encoder__weights=None, model__encoder__input_size=None,
            model__encoder__hidden=8, output_dir=str(tmp_path / name), data__num_workers=workers, threads=1,
            header_audit=False, bootstrap__resamples=0, pictures=0, **more,
        )  # fmt: skip
        logits[name] = read_predictions(run.folder / "predictions.parquet")[0]["logit"].to_numpy()
        counts[name] = len(decoded)
    assert np.array_equal(logits["once"], logits["again"])
    assert np.array_equal(logits["once more"], logits["again"])
    if height == 32:  # seen to know it, and again where features or a copy's are not known
        assert counts["once"] <= 3 * 36
        assert counts["once more"] <= 2 * 36
