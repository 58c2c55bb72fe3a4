"""Uploads that nobody looked at go; those under way stay."""

import os
import time
from pathlib import Path

from fakedet.cli.serve import forget


def test_old_files_and_empty_folders_go(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"x")
    past = time.time() - 61
    os.utime(tmp_path / "old" / "a.jpg", (past, past))
    forget(tmp_path, 60)
    forget(tmp_path, 60)  # the folder is empty now
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["new", "new/a.jpg"]
