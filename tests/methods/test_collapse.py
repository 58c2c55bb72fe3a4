"""Stage 1 on demo data: with trace-destroyed copies the trace does not collapse; without them it does."""

from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_module

from fakedet.cli.app import register_resolvers
from fakedet.training.train import train


def last_collapse(tmp_path: Path, cache: Path, *overrides: str) -> dict[str, float]:
    register_resolvers()
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        config = compose("train", overrides=[
            "experiment=demo", "model=ntf_stage1", f"data.cache={cache}", "trainer.max_epochs=4",
            "test_after_fit=false", f"output_dir={tmp_path / 'run'}", "stage1_cache=null", *overrides])  # fmt: skip
    done = train(config)
    curves = pd.read_csv(done.folder / "logs" / "metrics.csv")
    return {key: curves[f"collapse/{key}"].dropna().iloc[-1] for key in ("mean_cosine", "std", "effective_rank")}


@pytest.mark.slow
def test_the_trace_does_not_collapse_with_destroyed_copies(tmp_path: Path, demo_cache: Path) -> None:
    with_copies = last_collapse(tmp_path / "with", demo_cache)
    without = last_collapse(tmp_path / "without", demo_cache, "model.copies=null")
    assert with_copies["mean_cosine"] < 0.97
    assert with_copies["std"] > 0.02
    assert with_copies["effective_rank"] > 2
    # What the copies are for: the literal objective maps all reals to nearly one point.
    assert without["mean_cosine"] > with_copies["mean_cosine"]
    assert without["std"] < with_copies["std"]
