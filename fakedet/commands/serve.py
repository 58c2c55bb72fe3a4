"""``fakedet serve``: a page to drop a picture on."""

from __future__ import annotations

from omegaconf import DictConfig

from fakedet.runs.serve import serve


def run(config: DictConfig, overrides: list[str]) -> None:
    """Serve the page until interrupted."""
    serve(config)
