"""Data sets fetched from a small server that stands for Zenodo and for the Hugging Face hub."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fakedet.cli.app import launch

COMMIT = "0" * 39 + "1"


class Host(BaseHTTPRequestHandler):
    """Keep files in memory; end a connection after ``most`` bytes of a file."""

    files: dict[str, bytes]
    most: int
    ranges: list[str]
    wrong: set[str]  # files whose hash is told wrong

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: self.most])

    def do_HEAD(self) -> None:
        """Describe a file."""
        self.do_GET()

    def do_GET(self) -> None:
        """Serve a record, the description of a data set, or a file."""
        address = f"http://{self.headers['Host']}"
        told = {name: b"other" if name in self.wrong else data for name, data in self.files.items()}
        if self.path == "/api/records/7":
            listed = [{"key": name, "size": len(data), "checksum": f"md5:{hashlib.md5(told[name]).hexdigest()}",
                       "links": {"self": f"{address}/files/{name}"}} for name, data in self.files.items()]  # fmt: skip
            return self._send(json.dumps({"files": listed}).encode())
        if self.path.startswith("/api/datasets/lab/pictures"):
            blobs = {name: f"blob {len(self.files[name])}\0".encode() + data for name, data in told.items()}
            listed = [{"rfilename": name, "size": len(data), "blobId": hashlib.sha1(blobs[name]).hexdigest()}
                      for name, data in self.files.items()]  # fmt: skip
            listed[0]["lfs"] = {"sha256": hashlib.sha256(told[listed[0]["rfilename"]]).hexdigest(), "pointerSize": 9,
                                "size": listed[0]["size"]}  # fmt: skip
            return self._send(json.dumps({"id": "lab/pictures", "sha": COMMIT, "siblings": listed}).encode())
        data = self.files.get(self.path.partition("/files/")[2] or self.path.partition(f"/{COMMIT}/")[2])
        if data is None:
            return self._send(b"", 404)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.ranges.append(self.headers.get("Range", ""))
        status = 206 if start else 200
        return self._send(data[start:], status, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT,
                          Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")  # fmt: skip


@pytest.fixture
def host() -> Iterator[tuple[str, type[Host]]]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("biggan/1_fake/a.png", b"picture")
    files = {"set.zip": packed.getvalue(), "notes.txt": bytes(range(256)) * 12_000}
    own = {"files": files, "most": 1 << 30, "ranges": [], "wrong": set()}
    handler = type("Own", (Host,), own)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_a_record_is_fetched_checked_and_unpacked(
    host: tuple[str, type[Host]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, handler = host
    words = [f"name={address}/records/7", f"output={tmp_path / 'out'}"]
    handler.most = 2_500_000  # a connection that breaks
    assert launch("fetch", [*words, "only=notes.txt"]) == 2
    assert "the same command goes on" in capsys.readouterr().err
    handler.most = 1 << 30
    assert launch("fetch", words) == 0
    assert handler.ranges[1:] == ["", f"bytes={2 << 20}-"], "set.zip, then what was lacking of the notes"
    assert {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
            for path in (tmp_path / "out").rglob("*") if path.is_file()} == {
        **handler.files, "biggan/1_fake/a.png": b"picture"}  # fmt: skip
    assert "2 files, 3.1 MB, each of the hash" in capsys.readouterr().out
    handler.ranges.clear()
    assert launch("fetch", words) == 0
    assert not handler.ranges, "what is there is not fetched again"


def test_what_arrives_with_another_hash_is_refused(
    host: tuple[str, type[Host]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, handler = host
    handler.wrong = {"notes.txt"}
    words = [f"name={address}/records/7", f"output={tmp_path}", "only=['*.txt']"]
    assert launch("fetch", words) == 2
    assert "notes.txt arrived with another hash" in capsys.readouterr().err
    assert not (tmp_path / "notes.txt").exists()
    for wrong, told in {
        "only=nothing": "has 2 files, none of them of these names: set.zip, notes.txt",
        f"name={address}/records/8": "cannot be fetched: 404",
        "name=genimage": "its data are to be had at https://github.com/GenImage-Dataset",
        "name=genimige": "did you mean 'genimage'",
        "name=ftp://x": "wanted hf://datasets/OWNER/NAME or",
    }.items():
        assert launch("fetch", [*words, wrong]) == 2
        assert told in capsys.readouterr().err
    handler.files = {"../outside.txt": b"x"}
    assert launch("fetch", [words[0], words[1]]) == 2
    assert "'../outside.txt' is no name of a file below" in capsys.readouterr().err


@pytest.mark.slow
def test_a_data_set_of_the_hub_comes_by_its_name(host: tuple[str, type[Host]], tmp_path: Path) -> None:
    address, handler = host
    given = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
             "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    code = ("from fakedet.cli.app import launch; import sys; sys.exit(launch('fetch', "
            f"['name=hf://datasets/lab/pictures', 'output={tmp_path / 'out'}']))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {name: (tmp_path / "out" / name).read_bytes() for name in handler.files} == handler.files
    assert (tmp_path / "out" / "biggan" / "1_fake" / "a.png").read_bytes() == b"picture"
    assert "next      fakedet index source=" in done.stdout
    (tmp_path / "out" / "notes.txt").unlink()
    handler.wrong = {"notes.txt"}
    bad = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given, timeout=300)
    assert bad.returncode == 2
    assert "notes.txt arrived with another hash" in bad.stderr
