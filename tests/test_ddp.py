"""Two processes (gloo, CPU) through the real command line: one folder, each test row once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from fakedet.evaluation.predictions import read_predictions

WITHOUT_BATCHNORM = Path(__file__).with_name("without_batchnorm.py")


def fakedet(
    *arguments: str, cwd: Path, program: tuple[str, ...] = ("-m", "fakedet")
) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LOCAL_", "MASTER_"))}
    return subprocess.run([sys.executable, *program, *arguments], cwd=cwd, env=environment,
                          capture_output=True, text=True, timeout=900, check=False)  # fmt: skip


@pytest.mark.slow
def test_two_ranks_train_into_one_folder_and_count_each_row_once(tiny_manifest: Path, tmp_path: Path) -> None:
    done = fakedet("train", "model=ntf", "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1",
                   "data=manifest", f"data.manifest={tiny_manifest}", "data.crop_size=32", "data.batch_size=16",
                   "threads=1", "bootstrap.resamples=20", "output_dir=run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    frame, _ = read_predictions(tmp_path / "run" / "predictions.parquet")
    manifest = pd.read_csv(tiny_manifest)
    assert sorted(frame["path"]) == sorted(manifest.loc[manifest["split"] == "test", "path"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["map"]["value"] is not None
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_sweep_runs_each_job_once_in_a_folder_of_its_own(tiny_manifest: Path, tmp_path: Path) -> None:
    done = fakedet("train", "-m", "model=bce", "seed=1,2", "data=manifest", f"data.manifest={tiny_manifest}",
                   "data.crop_size=32", "data.batch_size=16", "debug=step", "hydra.sweep.dir=sweep",
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [json.loads((job / "run.json").read_text())["seed"] for job in jobs] == [1, 2]


@pytest.mark.slow
def test_a_sweep_over_two_ranks_runs_each_job_once_and_outlives_a_failed_one(
    tiny_manifest: Path, tmp_path: Path
) -> None:
    done = fakedet("train", "-m", "model=bce", "model.optimizer.lr=1e30,1e-2", "data=manifest",
                   f"data.manifest={tiny_manifest}", "data.crop_size=32", "data.batch_size=16",
                   "data.steps_per_epoch=9", "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1",
                   "trainer.gradient_clip_val=null",
                   "model.optimizer.warmup=0", "threads=1", "bootstrap.resamples=0", "header_audit=false",
                   "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "fakedet: the loss is" in done.stderr
    assert "Traceback" not in done.stderr
    # Each rank says once that it begins.
    assert done.stdout.count("training bce on") == 4
    manifest = pd.read_csv(tiny_manifest)
    frame, _ = read_predictions(tmp_path / "sweep" / "1" / "predictions.parquet")
    assert sorted(frame["path"]) == sorted(manifest.loc[manifest["split"] == "test", "path"])
    assert "the loss is" in (tmp_path / "sweep" / "0" / "failure.json").read_text()
    assert not (tmp_path / "sweep" / "0" / "run.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep", "tiny"]


@pytest.mark.slow
def test_two_ranks_score_degraded_views_as_one_process_does(tiny_manifest: Path, tmp_path: Path) -> None:
    (tiny_manifest.parent / "gen_c" / "test 0.jpg").write_bytes(b"broken")  # the ranks' shares are uneven
    common = ["checkpoint=demo", f"data.manifest={tiny_manifest}", "robustness=quick", "threads=1",
              "header_audit=false", "bootstrap.resamples=0", "data.max_quarantine=0.5"]  # fmt: skip
    for name, more in (("one", []), ("two", ["trainer=ddp", "trainer.accelerator=cpu"])):
        done = fakedet("evaluate", *common, *more, f"output_dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (read_predictions(tmp_path / name / "predictions.parquet")[0] for name in ("one", "two"))
    assert len(one) == 23 * 5
    pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-4)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert metrics[0]["quarantined"] == metrics[1]["quarantined"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bce", "supcon", "ntf_stage1", "ntf"])
def test_two_ranks_learn_what_one_process_with_their_batch_learns(
    model: str, tiny_manifest: Path, tmp_path: Path
) -> None:
    """Losses, gradients, gathered rows, class balance and data order: any difference would show in the weights.

    Encoder and heads have no batch normalisation: on CPUs each rank has batch statistics of its own; on GPUs
    PyTorch's ``sync_batchnorm`` shares them.
    """
    # Plain SGD: Adam would blow rounding up where a gradient is near zero.
    common = [f"model={model}", "data=manifest", f"data.manifest={tiny_manifest}", "data.crop_size=32", "threads=1",
              "data.batch_size=16", "data.steps_per_epoch=3", "trainer.max_epochs=1", "bootstrap.resamples=0",
              "model.optimizer.name=sgd", "model.optimizer.lr=0.05", "header_audit=false", "test_after_fit=false",
              "trainer.gradient_clip_val=null", "stage1_cache=null", "augment=cnndet", "stage1.optimizer.name=sgd",
              "stage1.optimizer.lr=0.05", "trainer.log_every_n_steps=1"]  # fmt: skip
    # Without ReLU, whose kinks turn rounding in the last digit into another gradient.
    common += ["model/encoder=test_convnext", "model.encoder.frontend=rgb"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.log_every_n_steps=1",
           "trainer.gradient_clip_val=null"]  # fmt: skip
    for name, more in (("one", []), ("two", two)):
        done = fakedet("train", *common, *more, f"output_dir={name}", cwd=tmp_path, program=(str(WITHOUT_BATCHNORM),))
        assert done.returncode == 0, done.stdout + done.stderr
    states = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
              for name in ("one", "two")]  # fmt: skip
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        torch.testing.assert_close(
            states[1][key], value, rtol=1e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    curves = [pd.read_csv(tmp_path / name / "logs" / "metrics.csv") for name in ("one", "two")]
    for column in ("val/loss", "val/map"):
        if column in curves[0]:
            one, other = (table[column].dropna().to_numpy() for table in curves)
            assert one == pytest.approx(other, rel=1e-3), column


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = fakedet("train", "modle=trace", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "fakedet: there is no key 'modle'; did you mean 'model'?"
    assert not list(tmp_path.iterdir())


def test_help_is_quick_and_imports_no_torch(tmp_path: Path) -> None:
    program = "import sys; sys.argv = ['fakedet', '--help']; from fakedet.cli import main; main(); " \
              "assert 'torch' not in sys.modules and 'hydra' not in sys.modules"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("train", "evaluate", "study"):
        assert verb in done.stdout


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept(tiny_manifest: Path, tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "fakedet", "train", "model=bce", "data=manifest", f"data.manifest={tiny_manifest}",
         "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=10000", "threads=1", "output_dir=run"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell starts what runs in the background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    last = tmp_path / "run" / "checkpoints" / "resume.ckpt"
    for _ in range(600):
        if last.is_file():
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=180)
    assert run.returncode == 130
    assert "fakedet: interrupted; what was written so far is kept" in errors
    assert "Traceback" not in errors
    assert last.is_file()
