"""What an audit finds: what it is, what it means, and how it is mended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

LEVELS = ("problem", "warning", "note")
"""A problem makes results wrong or flattering, a warning may, a note is good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    level: str
    """One of :data:`LEVELS`."""
    kind: str
    """A short name, the same for findings of one sort: "header", "duplicate", ..."""
    what: str
    """What was seen, with numbers and the first offender."""
    means: str
    """Why it matters."""
    mend: str
    """The command or step that mends it; "" if nothing need be done."""
    data: dict[str, Any] = field(default_factory=dict)
    """Numbers for programs."""

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return asdict(self)


def ordered(findings: list[Finding]) -> list[Finding]:
    """Put problems first, then warnings, then notes."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
