"""Jobs of several processes: how the further ones find theirs, and a process of its own for each in a sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fakedet.commands import JOB
from fakedet.commands.session import end_by_signal, fail, register_resolvers, run_verb, set_up_logging
from fakedet.errors import Preempted, UserError
from fakedet.runs.ranks import start_name

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
