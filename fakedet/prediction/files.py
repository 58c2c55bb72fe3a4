"""Which images a desk means by a file, a folder, a glob or a list."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from fakedet.data.index.walk import walk
from fakedet.errors import UserError

STDIN = "-"


def list_images(
    sources: list[str], tell_left_out: Callable[[Counter[str]], None] | None = None
) -> Iterator[str]:
    """Yield the paths of images, each once, folders walked to all depths.

    Args:
        sources: files, folders, globs (``**`` goes deep), or "-" for a list of paths on standard input, one a
            line. A file that is named is yielded whatever its name; in folders only names of images are.
        tell_left_out: called at the end with how many files of which endings were left aside in folders.

    Raises:
        UserError: a source is not there, or all of them hold no images.
    """
    seen: set[str] = set()
    left_out: Counter[str] = Counter()
    for path in _expand(sources, left_out):
        if path not in seen:
            seen.add(path)
            yield path
    if tell_left_out is not None:
        tell_left_out(left_out)
    if not seen:
        raise UserError(f"source={', '.join(sources)}: there are no images (jpg, png, webp, bmp, tif, ...)")


def _expand(sources: list[str], left_out: Counter[str]) -> Iterator[str]:
    for source in sources:
        if source == STDIN:
            # A file that a list names and that is not there fails by itself; the others go on.
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif Path(source).is_dir():
            for listing in walk(Path(source)):
                left_out.update(listing.others)
                names = sorted(
                    [name for name, _, _ in listing.images] + [name for name, _ in listing.problems]
                )
                yield from (str(Path(source, listing.folder, name)) for name in names)
        elif Path(source).exists():
            yield source
        elif glob.has_magic(source):
            yield from sorted(path for path in glob.glob(source, recursive=True) if Path(path).is_file())
        else:
            raise UserError(f"source={source}: there is no such file or folder")
