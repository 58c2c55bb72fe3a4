"""Fetch others' data sets from the Hugging Face hub and Zenodo: resumed where it stopped, checked by hash."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import requests

from fakedet.errors import UserError, one_line
from fakedet.utils import bar, written

log = logging.getLogger("fakedet")

HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
RECORD = re.compile(r"https?://[^/]+(?:/api)?/records/\d+")
BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without an answer


class Remote(NamedTuple):
    """A file of a data set."""

    name: str  # relative to the data set, with slashes
    bytes: int
    digest: str  # "sha256:...", "md5:...", or "git:...", the name that git gives its content
    url: str  # "" on the hub, whose library fetches it


def fetch(source: str, folder: Path, only: Sequence[str] = (), unpack: bool = True) -> list[Path]:
    """Fetch the files of a data set that are not in a folder yet, check them by their hashes, and unpack zip files.

    Args:
        source: hf://datasets/OWNER/NAME, with @REVISION or without, or the address of a Zenodo record.
        folder: where to; a file of the right hash stays, a part of one is gone on with.
        only: names or globs of the files to fetch; none: all.
        unpack: unpack zip files beside themselves; what is there with the right size stays.

    Returns:
        The files, as they were fetched.

    Raises:
        UserError: another form of the source, no such data set, no answer, too little space, or a file whose hash is
            wrong.
    """
    hub, record = HUB.fullmatch(source), RECORD.fullmatch(source)
    if hub is None and record is None:
        raise UserError(f"{source}: wanted hf://datasets/OWNER/NAME or https://zenodo.org/records/NUMBER")
    try:
        listed, get = _hub(hub[1], hub[2], folder) if hub else _record(source, folder)
        files = [file for file in listed if not only or any(fnmatchcase(file.name, one) for one in only)]
        if not files:
            names = ", ".join(file.name for file in listed[:8])
            raise UserError(f"only={written(list(only))}: {source} has {len(listed)} files, none of them of these "
                            f"names: {names}{', ...' * (len(listed) > 8)}")  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files, start=1):
            place = _place(folder, file.name)
            if not _is_whole(place, file):
                _need_space(folder, file.bytes - (place.stat().st_size if place.is_file() else 0), file.name)
                log.info("file %d of %d: %s, %.1f MB", number, len(files), file.name, file.bytes / 1e6)
                get(file, place)
                if not _is_whole(place, file):
                    place.unlink(missing_ok=True)
                    raise UserError(f"{file.name} arrived with another hash than {source} names, and was removed; run "
                                    "the same command again")  # fmt: skip
            if unpack and place.suffix == ".zip":
                _unpack(place)
    except UserError:
        raise
    except Exception as error:  # whatever the clients, the network, the disk and damaged zip files raise
        raise UserError(f"{source} cannot be fetched: {one_line(error)[:300]}; what has arrived stays, and the same "
                        "command goes on") from error  # fmt: skip
    return [_place(folder, file.name) for file in files]


def _hub(name: str, revision: str | None, folder: Path) -> tuple[list[Remote], Callable[[Remote, Path], None]]:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi(library_name="fakedet").dataset_info(name, revision=revision, files_metadata=True)
    files = []
    for one in info.siblings or ():
        digest = f"sha256:{one.lfs.sha256}" if one.lfs else f"git:{one.blob_id}"
        files.append(Remote(one.rfilename, int(one.size or 0), digest, ""))

    def get(file: Remote, place: Path) -> None:
        # The commit that was listed: the data set may change meanwhile.
        hf_hub_download(name, file.name, repo_type="dataset", revision=info.sha, local_dir=folder)

    return files, get


def _record(source: str, folder: Path) -> tuple[list[Remote], Callable[[Remote, Path], None]]:
    address = source if "/api/" in source else source.replace("/records/", "/api/records/")
    answer = requests.get(address, timeout=TIMEOUT)
    answer.raise_for_status()
    files = [Remote(str(one["key"]), int(one["size"]), str(one["checksum"]), str(one["links"]["self"]))
             for one in answer.json()["files"]]  # fmt: skip
    return files, _download


def _download(file: Remote, place: Path) -> None:
    """Fetch a file, or what its part lacks."""
    part = place.with_name(f"{place.name}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    there = part.stat().st_size if part.is_file() else 0
    if there > file.bytes:
        part.unlink()
        there = 0
    if there < file.bytes or not part.is_file():
        wanted = {"Range": f"bytes={there}-"} if there else {}
        with requests.get(file.url, headers=wanted, stream=True, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
            there = there if answer.status_code == requests.codes.partial_content else 0  # not every server has ranges
            with part.open("ab" if there else "wb") as target, bar("megabytes", file.bytes // 10**6) as shown:
                for block in answer.iter_content(BLOCK):
                    target.write(block)
                    there += len(block)
                    shown.show(there // 10**6)
    if there < file.bytes:
        raise OSError(f"the connection ended after {there:,} of {file.bytes:,} bytes")
    part.replace(place)


def _is_whole(place: Path, file: Remote) -> bool:
    """Say whether a file is there with the hash that it is to have."""
    if not place.is_file() or place.stat().st_size != file.bytes:
        return False
    kind, _, wanted = file.digest.partition(":")
    digest = hashlib.new({"git": "sha1"}.get(kind, kind), usedforsecurity=False)
    if kind == "git":
        digest.update(f"blob {file.bytes}\0".encode())
    with place.open("rb") as content, bar("megabytes checked", file.bytes // 10**6) as shown:
        done = 0
        while block := content.read(BLOCK):
            digest.update(block)
            done += len(block)
            shown.show(done // 10**6)
    return digest.hexdigest() == wanted


def _unpack(archive: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        members = [one for one in content.infolist() if not one.is_dir()]
        lacking = [one for one in members if not _is_there(_place(archive.parent, one.filename), one.file_size)]
        _need_space(archive.parent, sum(one.file_size for one in lacking), f"what {archive.name} holds")
        with bar("files unpacked", len(lacking)) as shown:
            for number, one in enumerate(lacking, start=1):
                content.extract(one, archive.parent)
                shown.show(number)


def _is_there(place: Path, size: int) -> bool:
    return place.is_file() and place.stat().st_size == size


def _place(folder: Path, name: str) -> Path:
    """Return the place of a file below a folder; UserError for a name that leads out of it."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name:
        raise UserError(f"'{name}' is no name of a file below {folder}, and was not fetched")
    return folder.joinpath(*parts)


def _need_space(folder: Path, count: int, what: str) -> None:
    """Raise UserError if a disk lacks the space for so many bytes."""
    if count > (free := shutil.disk_usage(folder).free):
        raise UserError(f"{folder}: {what} needs {count / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")
