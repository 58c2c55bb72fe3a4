"""The multirun of `fakedet train`: its jobs, the checks before anything is trained, progress, and how it is stopped.

Hydra's sweeper and launchers run the jobs. A study is a multirun that names ``study=NAME``, a file of conf/study.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fakedet.build import build_datamodule, build_encoder
from fakedet.config import check_command_line, check_config, texts_of
from fakedet.data.manifest import Manifest
from fakedet.data.manifest_table import texts
from fakedet.errors import Preempted, UserError, choose, one_line
from fakedet.evaluation.predictions import STUDY, TOGETHER
from fakedet.evaluation.report import ENDED, ended_jobs, method_label
from fakedet.training.resume import differences
from fakedet.training.train import also_config, also_sha256, make_datamodule
from fakedet.utils import bar, number, plain, write_json, written

SWEPT = "FAKEDET_SWEPT"  # the keys that a command line sweeps, for the processes of its jobs, which do not see it
PARENT = "FAKEDET_PARENT"  # the process that started a multirun on this machine
STOP = "FAKEDET_STOP"  # names the file that tells the processes of a multirun to stop


@dataclass(frozen=True)
class Job:
    """One job of a study: the overrides of `fakedet train`, and the config that they compose to."""

    overrides: list[str]
    method: str  # its name in tables: what is swept, besides the seed
    seed: int
    folder: Path  # absolute; the config's output_dir
    config: DictConfig
    family: str | None = None  # the family that a protocol leaves out

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds a finished run, of whatever config."""
        return (self.folder / "run.json").is_file()


@dataclass(frozen=True)
class Study:
    """A study: its folder, what its report says, and its jobs in the order of the sweep."""

    folder: Path
    settings: Mapping[str, Any]
    jobs: list[Job]
    config_dir: str | None
    added: Sequence[str] = ()  # the overrides that a protocol adds to the command line

    def write(self) -> None:
        """Write study.json, which `fakedet compare` reads."""
        jobs = [{"folder": os.path.relpath(job.folder, self.folder), "method": job.method, "seed": job.seed,
                 "family": job.family, "overrides": job.overrides} for job in self.jobs]  # fmt: skip
        write_json(self.folder / STUDY, {**self.settings, "config_dir": self.config_dir, "jobs": jobs})


def plan(verb: str, overrides: Sequence[str], config_dir: str | None = None) -> tuple[bool, Study | None]:
    """Compose what a multirun's command line means: the config's name, overrides, and ``--config-dir``.

    Returns:
        Whether SLURM runs the jobs, and the study that is named, if any.

    Raises:
        UserError: SLURM is asked for where there is none, or a job's overrides do not compose.
    """
    search = [f"hydra.searchpath=[{written(f'file://{Path(config_dir).absolute()}')}]"] if config_dir else []
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(list(overrides))
        fixed = [*search, *(item.input_line or "" for item in parsed if item.is_hydra_override())]
        given = [item for item in parsed if not item.is_hydra_override()]
        single = [item for item in given if not item.is_sweep_override() or item.is_discrete_sweep()]
        root = compose(verb, [*fixed, *(texts_of(item)[0] for item in single)], return_hydra_config=True)
        slurm = str(root.hydra.launcher._target_).endswith("SlurmLauncher")
        if slurm and (missing := [name for name in ("sbatch", "srun") if shutil.which(name) is None]):
            raise UserError(f"hydra/launcher=slurm: this machine has no {' and no '.join(missing)}; start it where "
                            "SLURM is installed, or pass hydra/launcher=local")  # fmt: skip
        if root.get("study") is None:
            return slurm, None
        if not isinstance(root.study, DictConfig):
            raise UserError("study: the file must hold a mapping 'study' with name, title, baseline and caveats")
        if root.hydra.runtime.choices["hydra/sweeper"] != "basic":
            raise UserError("hydra/sweeper: a study lists its jobs; only the sweeper 'basic' does")
        lines = [f"{key}={value}" for key, value in (root.hydra.sweeper.params or {}).items()]
        swept = [*parser.parse_overrides(lines), *given]
        # As Hydra's sweeper does: a key that is given again replaces the former values in their place.
        values = {item.get_key_element(): texts_of(item) for item in swept}
        telling = [item.get_key_element() for item in swept if item.is_sweep_override()]
        HydraConfig.instance().set_config(root)  # for ${hydra:...}
        folder, added, protocol = Path(root.hydra.sweep.dir).absolute(), list[str](), plain(root.get("protocol"))
        if protocol:
            first = [texts[0] for texts in values.values()]
            config = _compose_job(0, first, telling, fixed, folder, config_dir).config
            protocol |= _over_time(config) if "windows" in protocol else {"families": _families(config)}
            added = _leaving_out(protocol["families"])
            values |= {item.get_key_element(): texts_of(item) for item in parser.parse_overrides(added)}
            if not any(item.key_or_group == "hydra.sweep.dir" for item in parsed):
                folder /= protocol["name"]
        listed = [list(texts) for texts in itertools.product(*values.values())]
        jobs = _compose_jobs(listed, telling, fixed, folder, config_dir)
    if windows := [*(protocol or {}).get("windows", ())]:  # a job is named by the window that it is measured on
        jobs = [replace(job, family=windows[1 + protocol["families"].index(job.config.data.hold_out_families)])
                for job in jobs]  # fmt: skip
    settings = {"name": "study", "title": "Study", "baseline": None, "caveats": [], **plain(root.study)}
    settings["protocol"] = protocol
    methods = list(dict.fromkeys(job.method for job in jobs))
    if settings["baseline"] not in (None, *methods):
        raise UserError(f"study.baseline: '{settings['baseline']}' is not among its methods: {'; '.join(methods)}")
    names = [(job.method, job.seed, job.family) for job in jobs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"study: '{twice[0]}' has the seed {twice[1]} twice; the same seed gives the same run")
    return slurm, Study(folder, settings, jobs, config_dir, added)


def _families(config: DictConfig) -> list[str | list[str]]:
    """Return the families that a protocol leaves out in turn, or together: those that it names, or all in training.

    All are those of the fakes and, if the protocol leaves out photographs too, then the collections of these.
    """
    rows = _manifest(config).rows("train")
    found = sorted(rows.loc[rows["label"] == 1, "family"].unique())
    if len(found) < 2:
        raise UserError(f"protocol={config.protocol.name}: the training fakes are of {len(found)} family "
                        f"({', '.join(found)}), and without it nothing is left to train on")  # fmt: skip
    collections = sorted({*rows.loc[rows["label"] == 0, "family"]} - {*found})
    asked = plain(config.protocol.families) or [*found, *(collections if config.protocol.get("photographs") else ())]
    for name in [name for one in asked for name in (one if isinstance(one, list) else [one])]:
        choose(str(name), [*found, *collections], "protocol.families")
    return [list(map(str, one)) if isinstance(one, list) else str(one) for one in asked]


def _manifest(config: DictConfig) -> Manifest:
    """Return the images of a config's data, nothing held out."""
    datamodule = build_datamodule({**plain(config.data), "hold_out_families": [], "measure": "test"})
    datamodule.prepare()
    return datamodule.manifest


def _over_time(config: DictConfig) -> dict[str, Any]:
    """Return the windows of a protocol over time, and the families that each job leaves out.

    The windows are named by their dates and hold families by date; a job leaves out all windows after those that it is
    trained on. UserError without dates, for one that is none, and for fewer windows than two or more than dates.
    """
    protocol, manifest = config.protocol, _manifest(config)
    used = manifest.frame[manifest.frame["split"].isin(("train", "val")) & (manifest.frame["label"] == 1)]
    families, where = sorted(set(used["family"])), f"protocol={protocol.name}"
    dates: dict[Any, str]
    if (given := plain(protocol.released)) is not None:
        dates = {str(name): str(date) for name, date in given.items()}
    elif manifest.facts is not None and "released" in manifest.facts.column_names:
        told = pd.Series(texts(manifest.facts["released"]).to_numpy(zero_copy_only=False), manifest.frame.index)
        # The last of a family's dates: nothing is trained on before it was there.
        dates = told[used.index].groupby(used["family"]).max().to_dict()
    else:
        raise UserError(f"{where}: the manifest has no column 'released'; add one with the date of each fake's "
                        "generator, or pass protocol.released={NAME: 2022-08-22, ...}")  # fmt: skip
    for name in families:
        if not re.fullmatch(r"(19|20)\d\d(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?", dates.get(name, "")):
            raise UserError(f"{where}: the release of '{name}' is {dates.get(name) or 'not there'}; a date such as "
                            "2022-08-22, 2022-08 or 2022 is needed")  # fmt: skip
    ordered = sorted(families, key=lambda name: (dates[name], name))
    days = sorted({dates[name] for name in families})
    if not 2 <= protocol.windows <= len(days):
        raise UserError(f"protocol.windows={protocol.windows}: from 2 to {len(days)}, the number of dates of release")
    windows: list[list[str]] = [[] for _ in range(protocol.windows)]
    # A window begins where its share of the families begins, or with the next date; a date is left for each to come.
    number = 0
    for place, name in enumerate(ordered):
        is_new = windows[number] and dates[name] != dates[windows[number][-1]]
        left = len([day for day in days if day >= dates[name]])
        full = place >= (number + 1) * len(ordered) / protocol.windows
        if is_new and number + 1 < protocol.windows and (full or left <= protocol.windows - number - 1):
            number += 1
        windows[number].append(name)
    names = [" to ".join(dict.fromkeys(dates[name] for name in (one[0], one[-1]))) for one in windows]
    left_out = [list(itertools.chain(*windows[number:])) for number in range(1, len(windows))]
    return {"windows": dict(zip(names, windows, strict=True)), "families": left_out}


def _leaving_out(families: Sequence[str | list[str]]) -> list[str]:
    """Return the overrides that leave each family out in turn, and score nothing of a test split."""
    swept = ",".join(written(one if isinstance(one, list) else [one]) for one in families)
    return [f"data.hold_out_families={swept}", "data.measure=held_out", "also=null"]


def _compose_jobs(
    listed: list[list[str]], telling: Sequence[str], fixed: list[str], folder: Path, config_dir: str | None
) -> list[Job]:
    jobs = list[Job]()
    with bar("configs composed", len(listed)) as shown:  # a hundred take up to half a minute
        for number, overrides in enumerate(listed):
            jobs.append(_compose_job(number, overrides, telling, fixed, folder, config_dir))
            shown.show(len(jobs))
    return jobs


def _compose_job(
    number: int, overrides: list[str], telling: Sequence[str], fixed: list[str], folder: Path, config_dir: str | None
) -> Job:
    pairs = dict(text.lstrip("+~").partition("=")[::2] for text in overrides)
    method = method_label({key: pairs[key] for key in (name.lstrip("+~") for name in telling)})
    try:
        config = compose("train", [*fixed, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        try:  # it knows the nearest valid name
            check_command_line("train", [*(("--config-dir", config_dir) if config_dir else ()), *overrides])
        except UserError as mistake:
            raise UserError(f"study: the overrides of '{method}': {mistake}") from mistake
        raise UserError(f"study: the overrides of '{method}': {one_line(error)[:300]}") from error
    if not config.test_after_fit:
        raise UserError(f"study: '{method}': test_after_fit=false: a study compares what its runs scored, and this one "
                        "would score nothing; leave that out")  # fmt: skip
    with open_dict(config):
        config.hydra.job.num = number
        target = folder / config.hydra.sweep.subdir
        del config["hydra"]
    config.output_dir = str(target)
    left_out = config.data.get("hold_out_families") if config.get("protocol") else None
    family = TOGETHER.join(left_out) if left_out else None
    return Job(overrides, method or str(config.name), int(config.seed or 0), target, config, family)


def remember_swept(overrides: Sequence[str]) -> None:
    """Keep the keys that a command line sweeps, for :func:`job_folder`."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    os.environ[SWEPT] = ",".join(str(item.key_or_group) for item in parsed if item.is_sweep_override())


def job_folder(root: Any) -> str:
    """Name the folder of a job, given its config with the node ``hydra``, by what is swept, else by all overrides."""
    settings = root.hydra
    swept = {*os.environ.get(SWEPT, "").split(","), *(OmegaConf.select(settings, "sweeper.params", default=None) or {})}
    swept |= {"data.hold_out_families"} if root.get("protocol") else set()
    left_out = set(settings.job.config.override_dirname.exclude_keys)
    given = [(item.partition("=")[0].lstrip("+~"), item) for item in map(str, settings.overrides.task)]
    kept = [(key, item) for key, item in given if key not in left_out]
    # Command lines also hold what the sweep fixes; what is swept tells its jobs apart.
    telling = [item for key, item in kept if key in swept] or [item for _, item in kept]
    text = ",".join(telling).translate(dict.fromkeys(map(ord, "[]{}'\""), None))
    name = "".join(sign if sign.isalnum() or sign in "=.,-_+" else "-" for sign in text)
    return name if len(name) <= 120 else f"{name[:111]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def check_study(study: Study) -> int:
    """Check every job: its values, its data, its encoder, and that its folder holds no run of another config.

    With ``overwrite=true``, runs of another config or of other data are marked as unfinished instead. Returns how
    many jobs are finished.

    Raises:
        UserError: the first mistake, with the method that it is in.
    """
    known: dict[tuple[str, str], Any] = {}

    def once(what: str, node: DictConfig, check: Any) -> Any:
        key = what, json.dumps(plain(node), sort_keys=True)
        if key not in known:
            known[key] = check()
        return known[key]

    for job in study.jobs:
        config = job.config
        try:
            check_config(config)
            manifest = once("data", config.data, lambda config=config: make_datamodule(config).manifest.sha256)
            for name in config.also or ():
                wanted = also_config(config, name)
                once("also", wanted.data, lambda wanted=wanted: also_sha256(wanted))
        except UserError as error:
            raise UserError(f"study: '{job.method}': {error}") from error
        if stale := _stale(job, manifest):
            if not config.overwrite:
                raise UserError(f"{job.folder} was trained by another {stale}; name another hydra.sweep.dir, or pass "
                                "overwrite=true to train such jobs anew")  # fmt: skip
            (job.folder / "run.json").unlink(missing_ok=True)
        try:
            if not job.is_finished:
                encoder = config.model.encoder
                once("encoder", encoder, lambda encoder=encoder: build_encoder(plain(encoder)).embedding_dim)
        except UserError as error:
            raise UserError(f"study: '{job.method}': {error}") from error
    return sum(job.is_finished for job in study.jobs)


def _stale(job: Job, manifest: str) -> str:
    """Say how the run in a job's folder differs from the job's config and data now; "" if it does not."""
    if not job.is_finished and not any(job.folder.glob("**/*.ckpt")):
        return ""
    if changes := differences(job.config):
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        return f"config than '{job.method}' is now: {changes[0]}{more}"
    facts = job.folder / "run.json"
    if job.is_finished and json.loads(facts.read_text(encoding="utf-8"))["manifest_sha256"] != manifest:
        return f"manifest: {job.config.data.get('manifest', 'the data')} has changed since"
    return ""


def note_end(settings: Any, folder: str, seconds: float, error: BaseException | None, kept: bool = False) -> None:
    """Record in the multirun's folder how a job ended, given its node ``hydra``; jobs may run on any machine."""
    cause = None if error is None else one_line(error)[:500]
    config_dir = next((one.path for one in settings.runtime.config_sources if one.provider == "command-line"), None)
    row = {"job": settings.job.num, "folder": folder, "seconds": seconds, "error": cause, "kept": kept,
           "mistake": isinstance(error, UserError), "overrides": [str(one) for one in settings.overrides.task],
           "flags": [f"--config-dir={config_dir}"] if config_dir else []}  # fmt: skip
    with (Path(settings.sweep.dir) / ENDED).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


@contextmanager
def watch(study: Study) -> Iterator[None]:
    """Print a line for each job that ends and, on a terminal, one progress bar for all jobs."""
    over, told, total = threading.Event(), set[int](), len(study.jobs)
    live = sys.stdout.isatty()  # a job in this process redirects it
    (study.folder / ENDED).unlink(missing_ok=True)  # an earlier start's; Hydra's callback may come after the first look

    with bar("jobs", total) as shown:

        def tell() -> None:
            for row in ended_jobs(study.folder):
                if row["job"] in told:
                    continue
                told.add(row["job"])
                job = study.jobs[row["job"]]
                says = f"FAILED: {row['error']}" if row["error"] else f"done after {row['seconds']:.0f} s"
                if not row["kept"]:
                    named = f"{job.method} without {job.family}" if job.family else job.method
                    line = f"{len(told)}/{total}  {named}, seed {job.seed}: {says}"
                    shown.progress.console.print(line, soft_wrap=True, highlight=False, markup=False)
            if live:
                shown.show(len(told))

        def follow() -> None:
            while not over.wait(0.5):
                tell()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            tell()


def stop_is_asked() -> bool:
    """Say whether Ctrl-C was pressed in the process that started this multirun."""
    return bool(os.environ.get(STOP)) and Path(os.environ[STOP]).exists()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C stop a multirun on this machine as SIGTERM stops a training: jobs write their resume points.

    A second Ctrl-C does not wait for them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="fakedet-") as folder:
        flag = Path(folder) / "stop"
        os.environ[STOP] = str(flag)
        os.environ[PARENT] = str(os.getpid())

        def stop(number: int, frame: Any) -> None:
            if flag.exists():
                raise KeyboardInterrupt
            flag.touch()
            print("stopping: running jobs write their resume points", file=sys.stderr, flush=True)
            if not Here.busy:
                return  # the jobs run in processes of their own, which see the flag
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                raise KeyboardInterrupt  # no training listens to SIGTERM at the moment
            signal.raise_signal(signal.SIGTERM)

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
            if flag.exists():  # the jobs have stopped
                raise KeyboardInterrupt
        finally:
            signal.signal(signal.SIGINT, before)
            del os.environ[STOP], os.environ[PARENT]


class Here:
    """The state of this process in a multirun."""

    busy = False  # whether it runs a job
    is_worker = False  # whether a launcher started it for jobs


def become_worker() -> None:
    """Make this process, which a launcher on this machine started, end with its parent.

    Ctrl-C, which a terminal sends to all processes, is left to the parent. A training that is told to stop writes its
    resume point first.
    """
    if Here.is_worker:
        return
    Here.is_worker = True
    # The parent may have ended while this process was importing.
    parent = number(PARENT, os.getppid())

    def terminate(number: int, frame: Any) -> None:
        if Here.busy:
            raise Preempted(number, "the last resume point")
        if os.getppid() != parent or not stop_is_asked():
            os._exit(128 + number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)

    def look() -> None:
        told = False
        while os.getppid() == parent:
            if Here.busy and stop_is_asked() and not told:
                told = True
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        while Here.busy:
            time.sleep(0.5)
        os._exit(128 + signal.SIGTERM)  # the job ended without minding the signal, and nobody gives another

    threading.Thread(target=look, daemon=True).start()


@contextmanager
def busy() -> Iterator[None]:
    """Mark this process as one that runs a job."""
    Here.busy = True
    try:
        yield
    finally:
        Here.busy = False


@contextmanager
def console_of(folder: str | Path) -> Iterator[None]:
    """Redirect the output of a study's job into console.log in its folder."""
    with suppress(OSError):
        Path(folder).mkdir(parents=True, exist_ok=True)
    file = (Path(folder) / "console.log").open("a", encoding="utf-8")
    with file, redirect_stdout(file), redirect_stderr(file):
        yield
