"""``fakedet export``: a checkpoint in, ONNX or torch.export out."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from fakedet.runs.export import export

log = logging.getLogger("fakedet")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Export, and say how near it is to the original."""
    path, worst = export(config, overrides)
    log.info("logits differ from PyTorch's by at most %.2g on %d images", worst, config.check)
    log.info("model        %s (%.1f MB)", path, path.stat().st_size / 1e6)
    log.info("description  %s.json", path)
