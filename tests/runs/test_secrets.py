"""A key never gets into a run's folder or onto the console."""

from pathlib import Path

import pytest

from fakedet.cli.app import launch

KEY = "0123456789abcdef" * 2 + "deadbeef"


@pytest.mark.slow
def test_a_key_in_the_environment_stays_there(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, KEY)
    assert launch("train", [
        "model=bce", "data=manifest", f"data.manifest={tiny_manifest}", "data.crop_size=32", "data.batch_size=8",
        "trainer.max_epochs=1", "threads=1", "bootstrap.resamples=0", "logger=wandb", "logger.offline=true",
        f"output_dir={tmp_path / 'run'}",
    ]) == 0  # fmt: skip
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 8
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
