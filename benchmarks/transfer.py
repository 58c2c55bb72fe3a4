"""A training step of stage 2, with its frozen source and the soft contrastive loss, against one of cross-entropy.

Both are whole fits of fakedet over the same batches, 64 crops of 96 x 96. The source runs without a graph, so a step
costs a forward pass more and no backward pass more. Where images never change (no augmentation, no larger than the
crop) the source is asked once for each; that is the second row.

Run: python -m benchmarks.transfer
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

import cv2
import pandas as pd
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from benchmarks.ratio import interleaved, table
from benchmarks.training import manifest
from fakedet.cli.app import register_resolvers
from fakedet.training.train import fit, make_datamodule, train
from fakedet.utils import quiet_libraries

CROP, BATCH, STEPS, ROUNDS = 96, 64, 12, 5


def fixed(folder: Path, path: Path) -> Path:
    """Write the same images cut to the crop, and a manifest that says so."""
    frame = pd.read_csv(path)
    for name in frame["path"]:
        cv2.imwrite(str(folder / f"fixed_{name}"), cv2.imread(str(path.parent / name))[:CROP, :CROP])
    frame = frame.assign(path="fixed_" + frame["path"], width=CROP, height=CROP)
    frame.to_csv(folder / "fixed.csv", index=False)
    return folder / "fixed.csv"


def settings(folder: Path, path: Path, *more: str) -> DictConfig:
    """Compose a training."""
    register_resolvers()
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        return compose("train", overrides=[
            "data=manifest", f"data.manifest={path}", f"data.crop_size={CROP}", f"data.batch_size={BATCH}",
            f"data.steps_per_epoch={STEPS}", "trainer.max_epochs=2", "callbacks.resume=null",
            "header_audit=false", "overwrite=true", "test_after_fit=false", "operating_point.calibration=none", *more,
        ])  # fmt: skip


def main() -> None:
    """Time both, print the table."""
    torch.set_num_threads(1)
    quiet_libraries()
    warnings.filterwarnings("ignore")
    logging.getLogger("fakedet").setLevel(logging.ERROR)
    timings = []
    with tempfile.TemporaryDirectory(prefix="fakedet-benchmark-") as name:
        folder = Path(name)
        changing = manifest(folder)
        frame = pd.read_csv(changing)
        # A validation split, as training wants one: small, and the same for both.
        last = frame.index >= len(frame) - 4
        frame = frame.assign(split=frame["split"].where(~last, "val"), group=range(len(frame)))
        frame.to_csv(changing, index=False)
        trace = folder / "trace"
        train(settings(folder, changing, "model=ntf_stage1", "augment=none", f"output_dir={trace}",
                       "trainer.max_epochs=1", f"stage1_cache={folder / 'stage1'}"))  # fmt: skip
        stage1 = trace / "checkpoints" / "best.ckpt"
        for case, path, augment in (
            ("random crops", changing, "light"),
            ("images that never change", fixed(folder, changing), "none"),
        ):
            common = [f"augment={augment}", f"output_dir={folder / 'run'}"]
            ours = settings(folder, path, "model=ntf", *common)
            bce = settings(folder, path, "model=bce", *common)
            timings.append(interleaved(
                case, lambda c=ours: fit(c, folder / "run", make_datamodule(c), stage1),
                lambda c=bce: fit(c, folder / "run", make_datamodule(c)), 2 * STEPS, ROUNDS,
            ))  # fmt: skip
    print(table("a step of stage 2 against one of cross-entropy, two epochs", timings, None))


if __name__ == "__main__":
    main()
