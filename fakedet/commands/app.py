"""Run a verb as a Hydra app: compose, check, run, and say what went wrong in one line."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fakedet.commands.mistakes import check_command_line
from fakedet.commands.processes import (
    end_with_parent,
    job_for_further_ranks,
    needs_own_process,
    run_in_own_process,
)
from fakedet.commands.session import (
    FULL_OR_READ_ONLY,
    end_by_signal,
    fail,
    register_resolvers,
    run_verb,
    set_up_logging,
)
from fakedet.commands.shorthand import expand_encoders
from fakedet.commands.sweep import failed_jobs, note_failure, remember_swept
from fakedet.errors import Preempted, UserError
from fakedet.runs.ranks import start_name

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
    from fakedet.runs import resuming  # late: it loads PyTorch

    return resuming.finished(config)


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
