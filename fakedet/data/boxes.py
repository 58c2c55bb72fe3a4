"""The boxes of a HEIC file (ISO 14496-12, 23008-12): how large its parts are, and whether data are missing.

libheif keeps to the size that the file gives, but a telephone's image is a grid of tiles, of which libheif takes any
size, and fills up in silence what is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TypeAlias

Place: TypeAlias = tuple[int, int]  # where the content of a box begins and ends
LEAST = 1 << 12  # Pixels that a part counts for at least: millions of empty ones take time too


class Heic:
    """The primary image of a HEIC file and its parts: the tiles of a grid, layers, the alpha plane.

    A ValueError where the boxes are cut short, or are no such file's.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        start, end = self._only((0, len(data)), b"meta")
        self._inside = start + 4, end
        start, _ = self._only(self._inside, b"pitm")
        self.primary = self._number(start + 4, 4 if self._number(start, 1) else 2)
        properties = self._only(self._inside, b"iprp")
        self._properties = list(self._boxes(self._only(properties, b"ipco")))
        self._of_item = defaultdict[int, list[int]](list)  # numbers of properties, from 0
        for kind, place in self._boxes(properties):
            if kind == b"ipma":
                self._associate(*place)
        self._parts = defaultdict[int, list[int]](list)
        for kind, place in self._boxes(self._inside):
            if kind == b"iref":
                self._refer(*place)

    def parts(self, most: int) -> tuple[int, int]:
        """Return the pixels of the largest part, and of all; counting ends above ``most``. 0 where there are none."""
        largest = total = 0
        todo = list(self._parts[self.primary])
        while todo and total <= most:
            item = todo.pop()
            sizes = [self._number(start + 4, 4) * self._number(start + 8, 4)
                     for kind, (start, _) in self._properties_of(item) if kind == b"ispe"]  # fmt: skip
            if not sizes:
                raise ValueError("a part of the image has no size")
            largest = max(largest, *sizes)
            total += max(LEAST, *sizes)
            todo += self._parts[item]
        return largest, total

    def ends(self) -> bool:
        """Return whether the data of the image and all its parts are there, up to their last byte."""
        needed, todo = {self.primary}, [self.primary]
        while todo:
            more = set(self._parts[todo.pop()]) - needed
            needed |= more
            todo += more
        found = dict(self._contents())
        return all(item in found and self._is_whole(item, found[item]) for item in needed)

    def _is_whole(self, item: int, pieces: list[Place]) -> bool:
        if any(start >= end or end > len(self._data) for start, end in pieces):
            return False
        settings = [start for kind, (start, _) in self._properties_of(item) if kind == b"hvcC"]
        if not settings:
            return True
        size = (self._number(settings[0] + 21, 1) & 3) + 1
        content = b"".join(self._data[start:end] for start, end in pieces)
        at = 0
        while at + size < len(content):
            at, length = at + size, int.from_bytes(content[at : at + size], "big")
            # H.265, 7.4.2: a unit does not end with a zero; what was never written is zeros.
            if at + length > len(content) or not any(content[at : at + length][-64:]):
                return False
            at += length
        return at == len(content)

    def _contents(self) -> Iterator[tuple[int, list[Place]]]:
        """Yield each item and where the pieces of its data are, of the box iloc."""
        at, _ = self._only(self._inside, b"iloc")
        version, sizes = self._number(at, 1), self._number(at + 4, 2)
        of_offset, of_length, of_base, of_index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        wide = 4 if version == 2 else 2
        count, at = self._number(at + 6, wide), at + 6 + wide
        held = next((start for kind, (start, _) in self._boxes(self._inside) if kind == b"idat"), 0)
        for _ in range(count):
            item, at = self._number(at, wide), at + wide
            method = self._number(at, 2) & 15 if version else 0
            at += 4 if version else 2
            start = self._number(at, of_base) + (held if method == 1 else 0)
            pieces, at = self._number(at + of_base, 2), at + of_base + 2
            step = (of_index if version else 0) + of_offset + of_length
            places = []
            for piece in range(at + step - of_offset - of_length, at + step * pieces, step or 1):
                begin = start + self._number(piece, of_offset)
                places.append((begin, begin + self._number(piece + of_offset, of_length)))
            at += step * pieces
            yield item, places

    def _number(self, start: int, size: int) -> int:
        if start + size > len(self._data):
            raise ValueError("truncated: its boxes are cut short")
        return int.from_bytes(self._data[start : start + size], "big")

    def _boxes(self, place: Place) -> Iterator[tuple[bytes, Place]]:
        start, end = place
        while start + 8 <= end:
            size, begin = self._number(start, 4), start + 8
            if size == 1:
                size, begin = self._number(start + 8, 8), start + 16
            stop = end if size == 0 else start + size
            if stop < begin:
                raise ValueError("a box is smaller than its header")
            yield self._data[start + 4 : start + 8], (begin, min(stop, end))
            start = stop

    def _only(self, place: Place, wanted: bytes) -> Place:
        """Find a box; of two of a kind, it is not known which a decoder takes."""
        found = [content for kind, content in self._boxes(place) if kind == wanted]
        if len(found) != 1:
            raise ValueError(f"{len(found)} boxes '{wanted.decode()}' where one is wanted")
        return found[0]

    def _properties_of(self, item: int) -> list[tuple[bytes, Place]]:
        return [self._properties[number] for number in self._of_item[item] if 0 <= number < len(self._properties)]

    def _associate(self, start: int, end: int) -> None:
        """Read the box ipma: the properties of each item."""
        wide, at = 4 if self._number(start, 1) else 2, start + 8
        step = 2 if self._number(start + 3, 1) & 1 else 1
        for _ in range(self._number(start + 4, 4)):
            item, count, at = self._number(at, wide), self._number(at + wide, 1), at + wide + 1
            # The highest bit says whether a property must be understood.
            numbers = (self._number(at + step * n, step) & ((1 << 8 * step - 1) - 1) for n in range(count))
            self._of_item[item] += [number - 1 for number in numbers]
            at += step * count

    def _refer(self, start: int, end: int) -> None:
        """Read the box iref: what items are derived from, and their alpha planes."""
        wide = 4 if self._number(start, 1) else 2
        for kind, (first, _) in self._boxes((start + 4, end)):
            item, count = self._number(first, wide), self._number(first + wide, 2)
            others = [self._number(first + wide + 2 + wide * n, wide) for n in range(count)]
            if kind == b"dimg":
                self._parts[item] += others
            elif kind == b"auxl":
                for other in others:
                    self._parts[other].append(item)
