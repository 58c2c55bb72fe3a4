"""Run a verb as a Hydra app: compose, check, run, and say what went wrong in one line."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fakedet.commands import JOB
from fakedet.commands.mistakes import check_command_line
from fakedet.commands.shorthand import expand_encoders
from fakedet.errors import Preempted, UserError
from fakedet.runs.quiet import quiet_libraries
from fakedet.runs.ranks import is_main_process, start_name

FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def launch(verb: str, arguments: list[str]) -> int:
    """Run a verb with Hydra's command-line arguments and return the exit status.

    Status 2 is a mistake in what was given, 1 a failure while running, 130 an interruption.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # Lets exceptions through to us: Hydra would print its own version of them and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    set_up_logging()
    register_resolvers()
    try:
        arguments = expand_encoders(arguments)
        check_command_line(verb, arguments)
        sys.argv = [sys.argv[0], *arguments]
        mistakes: list[UserError] = []
        hydra.main(version_base="1.3", config_path="pkg://fakedet.conf", config_name=verb)(
            _task(verb, mistakes)
        )()
        if mistakes:
            return 2
    except UserError as error:
        return _fail(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(_config_error(error), 2)
    except (NotADirectoryError, PermissionError, FileExistsError) as error:
        # Hydra makes the output folder before the verb runs.
        return _fail(f"{error.filename}: {error.strerror}; name an output_dir that can be written", 2)
    except ValueError as error:
        if not str(error).startswith("Only one of --run"):
            raise
        return _fail("-m and --cfg do not go together; leave -m out to see the config of one job", 2)
    except OSError as error:
        if error.errno not in FULL_OR_READ_ONLY:
            raise
        return _fail(f"{error.filename or 'a file of this run'} cannot be written: {error.strerror}; what was written "
                     "before is whole", 1)  # fmt: skip
    except KeyboardInterrupt:
        return _fail("interrupted; what was written so far is kept", 130)
    return 0


def _config_error(error: Exception) -> str:
    told = " ".join(str(error).split())
    unset = re.search(r"Environment variable '(\w+)' not found\W+full_key: (\S+)", told)
    if unset:
        return (
            f"{unset[2]} needs the environment variable {unset[1]}, which is not set: export {unset[1]}=..."
        )
    return told


class _Console(logging.StreamHandler[Any]):
    """Write to what standard output is at the time, which may be redirected."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:  # type: ignore[override]
        """Standard output as it is now."""
        return sys.stdout


def set_up_logging() -> None:
    """Let fakedet's log speak to the console in plain lines."""
    logger = logging.getLogger("fakedet")
    if not logger.handlers:
        handler = _Console()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def register_resolvers() -> None:
    """Register what our configs interpolate with: ``fakedet_slug`` makes a folder name of overrides."""

    def slug(text: str) -> str:
        kept = "".join(sign if sign.isalnum() or sign in "=.,-_" else "-" for sign in text)
        return kept[:120]

    OmegaConf.register_new_resolver("fakedet_slug", slug, replace=True)


def _task(verb: str, mistakes: list[UserError]) -> Any:
    def run(config: DictConfig) -> Any:
        # Again: a launcher such as submitit's runs this in a process that has not passed through launch().
        set_up_logging()
        register_resolvers()
        settings = HydraConfig.get()
        overrides = [str(override) for override in settings.overrides.task]
        # Fixed here, once: the default holds the time, and each job of a sweep has its own folder below the
        # sweep's. Other interpolations stay, because stage 1 resolves them with its own model and folder.
        # A verb that makes its folder itself has Hydra run where the user is.
        if "output_dir" in config and settings.runtime.output_dir != os.getcwd():
            config.output_dir = settings.runtime.output_dir
        try:
            if "output_dir" in config and start_name() and settings.mode != RunMode.MULTIRUN:
                _check_named(overrides)
            with _job_for_further_ranks(verb, config, overrides):
                return _run(verb, config, overrides)
        except Preempted as stop:
            _end_by_signal(stop)
        except UserError as error:
            # Told here: Hydra would print a page of its own, and a sweep goes on with its other jobs.
            mistakes.append(error)
            _remove_if_empty(settings.runtime.output_dir)
            _fail(str(error), 2)
            if start_name():  # the other processes of this start would wait for this one
                raise SystemExit(2) from error
            return None

    return run


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


@contextmanager
def _job_for_further_ranks(verb: str, config: DictConfig, overrides: list[str]) -> Iterator[None]:
    """Write down the job where the processes that Lightning starts for further ranks find it.

    They are started with this command line; left to compose from it, each would start a sweep anew or name
    another folder.
    """
    trainer = config.get("trainer") or {}
    if trainer.get("devices", 1) == 1 and trainer.get("num_nodes", 1) == 1:
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


def _run(verb: str, config: DictConfig, overrides: list[str]) -> Any:
    module = importlib.import_module(f"fakedet.commands.{verb}")
    quiet_libraries()
    return module.run(config, overrides)


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
        _run(saved.verb, config, list(saved.overrides))
    except UserError:
        return 2  # rank zero says it
    return 0


def _end_by_signal(stop: Preempted) -> None:
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


def _fail(message: str, status: int) -> int:
    print(f"fakedet: {message}", file=sys.stderr)
    return status
