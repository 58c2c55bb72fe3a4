"""A wrong key or value is one clear line that names the nearest valid one."""

from pathlib import Path

import pytest

from fakedet.cli import app
from fakedet.config import check_command_line, expand_encoders
from fakedet.errors import UserError
from fakedet.utils import is_main_process

MISTAKES = [
    (["modle=trace"], "no key 'modle'; did you mean 'model'?"),
    (["model=nft"], "model=nft: there is no such config; did you mean 'ntf'?"),
    (["experiment=nft"], "did you mean 'ntf'?"),
    (["trainer=gpus"], "did you mean 'gpu'?"),
    (["model.temprature=0.3"], "no key 'model.temprature'; did you mean 'model.loss.temperature'?"),
    (["stage1.optimizer.lrr=1"], "did you mean 'stage1.optimizer.lr'?"),
    (["trainer.max_epochs=ten"], "trainer.max_epochs=ten: expected a whole number"),
    (["trainer.max_epochs=1.5"], "expected a whole number"),
    (["model.loss.temperature=warm"], "expected a number"),
    (["trainer.deterministic=1"], "expected true or false"),
    (["threads=many"], "threads=many: expected a whole number"),
    (["seed=1,x", "-m"], "seed=x: expected a whole number"),
    (["model=ntf_stage1,bse", "-m"], "model=bse: there is no such config; did you mean 'bce'?"),
    (["data=manifest"], "data.manifest is not given; pass data.manifest="),
    (["stage1.encoder.width=9"], "stage1.encoder is the same as model.encoder; pass model.encoder.width="),
    (["seed"], "'seed' is not of the form key=value"),
    (["logger=null"], "logger=null: a group is left out with ~logger"),
    (["model.optimizer=adam"], "expected a list or mapping"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistake_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_command_line("train", arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_given_alone_is_taken_for_the_source(tmp_path: Path) -> None:
    (tmp_path / "my inbox").mkdir()
    with pytest.raises(UserError, match=rf"did you mean 'source={tmp_path}/my inbox'\?"):
        check_command_line("predict", [f"{tmp_path}/my inbox"])


RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "WORLD_SIZE", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"RANK": "abc"}, "RANK is 'abc', no number"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1, the rank of a further process, but WORLD_SIZE names no others"),
        ({"RANK": "3", "WORLD_SIZE": "1"}, "RANK is 3"),
        ({"SLURM_PROCID": "2"}, "SLURM_PROCID is 2, the rank of a further process, but SLURM_NTASKS"),
        ({"SLURM_PROCID": "-1", "SLURM_NTASKS": "4"}, "SLURM_PROCID is '-1', no number"),
        ({"NODE_RANK": "first"}, "NODE_RANK is 'first', no number"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x', no number"),
        ({"SLURM_NTASKS": "abc"}, "SLURM_NTASKS is 'abc', no number"),
    ],
    ids=str,
)
def test_a_rank_that_no_launcher_has_set_is_named(
    given: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert app.launch("train", ["model=bce", "trainer.max_epochs=1"]) == 2
    told = capsys.readouterr().err
    assert named in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ranks_that_launchers_set_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    assert is_main_process()
    for rank, processes in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        for value in ("0", "", "1"):
            with monkeypatch.context() as here:
                here.setenv(rank, value)
                here.setenv(processes, "2")
                assert is_main_process() == (value != "1")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model=ntf_stage1,bce", "seed=1,2,3", "-m"],
        ["seed=range(3)", "-m"],
        ["model.loss.temperature=1", "threads=2", "trainer.limit_train_batches=0.5"],
        ["~logger", "+note=hello"],
        ["data=manifest", "data.manifest=a.csv", "data.pairs={a: [b, c*]}"],
        ["hydra.verbose=true", "output_dir=/tmp/x", "name='a b'"],
        ["stage1_checkpoint=some/file.ckpt"],
        ["--help"],
    ],
    ids=str,
)
def test_valid_command_lines_pass(arguments: list[str]) -> None:
    check_command_line("train", arguments)


def test_evaluate_needs_a_checkpoint() -> None:
    with pytest.raises(UserError, match=r"checkpoint is not given; pass checkpoint=\.\.\.: the \.ckpt file"):
        check_command_line("evaluate", ["data.manifest=x.csv"])


def test_any_timm_name_is_an_encoder() -> None:
    assert expand_encoders(["seed=1", "model/encoder=resnet18"]) == [
        "seed=1", "model/encoder=timm", "model.encoder.name=resnet18"]  # fmt: skip
    assert expand_encoders(["model/encoder=small"]) == ["model/encoder=small"]
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        expand_encoders(["model/encoder=resnet81"])
    with pytest.raises(UserError, match=r"model\.encoder\.name=small,resnet18"):
        expand_encoders(["model/encoder=small,resnet18"])


def test_configs_of_your_own_folder_are_known(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("defaults: [bce, _self_]\nname: wide\nencoder: {width: 64}\n")
    check_command_line("train", ["--config-dir", str(tmp_path), "model=wide", "model.encoder.width=48"])
    with pytest.raises(UserError, match="did you mean 'wide'"):
        check_command_line("train", ["--config-dir", str(tmp_path), "model=wid"])
    with pytest.raises(UserError, match="there is no such folder"):
        check_command_line("train", ["--config-dir", str(tmp_path / "nothing")])
