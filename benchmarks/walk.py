"""The walk of `fakedet index` against a bare walk that stats each file, over 100,000 files.

Ours tells images from other files, looks out for links that lead back, and keeps names, sizes and times by folder.
"Nothing to do" is the whole of `fakedet index` when no file has changed: walk, comparison with what is known, and a
new manifest; its ratio has no target.

Run: python -m benchmarks.walk
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.manifest import FILES, FOLDERS, walk
from benchmarks.ratio import interleaved, table
from fakedet.data.index import Settings, index_folder
from fakedet.data.scan import walk as our_walk

LEAST = 1 / 1.3


def prepare(root: Path) -> None:
    """Write small images, all different, half of them below folders of reals."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(buffer, "PNG")
    for folder in range(FOLDERS):
        where = root / f"generator_{folder // 2:02d}" / ("1_fake" if folder % 2 else "0_real")
        where.mkdir(parents=True)
        for number in range(FILES):
            (where / f"{number:06d}.png").write_bytes(buffer.getvalue() + b"%d %d" % (folder, number))


def main() -> None:
    """Time both, print the table."""
    with tempfile.TemporaryDirectory(prefix="fakedet-benchmark-") as name:
        root, manifest = Path(name) / "data", Path(name) / "m.parquet"
        prepare(root)
        count = FOLDERS * FILES
        assert sum(len(listing.images) for listing in our_walk(root)) == count == len(walk(str(root)))
        bare = interleaved(f"walk of {count:,} files", lambda: list(our_walk(root)), lambda: walk(str(root)), items=1)
        index_folder(root, manifest, Settings())
        again = interleaved(
            "index, nothing to do",
            lambda: index_folder(root, manifest, Settings()),
            lambda: walk(str(root)),
            items=1,
            rounds=5,
        )
    print(table("walk against os.scandir and stat", [bare], LEAST))
    print()
    print(table("index of an unchanged folder", [again], None))


if __name__ == "__main__":
    main()
