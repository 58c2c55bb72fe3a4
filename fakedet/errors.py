"""Errors that are meant for the person at the keyboard, and the words that help them on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where, and what to do.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def nearest(name: str, options: Iterable[str]) -> str:
    """Say which of ``options`` lies nearest to a mistyped ``name``, or list them all.

    Args:
        name: what the user wrote.
        options: the valid names.

    Returns:
        "did you mean 'x'?" or "valid: a, b, c", ready to stand at the end of a message.
    """
    known = sorted({str(option) for option in options})
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "valid: " + ", ".join(known) if known else "there is nothing to choose from"


def choose(name: str, options: Iterable[str], what: str) -> str:
    """Return ``name`` if it is one of ``options``.

    Raises:
        UserError: it is not; the message names the nearest valid one.
    """
    options = list(options)
    if name not in options:
        raise UserError(f"{what}: '{name}' is not known; {nearest(name, options)}")
    return name


def one_line(error: BaseException) -> str:
    """Write an error's message in one line; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class Preempted(BaseException):
    """A run was told to stop, and stopped at a point that it goes on from.

    As with KeyboardInterrupt, ``except Exception`` must not catch it: a library would take it for a failure.

    Args:
        signal: number of the signal.
        path: the checkpoint that the run goes on from.
    """

    def __init__(self, signal: int, path: object) -> None:
        super().__init__(f"stopped by signal {signal} after writing {path}")
        self.signal = signal
