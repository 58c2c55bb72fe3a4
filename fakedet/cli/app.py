"""The Hydra application behind every verb: exit statuses, multiruns and their jobs, signals, further ranks."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.resources import files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fakedet.cli import JOB
from fakedet.config import as_typed, check_command_line, expand_encoders, refusal, shown_command
from fakedet.errors import Preempted, UserError, one_line
from fakedet.evaluation.report import ENDED, ended_jobs
from fakedet.training import sweep
from fakedet.training.resume import differences, finished, lock_folder
from fakedet.training.train import unscored
from fakedet.utils import alone, is_main_process, quiet_libraries, start_name, written

log = logging.getLogger("fakedet")


class _Console(logging.StreamHandler[Any]):
    """Write to what standard output is at the time, which may be redirected."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self._told: set[tuple[Any, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out what is to be told ``once`` of a file, however often that is read."""
        fact = getattr(record, "once", None), record.getMessage()
        is_new = fact[0] is None or fact not in self._told
        self._told.add(fact)
        return is_new and bool(super().filter(record))

    @property
    def stream(self) -> Any:  # type: ignore[override]
        return sys.stdout


CONSOLE = _Console()


def set_up(job: int | None = None) -> None:
    """Register resolvers, and let fakedet's log write plain lines to the console, begun with a sweep's ``job``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack signs that names hold
    if not log.handlers:
        log.addHandler(CONSOLE)
    CONSOLE.setFormatter(logging.Formatter("%(message)s" if job is None else f"[{job}] %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    register_resolvers()


def register_resolvers() -> None:
    """Register what our configs interpolate with: the folder of a sweep's job, and a verb's values, explained."""
    OmegaConf.register_new_resolver("fakedet_job", lambda *, _root_: sweep.job_folder(_root_), replace=True)
    OmegaConf.register_new_resolver("fakedet_help", _explained, replace=True)


def _explained(verb: str) -> str:
    """Return the values of a verb with the comments that say what they are for, which Hydra's own help leaves out."""
    path = files("fakedet.conf").joinpath(f"{verb}.yaml")
    own = path.read_text(encoding="utf-8").partition("\n\n")[2].partition("\nhydra:")[0]
    return f"{own}\nFrom {path}; groups are explained in the files of the folders beside it.".replace("$", "$$")


# The setting that names what a verb writes, for one process at a time. A training locks its folder itself.
OUTPUTS = {"predict": "output", "export": "output", "index": "output", **dict.fromkeys(
    ("shard", "match", "audit", "evaluate", "report", "compare"), "output_dir")}  # fmt: skip


def run_verb(verb: str, config: DictConfig, overrides: list[str]) -> Any:
    """Run a verb on its config, alone in what it writes."""
    from fakedet.cli import predict, serve, verbs  # late: --help and --cfg need none of what they import

    quiet_libraries()
    run = getattr({"predict": predict, "serve": serve}.get(verb, verbs), f"run_{verb}")
    try:
        if (key := OUTPUTS.get(verb)) is None or not is_main_process():
            return run(config, overrides)
        path = Path(config[key] or config.source)  # `index` writes into its source
        # A folder of shards is replaced as a whole, with all that lies in it.
        with alone(path, key, within=path.is_dir() and verb != "shard"):
            return run(config, overrides)
    except OSError as error:
        if mistake := refusal(error, config):
            raise mistake from error
        raise


def end_by_signal(stop: Preempted, config: DictConfig) -> None:
    """End this process by the signal that it was sent; submitit's own handler puts the job back into the queue here."""
    if not is_main_process():
        return  # rank zero tells the cluster; an exit status of ours could end it before it has
    command = shown_command("resume", run=config.get("run") or config.output_dir)
    print(f"fakedet: {stop}; give the same command again, or `{command}`, to go on", file=sys.stderr, flush=True)
    signal.raise_signal(stop.signal)
    raise SystemExit(128 + stop.signal)  # another handler caught the signal and did nothing


def fail(message: str, status: int) -> int:
    """Say in one line what went wrong, and return the status."""
    print(f"fakedet: {message}", file=sys.stderr)
    return status


failed_jobs: list[dict[str, Any]] = []  # of the last multirun that this process ended


class SweepSummary(Callback):
    """Say at the end of a multirun how many of its jobs failed, wherever they ran."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget how the jobs of an earlier start ended."""
        (Path(config.hydra.sweep.dir) / ENDED).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read how the jobs ended, and say which failed."""
        failed_jobs.extend(row for row in ended_jobs(config.hydra.sweep.dir) if row["error"])
        if failed_jobs and not config.get("study"):  # a study's comparison names each
            numbers = ", ".join(str(row["job"]) for row in failed_jobs)
            words = "job of this sweep has" if len(failed_jobs) == 1 else "jobs of this sweep have"
            command = shown_command("compare", runs=config.hydra.sweep.dir)
            print(f"{len(failed_jobs)} {words} failed ({numbers}); `{command}` gives each cause and the command that "
                  "runs it alone")  # fmt: skip


def starts_processes(config: DictConfig) -> bool:
    """Say whether Lightning will start further processes for this job, or finds them started from outside."""
    trainer = config.get("trainer") or {}
    return bool(trainer.get("devices", 1) != 1 or trainer.get("num_nodes", 1) != 1)


@contextmanager
def job_for_further_ranks(verb: str, config: DictConfig, overrides: list[str]) -> Iterator[None]:
    """Write down the job where the processes that Lightning starts for further ranks find it.

    Left to compose from the command line they get, each would start a sweep anew or name another folder.
    """
    if not starts_processes(config):
        yield  # nobody is started who would look for it
        return
    with tempfile.NamedTemporaryFile(prefix="fakedet-job-", suffix=".yaml") as file:
        OmegaConf.save(OmegaConf.create({"verb": verb, "config": config, "overrides": overrides}), file.name)
        os.environ[JOB] = file.name
        try:
            yield
        finally:
            del os.environ[JOB]


def join(job: str) -> int:
    """Run the job of rank zero as a further rank: same config, same folder, nothing composed anew."""
    set_up()
    saved: Any = OmegaConf.load(job)
    # A node of its own: interpolations are relative to the config, not to the file that wraps it.
    config: Any = OmegaConf.create(OmegaConf.to_container(saved.config))
    try:
        run_verb(saved.verb, config, list(saved.overrides))
    except UserError:
        return 2  # rank zero prints it
    except Preempted:
        pass  # rank zero prints this too; an error status here could end it before it has
    return 0


def run_in_own_process(verb: str, config: DictConfig, overrides: list[str]) -> Any:
    """Run a job in a process of its own and return what the verb returns; UserError if it failed and said why."""
    # A fresh interpreter: a fork would copy PyTorch's threads and locks in whatever state they are in.
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_alone, args=(verb, OmegaConf.to_container(config), overrides, send))
    process.start()
    send.close()
    stopped: list[int] = []

    def pass_on(number: int, _: object) -> None:
        stopped.append(number)
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    # Signals by which a cluster or its user tells a job to write a resume point and end.
    before = {one: signal.signal(one, pass_on) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    value = None
    try:
        with suppress(EOFError):  # it ended without a result
            value = receive.recv()
        process.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        if sweep.stop_is_asked():
            raise KeyboardInterrupt
        signal.raise_signal(stopped[0])
    if process.exitcode:
        raise UserError(f"the job in {config.get('output_dir')} ended with status {process.exitcode}")
    return value


def _alone(verb: str, content: dict[str, Any], overrides: list[str], send: Connection) -> None:
    parent = os.getppid()

    def end_with_parent() -> None:  # however that ended; a training that is told to end writes its resume point first
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    set_up()
    config = OmegaConf.create(content)
    try:
        with _console(config), job_for_further_ranks(verb, config, overrides):
            value = run_verb(verb, config, overrides)
    except Preempted as stop:
        end_by_signal(stop, config)
    except UserError as error:
        sys.exit(fail(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(130)  # the sweep says so
    send.send(value)


_launched: list[str] = []  # verbs; none where a launcher of Hydra's started this process for a job of a sweep


def launch(verb: str, arguments: list[str]) -> int:
    """Run a verb with Hydra's command-line arguments and return the exit status.

    Status 2 is a mistake in what was given, 1 a failure while running, 130 an interruption.
    """
    # Lets exceptions through to us: Hydra would print its own version of them and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    set_up()
    _launched.append(verb)
    try:
        is_main_process(), start_name()  # they refuse what no launcher can have set
        if verb == "study":
            verb, arguments = "train", study_as_multirun(arguments)
        flags, overrides = _flags(arguments)
        # Hydra's parser wants all overrides in one place.
        arguments = [*(item for item in arguments if item not in overrides), *overrides]
        arguments = expand_encoders(as_typed(arguments, flags.multirun))
        check_command_line(verb, arguments)
        return _launch(verb, arguments)
    except UserError as error:
        return fail(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        told = one_line(error)
        if unset := re.search(r"Environment variable '(\w+)' not found\W+full_key: (\S+)", told):
            told = f"{unset[2]} needs the environment variable {unset[1]}, which is not set: export {unset[1]}=..."
        return fail(told, 2)
    except ValueError as error:
        if not str(error).startswith("Only one of --run"):
            raise
        return fail("-m and --cfg do not go together; leave -m out to see the config of one job", 2)
    except OSError as error:
        return _fail_on_file(error)
    except KeyboardInterrupt:
        more = ", and the same command goes on" if "study=" in " ".join(arguments) else ""
        return fail(f"interrupted; what was written so far is kept{more}", 130)


def _fail_on_file(error: OSError) -> int:
    # Hydra makes the output folder before the verb runs.
    if traceback.extract_tb(error.__traceback__)[-1].name in ("makedirs", "mkdir"):
        return fail(f"{error.filename}: {error.strerror}; name an output_dir that can be written", 2)
    if mistake := refusal(error, OmegaConf.create()):
        return fail(str(mistake), 2)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error
    return fail(f"{error.filename or 'a file of this run'} cannot be written: {error.strerror}; what was written "
                "before is whole", 1)  # fmt: skip


def study_as_multirun(arguments: list[str]) -> list[str]:
    """Turn the arguments of `fakedet study` into those of `fakedet train`; UserError if no study is named."""
    flags, overrides = _flags(arguments)
    if not flags.multirun and not flags.cfg:
        arguments = ["-m", *arguments]
    asks = any(item.startswith("-") for item in overrides)
    if not asks and not any(item.startswith("study=") for item in overrides):
        names = sorted(entry.name.removesuffix(".yaml") for entry in files("fakedet.conf").joinpath("study").iterdir())
        raise UserError(f"which study? pass study=NAME: {', '.join(names)}")
    return [f"hydra.sweep.dir={item[11:]}" if item.startswith("output_dir=") else item for item in arguments]


def _flags(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split a command line into the Hydra flags that matter here and the rest: overrides, and flags that only show."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--multirun", "-m", action="store_true")
    for names in (("--config-dir", "-cd"), ("--cfg", "-c"), ("--package", "-p")):
        parser.add_argument(*names)
    return parser.parse_known_args(arguments)


def _launch(verb: str, arguments: list[str]) -> int:
    mistakes: list[UserError] = []
    failed_jobs.clear()

    def run_hydra(*more: str) -> None:
        sys.argv = [sys.argv[0], *arguments, *more]
        hydra.main(version_base="1.3", config_path="pkg://fakedet.conf", config_name=verb)(_task(verb, mistakes))()

    flags, overrides = _flags(arguments)
    if not flags.multirun or flags.cfg or any(item.startswith("-") for item in overrides):
        run_hydra()
        return 2 if mistakes else 0
    sweep.remember_swept(overrides)
    slurm, study = sweep.plan(verb, overrides, flags.config_dir)
    # SLURM's jobs go on when this command is interrupted.
    stoppable = nullcontext if slurm else sweep.interruptible
    try:
        if study is None:
            with stoppable():
                run_hydra()
        else:
            _run_study(study, run_hydra, stoppable, arguments)
    except Exception as error:
        if not isinstance(error, BrokenProcessPool) and not type(error).__module__.startswith("submitit."):
            raise
        raise UserError("a process of the jobs was killed, by a signal or for want of memory; finished jobs are kept, "
                        "and the same command goes on (with hydra.launcher.n_jobs=1 they need less memory)"
                        ) from error  # fmt: skip
    if failed_jobs:
        return 2 if any(row["mistake"] for row in failed_jobs) else 1
    return 0


def _run_study(
    study: sweep.Study, run_hydra: Callable[..., None], stoppable: Callable[[], AbstractContextManager[None]],
    arguments: list[str],
) -> None:  # fmt: skip
    """Check, train and compare the jobs of a study."""
    from fakedet.cli import verbs

    started = time.perf_counter()
    fresh = not study.folder.exists()
    study.folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(study.folder, "running a study"):
        try:
            finished = sweep.check_study(study)
        except BaseException:
            if fresh:
                shutil.rmtree(study.folder)
            raise
        study.write()
        jobs = f"{len(study.jobs)} jobs" + (f", {finished} of them trained before" if finished else "")
        log.info("study '%s': %s, into %s", study.settings["name"], jobs, study.folder)
        with sweep.watch(study), stoppable():
            run_hydra(*study.added, f"hydra.sweep.dir={written(study.folder)}")
            set_up()  # without the number of a job that ran in this process
        verbs.compare_study(study, arguments)
    log.info("time    %.0f s", time.perf_counter() - started)


def _task(verb: str, mistakes: list[UserError]) -> Any:
    def run(config: DictConfig) -> Any:
        settings = HydraConfig.get()
        multirun = settings.mode == RunMode.MULTIRUN
        # Again: launchers run this in processes that have not passed through launch().
        set_up(settings.job.num if multirun else None)
        # Fixed here, once: the default holds the time, and each job of a sweep has its own folder below the
        # sweep's. Other interpolations stay, because stage 1 resolves them with its own model and folder.
        # A verb that makes its folder itself has Hydra run where the user is.
        if "output_dir" in config and settings.runtime.output_dir != os.getcwd():
            config.output_dir = settings.runtime.output_dir
        overrides = [str(override) for override in settings.overrides.task]
        if multirun:
            return _run_job(verb, config, settings, overrides)
        try:
            _check_single(config, settings, overrides)
            with job_for_further_ranks(verb, config, overrides):
                return run_verb(verb, config, overrides)
        except Preempted as stop:
            end_by_signal(stop, config)
        except UserError as error:
            # Told here: Hydra would print a page of its own.
            mistakes.append(error)
            _tell_mistake(error, settings)
        return None

    return run


def _tell_mistake(error: UserError, settings: Any) -> None:
    if (folder := settings.runtime.output_dir) != os.getcwd():
        with suppress(OSError):
            os.rmdir(folder)  # if empty: Hydra made it for a run that did not begin
    fail(str(error), 2)
    if start_name():  # the other processes of this start would wait for this one
        raise SystemExit(2) from error


def _check_single(config: DictConfig, settings: Any, overrides: list[str]) -> None:
    """Refuse a folder named by the time where each rank would read the clock, and a study that lacks what it sweeps."""
    given = {item.partition("=")[0] for item in overrides}
    if "output_dir" in config and start_name() and "output_dir" not in given:
        raise UserError("several processes were started at once (srun, torchrun): pass output_dir=FOLDER, one for all")
    if "study" in given and (lacking := [key for key in settings.sweeper.params or {} if key not in given]):
        raise UserError(f"a study is many jobs: pass -m; for one of them alone, give {', '.join(lacking)} too")


def _run_job(verb: str, config: DictConfig, settings: Any, overrides: list[str]) -> Any:
    """Run a job of a multirun; whatever happens to it, the others go on."""
    if not _launched and "SLURM_JOB_ID" not in os.environ:
        sweep.become_worker()
    if sweep.stop_is_asked():
        return None
    started = time.perf_counter()

    def ended(error: BaseException | None = None, kept: bool = False) -> None:
        if error is not None or is_main_process():
            seconds = time.perf_counter() - started
            sweep.note_end(settings, config.get("output_dir", ""), seconds, error, kept)

    with sweep.busy(), _console(config):
        try:
            value, kept = _do(verb, config, overrides)
        except Preempted as stop:
            _end_stopped_job(stop, config)
        except Exception as error:
            ended(error)
            if isinstance(error, UserError):
                _tell_mistake(error, settings)
            else:
                traceback.print_exc()
        else:
            ended(kept=kept)
            return value
    return None


def _console(config: DictConfig) -> AbstractContextManager[None]:
    """Let a study's job write to console.log: the process that started it prints a line for each job that ends."""
    return sweep.console_of(config.output_dir) if config.get("study") else nullcontext()


def _end_stopped_job(stop: Preempted, config: DictConfig) -> None:
    if not sweep.stop_is_asked():
        if sweep.Here.is_worker:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_by_signal(stop, config)
    elif not sweep.Here.is_worker:
        raise KeyboardInterrupt


def _do(verb: str, config: DictConfig, overrides: list[str]) -> tuple[Any, bool]:
    """Do the part of a job that is not done yet; return what the verb returns, and whether all was done before."""
    if verb == "train":
        # overwrite=true replaces what another config has left; a run of this very config is kept.
        if config.overwrite and (Path(config.output_dir) / "config.yaml").is_file():
            config.overwrite = bool(differences(config))
        if (facts := finished(config)) is not None:
            if not unscored(config):
                return facts["validation"], True
            verb = "also"
    # Lightning leaves its variables and its process group to the next job, which would then talk to processes that
    # have ended; and it kills the process that started a rank when that rank ends with an error.
    if starts_processes(config) and start_name() is None and "SLURM_JOB_ID" not in os.environ:
        return run_in_own_process(verb, config, overrides), False
    with job_for_further_ranks(verb, config, overrides):
        return run_verb(verb, config, overrides), False
