"""Whatever fakedet prints as a command works as printed, in a real shell, and paths are taken as they are typed."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fakedet import UserError, compose
from fakedet.cli.app import launch
from fakedet.config import as_typed, shown_command

NAMES = [
    "1_seed=1", "3_seed=1,model=bce", "with space", " lead", "trail ", "it's", 'say "hi"', "'quoted'", '"quoted"',
    "back\\slash", "back\\,comma", "end\\", "[list]", "[a,b]", "photos[1]", "photos (1)", "{a}", "choice(a,b)", "a$b",
    "$HOME", "~", "~/m", "~root", "état/中文", "a;b&c|d<e>f", "a#b!c^d`e", "2024", "1e3", "null", "true", "new\nline",
    "-", "tab\tbed", "a*?.[x]", "\udcff", "a:b", "...", ",", "=", "100%", "@x", "-x",
]  # fmt: skip


def words(command: str) -> list[str]:
    """Split a command as bash does."""
    script = f"fakedet() {{ printf '%s\\0' \"$@\"; }}; {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, text=True, errors="surrogateescape")
    return done.stdout.split("\0")[:-1]


def value_of(word: str) -> Any:
    """Give what Hydra reads in a word of the command line."""
    (taken,) = as_typed([word])
    return OverridesParser.create().parse_override(taken).value()


def run(command: str) -> int:
    """Run a printed command in this process, after a shell has taken it apart."""
    verb, *arguments = words(command)
    return launch(verb, arguments)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_path_is_taken_as_it_was_printed_and_as_it_is_typed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = words(shown_command("report", predictions=name))[1:]
    assert Path(value_of(*printed)) == Path(name), "whether it is there or not"
    if name in ("null", "true", "~", "~root", "~/m"):
        return  # they mean something else, unless ./ stands before them
    Path(name).mkdir(parents=True)
    for key in ("predictions", "run", "runs", "source", "data.manifest", "++data.root", "hydra.sweep.dir"):
        assert value_of(f"{key}={name}") == name
    Path(name, "x").touch()
    two = value_of(f"predictions=[{name}/x, other/y]")
    assert list(map(Path, two)) == [Path(name, "x"), Path("other/y")] or name == " lead"


@pytest.mark.parametrize("value", ["~/m.csv", '"~/m.csv"', "'~/m.csv'"])
def test_a_tilde_is_the_home_folder(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = compose("evaluate", "checkpoint=~", f"data.manifest={value}", f"+data.root={value}", f"output_dir={value}")
    assert (config.checkpoint, config.data.manifest) == (str(tmp_path), f"{tmp_path}/m.csv")
    assert config.data.root == config.output_dir == f"{tmp_path}/m.csv"


def test_hydras_own_grammar_still_counts_in_values_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").touch()
    assert compose("report", "predictions=a\\=b").predictions == "a=b", "its escapes, if that file is there"
    assert compose("report", "predictions=['c,d',\"e\", f]").predictions == ["c,d", "e", "f"]
    assert compose("train", "stage1_cache=null").stage1_cache is None
    assert compose("train", "model=bce", "stage1_cache=${name}/x").stage1_cache == "bce/x"
    assert value_of("data.path=[1, 2]") == [1, 2], "a list for a class of one's own"
    assert value_of("data.file={a: 1}") == {"a": 1}
    (tmp_path / "${name}").touch()
    with pytest.raises(UserError, match="rename it, or make a link"):
        compose("report", "predictions=${name}")


@pytest.mark.slow
def test_every_command_that_a_sweep_prints_runs(
    tiny_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("it's a\\b, c=[d] $x ~é")
    shutil.move(tiny_manifest.parent, place)
    sweep = ["-m", "model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=1",
             "threads=1", "bootstrap.resamples=0", "header_audit=false", "seed=0", "data.steps_per_epoch=4",
             "model.optimizer.warmup=0", "trainer.gradient_clip_val=null", f"data.manifest={place}/manifest.csv",
             f"hydra.sweep.dir={place}/sweep, 1", "model.optimizer.lr=1e-3,1e30,-1"]  # fmt: skip
    assert launch("train", sweep) == 2
    said = capfd.readouterr().out
    report, *others = re.findall(r"\[\d\] next +(.*)", said)
    assert not others
    assert run(f"{report} bootstrap.resamples=20 'output_dir=re, port'") == 0
    assert Path("re, port/report.html").is_file()
    page = Path("re, port/report.html").read_text()
    again = html.unescape(re.findall(r"<pre>(fakedet.*?)</pre>", page, re.DOTALL)[0])
    assert run(again) == 0, "the page's own command makes it anew"
    (compare,) = re.findall(r"`(fakedet compare .*)` gives", said)
    capfd.readouterr()
    assert run(f"{compare} bootstrap.resamples=20") == 0
    alone = re.findall(r"Alone: (.*)", capfd.readouterr().out)
    assert [command.split()[1] for command in alone] == ["train", "resume"], "one was refused at once, one diverged"
    for command, cause in zip(alone, ("model.optimizer.lr=-1: must be above 0", "loss"), strict=True):
        assert run(command) == 2
        assert cause in capfd.readouterr().err
    # make takes them as well, and what ended is told, not that a word cannot be read.
    root = Path(__file__).parent.parent.parent
    folder = Path(words(alone[1])[1].partition("=")[2]).absolute()
    target = ["make", "-n", "--no-print-directory", "-C", str(root), "resume", f"RUN={folder}"]
    made = subprocess.run(target, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    assert words(made.replace(".venv/bin/fakedet", "fakedet"))[:2] == ["resume", f"run={folder}"]


@pytest.mark.slow
def test_every_command_that_a_study_prints_runs(
    tiny_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = Path("con, figs=1")
    for name in ("study", "model"):
        (configs / name).mkdir(parents=True)
    (configs / "model" / "bad.yaml").write_text("defaults: [bce, _self_]\nname: bad\noptimizer: {'no': 1}\n")
    (configs / "study" / "two.yaml").write_text(
        "# @package _global_\ndefaults: [override /data: manifest, override /debug: step]\n"
        "data: {crop_size: 32, batch_size: 16}\nthreads: 1\nstudy: {name: two}\n"
        "hydra: {sweeper: {params: {model: 'bce,bad', seed: 0}}}\n"
    )
    assert launch("study", [
        "--config-dir", str(configs), "study=two", f"data.manifest={tiny_manifest}", "bootstrap.resamples=20",
        "header_audit=false", "output_dir=out, it's",
    ]) == 2  # fmt: skip
    page = html.unescape((tmp_path / "out, it's" / "report.html").read_text())
    alone = re.findall(r"Alone: (fakedet .*?)</", page)
    assert len(alone) == 1
    capfd.readouterr()
    assert run(alone[0]) == 2
    assert "does not take these settings" in capfd.readouterr().err
    assert run(re.findall(r"<pre>(fakedet.*?)</pre>", page, re.DOTALL)[0]) == 2, "the failed job fails again"
