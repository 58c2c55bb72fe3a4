"""A training step of fakedet against a bare PyTorch loop over the same model and loader.

Ours is all of ``Trainer.fit``: Lightning, its hooks, the CSV log, and the default callbacks (progress, guard against
NaN, throughput, resume points). The reference is what one writes without a framework: the same batches from the same
DataLoader, forward, backward, clipping, AdamW, schedule. Setting the trainer up is timed with ours. And the price of
being safe to resume: the same with a resume point every 50 steps and with none.

Run: python -m benchmarks.training
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from benchmarks.ratio import Timing, interleaved, table
from fakedet.build import build_callbacks, build_method, build_trainer
from fakedet.cli.app import register_resolvers
from fakedet.methods.base import configure_optimiser
from fakedet.training.train import make_datamodule
from fakedet.utils import quiet_libraries

CASES = {
    # name: width of the encoder, crop, batch, steps
    "tiny step": (8, 32, 16, 300),
    "large step": (32, 96, 64, 16),
}
ROUNDS = 5


def manifest(folder: Path) -> Path:
    """Write 64 small noise images of either class."""
    rng, rows = np.random.default_rng(0), []
    for number in range(128):
        name = f"{number}.png"
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (100, 100, 3), dtype=np.uint8))
        rows.append({"path": name, "label": number % 2, "generator": "ab"[number % 2], "split": "train"})
    pd.DataFrame(rows).to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


def settings(path: Path, folder: Path, width: int, crop: int, batch: int, steps: int, every: int) -> DictConfig:
    """Compose a training of BCE without validation."""
    register_resolvers()
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        return compose("train", overrides=[
            "model=bce", f"model.encoder.width={width}", "data=manifest", f"data.manifest={path}",
            f"data.crop_size={crop}", f"data.batch_size={batch}", f"data.steps_per_epoch={steps}",
            "trainer.max_epochs=1",
            "trainer.limit_val_batches=0", f"callbacks.resume.every_steps={every}", "~callbacks.checkpoint",
            f"output_dir={folder}",
        ])  # fmt: skip


def ours(config: DictConfig) -> None:
    """Train with everything that a run has."""
    datamodule = make_datamodule(config)
    method = build_method(_plain(config.model))
    method.info = {"manifest_sha256": ""}
    callbacks = build_callbacks(_plain(config.callbacks))
    trainer = build_trainer(
        _plain(config.trainer), logger=CSVLogger(config.output_dir, name="logs", version=""),
        callbacks=list(callbacks.values()),
        enable_progress_bar=False, default_root_dir=str(config.output_dir), enable_checkpointing=True,
    )  # fmt: skip
    trainer.fit(method, datamodule=datamodule)


def waits(config: DictConfig, rounds: int) -> str:
    """Say which share of a bare loop is waiting for data, in percent: median (min-max)."""
    shares = []
    for _ in range(rounds):
        start = time.perf_counter()
        waited = bare(config)
        shares.append(100 * waited / (time.perf_counter() - start))
    return f"{np.median(shares):.0f} ({min(shares):.0f}-{max(shares):.0f})"


def bare(config: DictConfig) -> float:
    """Train the same steps by hand; give the seconds spent waiting for batches."""
    datamodule = make_datamodule(config)
    method: Any = build_method(_plain(config.model))
    both = configure_optimiser(method.parameters(), _plain(config.model.optimizer), config.data.steps_per_epoch)
    optimiser, scheduler = both["optimizer"], both["lr_scheduler"]["scheduler"]
    method.train()
    waited, batches = 0.0, iter(datamodule.train_dataloader())
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - start
        if batch is None:
            return waited
        images = batch["image"][:, 0].float().div(255.0)
        loss = F.binary_cross_entropy_with_logits(method.classifier(method.encoder(images)), batch["label"].float())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), config.trainer.gradient_clip_val)
        optimiser.step()
        scheduler.step()


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def main() -> None:
    """Time all, print the tables."""
    torch.set_num_threads(1)
    quiet_libraries()
    warnings.filterwarnings("ignore")
    logging.getLogger("fakedet").setLevel(logging.ERROR)
    steps: list[Timing] = []
    safety: list[Timing] = []
    shares: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fakedet-benchmark-") as name:
        folder = Path(name)
        path = manifest(folder)
        for case, (width, crop, batch, count) in CASES.items():
            usual = settings(path, folder / "run", width, crop, batch, count, 200)
            safe = settings(path, folder / "safe", width, crop, batch, count, 50 if count > 50 else 4)
            none = settings(path, folder / "none", width, crop, batch, count, 10**6)
            shares[case] = waits(usual, ROUNDS)
            steps.append(interleaved(case, lambda c=usual: ours(c), lambda c=usual: bare(c), count, ROUNDS))
            safety.append(interleaved(case, lambda c=safe: ours(c), lambda c=none: ours(c), count, ROUNDS))
    print(table("a step: fakedet's whole fit against a bare loop", steps, 1.0))
    for timing in steps:
        extra = [1e3 * (own - theirs) for own, theirs in zip(timing.ours, timing.reference, strict=True)]
        print(f"- {timing.name}: {np.median(extra):+.2f} ms a step ({min(extra):+.2f} to {max(extra):+.2f})")
    for case, share in shares.items():
        print(f"- {case}: {share} % of a step of the bare loop is waiting for data, loaded by the same process")
    print()
    print(table("a step with resume points (every 50 or 4 steps) against one without", safety, 1.0))


if __name__ == "__main__":
    main()
