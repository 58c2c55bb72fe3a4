"""What is said of an image file that cannot be read."""

from __future__ import annotations

LONGEST = 200


class DecodeError(Exception):
    """An image file cannot be read; ``reason`` says why in a few words, on one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def said(error: Exception) -> str:
    """Give a library's message as one short line that can be printed; the files it quotes may hold anything."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return text[:LONGEST] or type(error).__name__
