"""cli/app"""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fakedet.cli import JOB
from fakedet.config import check_command_line, expand_encoders
from fakedet.errors import Preempted, UserError
from fakedet.utils import is_main_process, quiet_libraries, start_name

FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _Console(logging.StreamHandler[Any]):
    """Write to what standard output is at the time, which may be redirected."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:  # type: ignore[override]
        """Standard output as it is now."""
        return sys.stdout


def set_up_logging(job: int | None = None) -> None:
    """Let fakedet's log speak to the console in plain lines.

    Args:
        job: number of a sweep's job, which each line then begins with: several may speak at a time.
    """
    logger = logging.getLogger("fakedet")
    if not logger.handlers:
        logger.addHandler(_Console())
    for handler in logger.handlers:
        if isinstance(handler, _Console):
            handler.setFormatter(logging.Formatter("%(message)s" if job is None else f"[{job}] %(message)s"))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def register_resolvers() -> None:
    """Register what our configs interpolate with: ``fakedet_job`` names the folder of a sweep's job."""

    def job(*, _root_: Any) -> str:
        return job_folder(_root_)

    OmegaConf.register_new_resolver("fakedet_job", job, replace=True)


def run_verb(verb: str, config: DictConfig, overrides: list[str]) -> Any:
    """Run a verb's module on its config."""
    from fakedet.cli import verbs  # late: it loads PyTorch

    quiet_libraries()
    return getattr(verbs, f"run_{verb}")(config, overrides)


def end_by_signal(stop: Preempted) -> None:
    """End this process by the signal that it was sent, as whoever sent it expects.

    A launcher that has a handler of its own, as submitit has, puts the job back into the queue here.
    """
    if not is_main_process():
        return  # rank zero tells the cluster; an exit status of ours could end it before it has
    print(
        f"fakedet: {stop}; give the same command again, or `fakedet resume`, to go on",
        file=sys.stderr,
        flush=True,
    )
    signal.raise_signal(stop.signal)
    raise SystemExit(128 + stop.signal)  # somebody catches the signal and does nothing about it


def fail(message: str, status: int) -> int:
    """Say in one line what went wrong, and give the status back."""
    print(f"fakedet: {message}", file=sys.stderr)
    return status


# Which keys are swept, for the processes that run the jobs; they do not see the sweep's command line.
SWEPT = "FAKEDET_SWEPT"
FAILED_JOBS = "failed.jsonl"
LONGEST = 120

failed_jobs: list[dict[str, Any]] = []
"""Of the last sweep that this process ended."""


def remember_swept(arguments: list[str]) -> None:
    """Keep which keys of a command line take several values."""
    parsed = OverridesParser.create().parse_overrides([item for item in arguments if "=" in item[1:]])
    os.environ[SWEPT] = ",".join(str(item.key_or_group) for item in parsed if item.is_sweep_override())


def job_folder(root: Any) -> str:
    """Name a job's folder by what is swept; where nothing is, by all that is overridden.

    Args:
        root: the job's config, with its ``hydra`` node.
    """
    settings = root.hydra
    swept = set(filter(None, os.environ.get(SWEPT, "").split(",")))
    swept |= set(OmegaConf.select(settings, "sweeper.params", default=None) or {})
    left_out = set(settings.job.config.override_dirname.exclude_keys)
    overrides = [str(item) for item in settings.overrides.task]
    overrides = [item for item in overrides if item.partition("=")[0].lstrip("+~") not in left_out]
    # Command lines hold what the sweep fixes, too; the swept ones alone tell its jobs apart.
    telling = [item for item in overrides if item.partition("=")[0].lstrip("+~") in swept] or overrides
    text = ",".join(telling)
    return "".join(sign if sign.isalnum() or sign in "=.,-_+" else "-" for sign in text)[:LONGEST]


def note_failure(settings: Any, error: Exception) -> None:
    """Write down in the sweep's folder that a job of it failed; its jobs may run anywhere."""
    row = {"job": settings.job.num, "folder": settings.runtime.output_dir, "error": str(error)}
    with (Path(settings.sweep.dir) / FAILED_JOBS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


class SweepSummary(Callback):
    """Say at the end of a sweep how many of its jobs failed, wherever they ran."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget what an earlier start of this sweep wrote down."""
        failed_jobs.clear()
        (Path(config.hydra.sweep.dir) / FAILED_JOBS).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the jobs wrote down, and tell it in one line."""
        path = Path(config.hydra.sweep.dir) / FAILED_JOBS
        if path.is_file():
            failed_jobs.extend(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            numbers = ", ".join(str(row["job"]) for row in failed_jobs)
            one = len(failed_jobs) == 1
            print(
                f"{len(failed_jobs)} job{' of this sweep has' if one else 's of this sweep have'} failed ({numbers}); "
                f"`fakedet compare runs={config.hydra.sweep.dir}` gives each cause and the command that runs it alone"
            )


# What a cluster or its user sends to a job that shall write a resume point and end.
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def starts_processes(config: DictConfig) -> bool:
    """Say whether Lightning will start further processes for this job, or finds them started from outside."""
    trainer = config.get("trainer") or {}
    return bool(trainer.get("devices", 1) != 1 or trainer.get("num_nodes", 1) != 1)


@contextmanager
def job_for_further_ranks(verb: str, config: DictConfig, overrides: list[str]) -> Iterator[None]:
    """Write down the job where the processes that Lightning starts for further ranks find it.

    They are started with this command line; left to compose from it, each would start a sweep anew or name
    another folder.
    """
    if not starts_processes(config):
        yield  # nobody is started who would look for it
        return
    job = {"verb": verb, "config": config, "overrides": overrides}
    descriptor, name = tempfile.mkstemp(prefix="fakedet-job-", suffix=".yaml")
    os.close(descriptor)
    OmegaConf.save(OmegaConf.create(job), name)
    os.environ[JOB] = name
    try:
        yield
    finally:
        del os.environ[JOB]
        os.unlink(name)


def join(job: str) -> int:
    """Run the job of rank zero as a further rank: same config, same folder, nothing composed anew."""
    set_up_logging()
    register_resolvers()
    saved = OmegaConf.load(job)
    assert isinstance(saved, DictConfig)
    # A node of its own: interpolations are relative to the config, not to the file that wraps it.
    config = OmegaConf.create(OmegaConf.to_container(saved.config, resolve=False))
    assert isinstance(config, DictConfig)
    try:
        run_verb(saved.verb, config, list(saved.overrides))
    except UserError:
        return 2  # rank zero says it
    except Preempted:
        pass  # and so it does of this; a status of ours could end it before it has
    return 0


def needs_own_process(config: DictConfig) -> bool:
    """Say whether a job of a sweep must not run in the sweep's process.

    Lightning leaves its variables and its process group to the next job, which would then talk to processes that
    have ended; and it kills the process that started a rank when that rank ends with an error.
    """
    return starts_processes(config) and start_name() is None and "SLURM_JOB_ID" not in os.environ


def run_in_own_process(verb: str, config: DictConfig, overrides: list[str]) -> Any:
    """Run a job in a process of its own and return what the verb returns.

    Raises:
        UserError: the job failed; it has said how.
    """
    # A fresh interpreter: a fork would copy PyTorch's threads and locks in whatever state they are in.
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    content = OmegaConf.to_container(config, resolve=False)
    process = context.Process(target=_alone, args=(verb, content, overrides, send))
    process.start()
    send.close()
    with _signals_passed_on(process) as stopped:
        value = None
        with suppress(EOFError):  # it ended without a result
            value = receive.recv()
        process.join()
    if stopped:
        signal.raise_signal(stopped[0])
    if process.exitcode:
        raise UserError(f"the job in {config.get('output_dir')} ended with status {process.exitcode}")
    return value


def end_with_parent() -> None:
    """Let this process be told to end (SIGTERM) when the one that started it has ended, however that was.

    A training that is told so writes its resume point first.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _alone(verb: str, content: dict[str, Any], overrides: list[str], send: Connection) -> None:
    end_with_parent()
    set_up_logging()
    register_resolvers()
    config = OmegaConf.create(content)
    try:
        with job_for_further_ranks(verb, config, overrides):
            value = run_verb(verb, config, overrides)
    except Preempted as stop:
        end_by_signal(stop)
    except UserError as error:
        sys.exit(fail(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(130)  # the sweep says so
    send.send(value)


@contextmanager
def _signals_passed_on(process: BaseProcess) -> Iterator[list[int]]:
    """Hand what this process is told on to the one that trains; gives the signals that came."""
    came: list[int] = []

    def pass_on(number: int, _: object) -> None:
        came.append(number)
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_launched: list[str] = []
"""What this process was started for; empty where a launcher of Hydra's started it for a job of a sweep."""


def launch(verb: str, arguments: list[str]) -> int:
    """Run a verb with Hydra's command-line arguments and return the exit status.

    Status 2 is a mistake in what was given, 1 a failure while running, 130 an interruption.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # Lets exceptions through to us: Hydra would print its own version of them and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    set_up_logging()
    register_resolvers()
    _launched.append(verb)
    try:
        arguments = expand_encoders(arguments)
        check_command_line(verb, arguments)
        remember_swept(arguments)
        sys.argv = [sys.argv[0], *arguments]
        mistakes: list[UserError] = []
        hydra.main(version_base="1.3", config_path="pkg://fakedet.conf", config_name=verb)(
            _task(verb, mistakes)
        )()
        if mistakes or failed_jobs:
            return 2
    except UserError as error:
        return fail(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        return fail(_config_error(error), 2)
    except (NotADirectoryError, PermissionError, FileExistsError) as error:
        # Hydra makes the output folder before the verb runs.
        return fail(f"{error.filename}: {error.strerror}; name an output_dir that can be written", 2)
    except ValueError as error:
        if not str(error).startswith("Only one of --run"):
            raise
        return fail("-m and --cfg do not go together; leave -m out to see the config of one job", 2)
    except OSError as error:
        if error.errno not in FULL_OR_READ_ONLY:
            raise
        return fail(f"{error.filename or 'a file of this run'} cannot be written: {error.strerror}; what was written "
                     "before is whole", 1)  # fmt: skip
    except KeyboardInterrupt:
        more = ", and the same command goes on" if verb == "study" else ""
        return fail(f"interrupted; what was written so far is kept{more}", 130)
    return 0


def _config_error(error: Exception) -> str:
    told = " ".join(str(error).split())
    unset = re.search(r"Environment variable '(\w+)' not found\W+full_key: (\S+)", told)
    if unset:
        return (
            f"{unset[2]} needs the environment variable {unset[1]}, which is not set: export {unset[1]}=..."
        )
    return told


def _task(verb: str, mistakes: list[UserError]) -> Any:
    def run(config: DictConfig) -> Any:
        settings = HydraConfig.get()
        sweep = settings.mode == RunMode.MULTIRUN
        _begin(config, settings, sweep)
        try:
            return _do(verb, config, [str(override) for override in settings.overrides.task], sweep)
        except Preempted as stop:
            end_by_signal(stop)
        except UserError as error:
            # Told here: Hydra would print a page of its own, and a sweep goes on with its other jobs.
            mistakes.append(error)
            if sweep:
                note_failure(settings, error)
            _remove_if_empty(settings.runtime.output_dir)
            fail(str(error), 2)
            if start_name():  # the other processes of this start would wait for this one
                raise SystemExit(2) from error
            return None

    return run


def _begin(config: DictConfig, settings: Any, sweep: bool) -> None:
    # Again: launchers run this in processes that have not passed through launch().
    set_up_logging(settings.job.num if sweep else None)
    register_resolvers()
    if sweep and not _launched and "SLURM_JOB_ID" not in os.environ:
        end_with_parent()
    # Fixed here, once: the default holds the time, and each job of a sweep has its own folder below the
    # sweep's. Other interpolations stay, because stage 1 resolves them with its own model and folder.
    # A verb that makes its folder itself has Hydra run where the user is.
    if "output_dir" in config and settings.runtime.output_dir != os.getcwd():
        config.output_dir = settings.runtime.output_dir


def _do(verb: str, config: DictConfig, overrides: list[str], sweep: bool) -> Any:
    if not sweep and "output_dir" in config and start_name():
        _check_named(overrides)
    if sweep and (done := _finished(verb, config)) is not None:
        return done["validation"]
    if sweep and needs_own_process(config):
        return run_in_own_process(verb, config, overrides)
    with job_for_further_ranks(verb, config, overrides):
        return run_verb(verb, config, overrides)


def _finished(verb: str, config: DictConfig) -> dict[str, Any] | None:
    """Give the facts of a sweep's job that an earlier start of the sweep finished."""
    if verb != "train":
        return None
    from fakedet.training.resume import finished

    return finished(config)


def _remove_if_empty(folder: str) -> None:
    """Take back the folder that Hydra made for a run that did not begin."""
    if folder != os.getcwd():
        with suppress(OSError):
            os.rmdir(folder)


def _check_named(overrides: list[str]) -> None:
    """Refuse a folder named by the time where each rank would read the clock itself."""
    if not any(override.startswith("output_dir=") for override in overrides):
        raise UserError(
            "several processes were started at once (srun, torchrun): pass output_dir=FOLDER, one for all"
        )
