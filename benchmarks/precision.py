"""What bfloat16 does to the AUC of the detector that ships, on validation pictures of the corpus `wide`.

FAKEDET_WIDE names the corpus' folder and FAKEDET_CLIP the backbone's weights. At most 90 pictures of each collection
and generator; the interval of the difference is over pictures.

Run: python -m benchmarks.precision
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

import fakedet
from fakedet.data.decode import decode_image
from fakedet.data.transforms import evaluation_views

EACH, RESAMPLES = 90, 1000


def main() -> None:
    """Score every picture in both precisions, print what differs."""
    os.environ.pop("FAKEDET_FEATURES", None)
    folder = Path(os.environ["FAKEDET_WIDE"])
    table = pd.read_csv(folder / "manifest.csv")
    groups = table[table["split"] == "val"].groupby(["label", "generator"])
    rows = pd.concat([own.sample(min(len(own), EACH), random_state=0) for _, own in groups])
    detector = fakedet.load("wide", device="cpu")
    assert detector.operating_point is not None
    threshold, backbone = detector.operating_point.threshold, detector.module.encoder.backbone  # type: ignore[union-attr]
    logits = {"bfloat16": np.zeros(len(rows)), "float32": np.zeros(len(rows))}
    for precision, found in logits.items():
        backbone.precision, backbone._fast = precision, ()  # type: ignore[union-attr]
        backbone.cache.forget()  # type: ignore[union-attr, operator]
        for number, path in enumerate(rows["path"]):
            image = decode_image((folder / path).read_bytes())
            crops = np.stack(evaluation_views(image, detector.crop_size, detector.crop_policy))
            with torch.inference_mode():
                found[number] = detector.module(torch.from_numpy(crops).permute(0, 3, 1, 2) / 255).logit.mean()
    label, fast, exact = rows["label"].to_numpy(), *logits.values()
    drawn = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    differences = [roc_auc_score(label[i], fast[i]) - roc_auc_score(label[i], exact[i]) for i in drawn]
    low, high = np.percentile(differences, [2.5, 97.5])
    print(f"{len(rows)} pictures ({(label == 0).sum()} real, {(label == 1).sum()} fake)")
    print(f"AUC {roc_auc_score(label, fast):.4f} in bfloat16, {roc_auc_score(label, exact):.4f} in float32, difference "
          f"{roc_auc_score(label, fast) - roc_auc_score(label, exact):+.5f} [{low:+.4f}, {high:+.4f}]")  # fmt: skip
    print(f"logits: correlation {np.corrcoef(fast, exact)[0, 1]:.4f}, mean difference {np.abs(fast - exact).mean():.2f}"
          f", at most {np.abs(fast - exact).max():.2f}; {((fast > threshold) != (exact > threshold)).sum()} decisions "
          "differ")  # fmt: skip


if __name__ == "__main__":
    main()
