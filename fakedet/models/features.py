"""The feature cache: a frozen backbone computes the features of an image once.

One cache in memory per process, keyed by the image's content, the backbone's weights and its preprocessing; with the
environment variable FAKEDET_FEATURES=FILE also a SQLite file, which several processes and later runs share.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import random
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fakedet.errors import UserError, one_line
from fakedet.utils import replacing

log = logging.getLogger("fakedet")

VARIABLE = "FAKEDET_FEATURES"  # environment variable that names the file; unset: features end with the process
FORMAT = 3  # to be raised when the same settings give other features
BATCHES = {"cpu": 1, "cuda": 32}  # images that a kind of device computes at a time, others one
CHECK = 4  # bytes of the checksum at the end of each row of the file


class Pictures:
    """Pictures that a whole number, their handle, stands for, so that known features need no pixels.

    Batches of a method that looks at features alone hold handles (N, 1) int64 in place of images (N, 3, H, W): a
    picture is then decoded, scaled and hashed once in a process, not in every epoch.
    """

    known: ClassVar[dict[Hashable, int]] = {}
    """Handles by what tells files apart, which is for the caller to say."""
    _kept: ClassVar[list[tuple[Any, tuple[int, ...], Callable[[], NDArray[np.uint8]]]]] = []

    @classmethod
    def add(cls, key: Hashable, image: NDArray[np.uint8], read: Callable[[], NDArray[np.uint8]]) -> int | None:
        """Give a picture (H, W, 3), which ``read`` decodes again, a handle; None if there are too many."""
        if len(cls._kept) >= FeatureCache.capacity:
            return None
        pixels = cls._scaled(image)
        cls._kept.append((hashlib.sha256(pixels.view(-1).numpy().data), tuple(pixels.shape), read))
        cls.known[key] = len(cls._kept) - 1
        return cls.known[key]

    @classmethod
    def content(cls, handle: int) -> tuple[Any, tuple[int, ...]]:
        """Return the hash of a picture's floats, to be continued, and their shape (3, H, W)."""
        content, shape, _ = cls._kept[handle]
        return content.copy(), shape

    @classmethod
    def pixels(cls, handle: int) -> NDArray[np.uint8]:
        """Decode a picture (H, W, 3) again."""
        return cls._kept[handle][2]()

    @classmethod
    def images(cls, handles: Tensor) -> Tensor:
        """Decode pictures of one size again, float (N, 3, H, W) in [0, 1]."""
        return torch.stack([cls._scaled(cls.pixels(handle)) for handle in handles.flatten().tolist()])

    @staticmethod
    def _scaled(image: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255.0)


class FeatureCache:
    """Compute the features of each image once, however often it comes.

    All backbones of a process with the same weights share the cache, and so do the jobs of a study. An image is its
    bytes: another crop, or one grey level of difference, is another image. Each backbone has a cache object of its own,
    which only keeps the backbone's fingerprint. Processes with one file share the work as well: each takes the images
    in an order of its own, and none that another has done meanwhile.
    """

    capacity: ClassVar[int] = 65_536
    """Images kept in memory, some 250 MB of features; the oldest are dropped first."""
    computed: ClassVar[int] = 0
    """Images whose features this process has computed."""
    _known: ClassVar[dict[bytes, Tensor]] = {}
    _file: ClassVar[FeatureFile | None] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._backbones: dict[str, bytes] = {}

    def features(
        self, backbone: Any, images: Tensor, destroyer: Any = None, draws: Tensor | None = None
    ) -> list[Tensor]:
        """Compute or look up the features (D,), on the CPU, of each of some float images (N, 3, H, W) in [0, 1].

        Handles (N, 1) of :class:`Pictures` stand for images as well.

        The backbone is as for :func:`fingerprint`; its ``describe`` maps (B, 3, H, W) to (B, D). On CPUs images are
        computed side by side, as many as PyTorch has threads and each alone by one thread: several threads to an image
        cost up to seven times the CPU, batches save nothing, and features would depend on both. On other devices
        batches have a fixed size (:data:`BATCHES`), for the same reason.

        With a ``destroyer`` and ``draws`` (N, width) the features are those of ``destroyer(images, draws=draws)``; the
        copies are made only where these are not known. The destroyer's ``fingerprint`` (bytes) says what it does.
        """
        device, by_handle = images.device.type, images.dtype == torch.int64
        if device not in self._backbones:
            self._backbones[device] = fingerprint(backbone)
        net, file = self._backbones[device], self._shared_file()
        keys, found = [], dict[bytes, Tensor]()
        for index, image in enumerate(images.cpu()):
            if by_handle:
                content, shape = Pictures.content(int(image))
            else:
                content, shape = hashlib.sha256(image.contiguous().view(-1).numpy().data), tuple(image.shape)
            content.update(repr((net, shape)).encode())
            if draws is not None:
                content.update(destroyer.fingerprint + draws[index].numpy().tobytes())
            keys.append(key := content.digest())
            row = self._known.get(key)
            if row is None and file:
                row = file.get(net, key)
            if row is not None:
                found[key] = row
        missing = {key: index for index, key in enumerate(keys) if key not in found}

        def look(rows: list[int]) -> Tensor:
            """Compute some rows, on the GPU together with zeros up to the fixed size."""
            with torch.no_grad():  # which each thread sets for itself
                seen = Pictures.images(images[rows]).to(images.device) if by_handle else images[rows]
                seen = seen if draws is None else destroyer(seen, draws=draws[rows])
                made: Tensor = backbone.describe(F.pad(seen, (0,) * 7 + (BATCHES.get(device, 1) - len(rows),)))
                return made[: len(rows)].cpu()

        found |= self._compute(look, missing, BATCHES.get(device, 1), net, file)
        if file:
            file.flush()  # other processes may be about to compute the same
        for key, row in found.items():
            self._remember(key, row)
        return [found[key] for key in keys]

    def _remember(self, key: bytes, row: Tensor) -> None:
        if key not in self._known:
            while len(self._known) >= self.capacity:
                del self._known[next(iter(self._known))]
            self._known[key] = row

    def _compute(
        self, look: Callable[[list[int]], Tensor], missing: dict[bytes, int], size: int, net: bytes,
        file: FeatureFile | None,
    ) -> dict[bytes, Tensor]:  # fmt: skip
        def compute(keys: tuple[bytes, ...]) -> tuple[list[Tensor], bool]:
            stored = file.get_all(net, keys) if file else []
            return (stored, False) if stored else (list(look([missing[key] for key in keys])), True)

        def collect(keys: tuple[bytes, ...]) -> None:
            rows, is_new = waiting[keys].result()
            for key, row in zip(keys, rows, strict=True):
                self._remember(key, row := row.clone())
                if file and is_new:
                    file.put(net, key, row)
                FeatureCache.computed += is_new
                found[key] = row

        found: dict[bytes, Tensor] = {}
        waiting: dict[tuple[bytes, ...], Future[tuple[list[Tensor], bool]]] = {}
        keys = tuple(missing)
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        if file:
            random.SystemRandom().shuffle(batches)  # what other processes compute meanwhile is found in the file
        workers = 1 if size > 1 else max(1, min(torch.get_num_threads(), len(missing)))
        with self._lock, ThreadPoolExecutor(workers) as pool:
            before = torch.get_num_threads()
            torch.set_num_threads(1)  # which threads that are started now take over
            try:
                waiting.update((batch, pool.submit(compute, batch)) for batch in batches)
                for keys in waiting:
                    collect(keys)
            except BaseException:  # a signal, say, that ends the run: what is computed by then is kept
                pool.shutdown(cancel_futures=True)
                for keys, one in waiting.items():
                    if keys[-1] not in found and not one.cancelled() and one.exception() is None:
                        collect(keys)
                raise
            finally:
                torch.set_num_threads(before)
        return found

    def forget(self) -> None:
        """Note that the backbone has other weights now."""
        self._backbones.clear()

    @classmethod
    def clear(cls) -> None:
        """Empty this process's memory; the file stays."""
        cls._known.clear()

    @classmethod
    def keep(cls, path: Path) -> None:
        """Write what this process has computed into the shared file, or else into ``path`` for :meth:`restore`."""
        if file := cls._shared_file():
            file.flush()
        elif cls._known:
            parts: dict[int, dict[str, Tensor]] = {}
            for key, row in cls._known.items():
                parts.setdefault(len(row), {})[key.hex()] = row
            with replacing(path) as temporary:
                torch.save([(list(part), torch.stack(list(part.values()))) for part in parts.values()], temporary)

    @classmethod
    def restore(cls, path: Path) -> None:
        """Take over what a process that was stopped has kept in a file."""
        try:
            for keys, rows in torch.load(path, weights_only=True) if path.is_file() else ():
                cls._known.update(zip(map(bytes.fromhex, keys), rows, strict=True))
        except Exception as error:  # whatever a damaged file makes the reader raise
            log.warning("%s cannot be read, and its features are computed again: %s", path, one_line(error))

    @classmethod
    def _shared_file(cls) -> FeatureFile | None:
        name = os.environ.get(VARIABLE)
        if name and (cls._file is None or cls._file.path != Path(name)):
            cls._file = FeatureFile(Path(name))
            atexit.register(cls._file.flush)
        return cls._file if name else None


def fingerprint(backbone: Any) -> bytes:
    """Hash the layers, weights, preprocessing (``levels``, ``input_size``, ``pool``) and ``dtype`` of a backbone.

    The hash has 16 bytes; features that another kind of device or another precision computes are others.
    """
    digest = hashlib.blake2b(repr(backbone).encode(), digest_size=16)
    digest.update(repr([FORMAT, backbone.levels, backbone.input_size, backbone.pool]).encode())
    device = backbone.mean.device.type
    if device != "cpu" or backbone.dtype != torch.float32:
        digest.update(repr([device, backbone.dtype]).encode())
    # Not state_dict(), which leaves out the buffers mean and std of the preprocessing.
    for name, value in (*backbone.named_parameters(), *backbone.named_buffers()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


class FeatureFile:
    """Keep float32 features by (backbone, image) in one SQLite file, which several processes may read and write.

    The file and its folders are created if missing. If it breaks later, a warning is logged and it is no longer used.

    Raises:
        UserError: the file cannot be created, or is something else.
    """

    interval: ClassVar[float] = 0.5
    """Seconds between writes; what is not written yet, other processes compute again, and so does a later run if this
    process is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[tuple[bytes, bytes, bytes]] = []
        self._written = time.monotonic()
        self._readable = self._writable = True
        columns = "net BLOB, image BLOB, value BLOB, PRIMARY KEY (net, image)"
        self._execute(f"CREATE TABLE IF NOT EXISTS features ({columns})")

    def get(self, backbone: bytes, image: bytes) -> Tensor | None:
        """Return the features that any process has stored for an image; None if there are none or they are damaged."""
        if not self._readable:
            return None
        try:
            rows = self._execute("SELECT value FROM features WHERE net = ? AND image = ?", [(backbone, image)])
        except UserError as error:
            self._give_up(error)
            self._readable = False
            return None
        row = rows[0][0] if rows else None
        if not isinstance(row, bytes) or len(row) <= CHECK:
            return None
        values, check = row[:-CHECK], row[-CHECK:]
        if zlib.crc32(values).to_bytes(CHECK, "little") != check or len(values) % 4:
            return None  # a bad disk has changed it
        return torch.from_numpy(np.frombuffer(values, dtype="<f4").copy())

    def get_all(self, backbone: bytes, images: Sequence[bytes]) -> list[Tensor]:
        """Return the features of some images, or none unless those of all are stored."""
        rows = [row for row in (self.get(backbone, image) for image in images) if row is not None]
        return rows if len(rows) == len(images) else []

    def put(self, backbone: bytes, image: bytes, features: Tensor) -> None:
        """Keep an image's features; they are written with those of the next moments."""
        values = features.numpy().astype("<f4").tobytes()
        self._waiting.append((backbone, image, values + zlib.crc32(values).to_bytes(CHECK, "little")))
        if time.monotonic() - self._written >= self.interval:
            self.flush()

    def flush(self) -> None:
        """Write the features that have not been written yet."""
        rows = list(self._waiting)
        self._written = time.monotonic()
        try:
            if rows and self._writable:  # a row that was damaged is replaced
                self._execute("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
            del self._waiting[: len(rows)]  # not before: a signal may end the process meanwhile
        except UserError as error:  # a full disk, say: what it holds can still be read
            self._give_up(error)

    def _give_up(self, error: UserError) -> None:
        self._waiting.clear()
        if self._writable:
            log.warning("%s; features are no longer kept there", error)
        self._writable = False

    def _execute(self, statement: str, rows: Sequence[tuple[bytes, ...]] = ((),)) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own: none is open when a process forks."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self.path, timeout=60.0)) as connection, connection:
                return [found for row in rows for found in connection.execute(statement, row)]
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{VARIABLE}={self.path}: cannot be used as a file of features ({error}); name another one, or unset it"
            ) from error


def check_backbones(
    wanted: Mapping[str, Any], found: Mapping[str, Any], path: str | Path, setting: str, rounded: bool = False
) -> None:
    """Raise UserError if a backbone that a checkpoint leaves out has other weights here.

    Both infos hold ``backbones`` as :func:`fakedet.models.backbones.public_backbones` gives them; ``setting`` names a
    file of weights. With ``rounded``, the matrices of a backbone may be rounded otherwise, with a warning.
    """
    for place, one in (wanted.get("backbones") or {}).items():
        if not isinstance(one, dict) or not all(str(one.get(key, "\n")).isprintable() for key in ("name", "sha256")):
            raise UserError(f"{path} is damaged: a backbone in it has no name and sha256")
        here = (found.get("backbones") or {}).get(place) or {"sha256": "none"}
        if rounded and one["sha256"] != here["sha256"] and here.get("vectors", "none") == one.get("vectors"):
            log.warning("%s was trained over its backbone '%s' with other rounding of its matrices than here: its "
                        "numbers differ a little", path, one["name"])  # fmt: skip
        elif here["sha256"] != one["sha256"]:
            file = f", from a file '{one['file']}'" if str(one.get("file") or "\n").isprintable() else ""
            raise UserError(
                f"{path}: it was trained over other weights of its backbone '{one['name']}' (sha256 "
                f"{str(one['sha256'])[:12]}{file}) than those here ({here['sha256'][:12]}); pass {setting}=FILE"
            )
