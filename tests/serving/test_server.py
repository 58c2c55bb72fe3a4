"""What programs get from `fakedet serve`: answers as from Python, refusals with a reason, nothing from other sites."""

import io
import math
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import cv2
import httpx2
import numpy as np
import pytest
import skimage.data
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

import fakedet
from fakedet.cli.cards import summary
from fakedet.cli.server import Limits, make_app
from fakedet.detector import Detector, Rules

NOTHING = Limits(max_mb=1, files=4, per_minute=10_000)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return fakedet.load("demo")


@pytest.fixture(scope="module")
def client(detector: Detector) -> TestClient:
    return TestClient(make_app(detector, Rules(), NOTHING), base_url="http://127.0.0.1:7860")


def jpeg(seed: int, height: int = 120, width: int = 200) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.GaussianBlur(image, (5, 5), 0))[1].tobytes()


def bomb() -> bytes:
    """Make a PNG of a few hundred bytes that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def send(client: httpx2.Client, *files: tuple[str, bytes], query: str = "", **headers: str) -> httpx2.Response:
    return client.post(f"/v1/predict{query}", files=[("files", file) for file in files], headers=headers)


def test_answers_are_those_of_python(client: TestClient, tmp_path: Path) -> None:
    tiny = cv2.imencode(".png", np.zeros((9, 9, 3)))[1].tobytes()
    contents = {"a.jpg": jpeg(0), "../b c.jpg": jpeg(1, 500, 300), "tiny.png": tiny}
    answer = send(client, *contents.items()).json()
    python = fakedet.load("demo")
    for found, (name, content) in zip(answer["files"], contents.items(), strict=True):
        (tmp_path / "file").write_bytes(content)
        said = asdict(python.predict(tmp_path / "file"))
        for key, value in said.items():
            wanted = None if isinstance(value, float) and math.isnan(value) else value
            assert found[key] == (name if key == "path" else wanted), key
        assert found["name"] == name
    assert answer["summary"] == summary(found["verdict"] for found in answer["files"])
    assert "simulated fakes only" in answer["note"]


def test_what_a_file_says_of_itself_comes_first(client: TestClient) -> None:
    said, file = PngImagePlugin.PngInfo(), io.BytesIO()
    said.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Model: <b>")
    Image.fromarray(skimage.data.astronaut()).save(file, "PNG", pnginfo=said)
    photograph = cv2.imencode(".png", skimage.data.astronaut()[..., ::-1])[1].tobytes()
    plain, told = send(client, ("a.png", photograph), ("b.png", file.getvalue()), query="?card=true").json()["files"]
    assert (plain["verdict"], plain["declares"]) == ("real", "")
    assert (told["verdict"], told["declares"]) == ("undecided", "generated")
    assert told["suspicion"][:2] == [1, 0]
    assert told["card"].index('class="origin"') < told["card"].index('class="word"')
    assert "<b>" not in told["card"]


def test_files_that_are_no_pictures_get_their_error(client: TestClient) -> None:
    whole = jpeg(2)
    files = {"text.jpg": b"no picture", "empty.jpg": b"", "half.jpg": whole[: len(whole) // 2], "bomb.png": bomb()}
    answer = send(client, *files.items(), query="?card=true")
    assert answer.status_code == 200
    for found in answer.json()["files"]:
        assert found["verdict"] is None
        assert found["score"] is None
        assert found["error"]
        assert f"not looked at: {found['error'][:9]}" in found["card"]
    assert answer.json()["summary"] == "4 files: 4 not looked at"


def test_names_are_text_wherever_they_are_shown(client: TestClient) -> None:
    names = ["<script>alert(1)</script>.jpg", "../../etc/passwd", "a\u202egpj.exe", "Ünï 写真.jpg"]
    answer = send(client, *((name, jpeg(0)) for name in names), query="?card=true").json()
    assert [found["name"] for found in answer["files"]] == [*names[:2], "a\N{REPLACEMENT CHARACTER}gpj.exe", names[3]]
    assert "<script" not in answer["files"][0]["card"]
    assert "&lt;script&gt;" in answer["files"][0]["card"]
    assert answer["files"][0]["card"].count("data:image/jpeg;base64,") == 2


def test_what_passes_a_limit_is_refused(client: TestClient, detector: Detector) -> None:
    large = ("large.bin", bytes(3 * 2**19))
    assert send(client, large).status_code == 413
    half = ("half.bin", bytes(5 * 2**17))
    assert send(client, half, half).status_code == 413
    many = send(client, *[("a.jpg", b"x")] * 300)
    assert many.status_code == 400
    assert "at most 4 files" in many.json()["detail"]
    assert client.post("/v1/predict", json={"url": "http://127.0.0.1/a.jpg"}).status_code == 415
    assert client.post("/v1/predict", data={"files": "http://127.0.0.1/a.jpg"}).status_code == 415
    assert client.get("/v1/predict").status_code == 405
    slow = TestClient(make_app(detector, Rules(), Limits(per_minute=3)), base_url="http://localhost")
    assert "at most 3 files" in send(slow, *[("a.jpg", b"x")] * 4).json()["detail"]
    slow = TestClient(make_app(detector, Rules(), Limits(per_minute=3)), base_url="http://localhost")
    assert send(slow, *[("a.jpg", b"x")] * 3).status_code == 200
    refused = send(slow, ("a.jpg", b"x"))
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert "try again in" in refused.json()["detail"]


def test_an_upload_that_is_not_multipart_at_its_end_is_refused(client: TestClient) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    for body in (b"", b"rubbish", part, part + jpeg(0), part + jpeg(0) + b"\r\n--x", b"--x--\r\n"):
        assert client.post("/v1/predict", content=body, headers=kind).status_code == 400, body[-9:]
    nameless = {"Content-Type": "multipart/form-data"}
    assert client.post("/v1/predict", content=part, headers=nameless).status_code == 400


def test_a_token_is_asked_for(detector: Detector) -> None:
    app = make_app(detector, Rules(), token="sesame ÿ")
    client = TestClient(app, base_url="http://127.0.0.1")
    for given in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "Basic sesame"}, {"Authorization": "x"}):
        for answer in (send(client, ("a.jpg", jpeg(0)), **given), client.get("/v1/detector", headers=given)):
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    app = make_app(detector, Rules(), token="sesame")
    client = TestClient(app, base_url="http://127.0.0.1")
    assert send(client, ("a.jpg", jpeg(0)), Authorization="Bearer sesame").status_code == 200
    assert client.get("/health").status_code == client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:7860", None, 200),
        ("127.0.0.1:7860", "http://127.0.0.1:7860", 200),
        ("localhost", "http://localhost", 200),
        ("[::1]:7860", None, 200),
        ("desk.example.org", "https://desk.example.org", 200),  # behind a proxy
        ("evil.example.org:7860", None, 403),  # a name that leads here
        ("127.0.0.1:7860", "http://evil.example.org", 403),
        ("127.0.0.1:7860", "http://127.0.0.1:7861", 403),
        ("127.0.0.1:7860", "null", 403),
        ("", None, 403),
    ],
)
def test_pages_of_other_sites_are_refused(detector: Detector, host: str, origin: str | None, status: int) -> None:
    client = TestClient(make_app(detector, Rules(), hosts=["Desk.example.org"]), base_url="http://127.0.0.1")
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    answer = send(client, ("a.jpg", b""), **headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    for given in (answer, client.get("/", headers=headers), client.get("/none", headers=headers)):
        assert "default-src 'none'" in given.headers["Content-Security-Policy"]
        assert given.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_asks_no_other_server_and_says_what_a_demonstration_is(client: TestClient) -> None:
    page = client.get("/").text
    assert page.count("this detector knows simulated fakes only") == 1
    assert "://" not in page
    assert [client.get(f"/page.{kind}").headers["Content-Type"].split(";")[0] for kind in ("js", "css")] == [
        "text/javascript", "text/css"]  # fmt: skip
    assert client.get("/docs").status_code == 404


def test_what_the_detector_knows_and_the_api_are_described(client: TestClient, detector: Detector) -> None:
    about = client.get("/v1/detector").json()
    assert about["generators"] == detector.generators
    assert about["promise"] == detector.require_operating_point().promise(0.05, 0.05)
    assert client.get("/health").json() == {"ready": True, "detector": "demo", "version": fakedet.__version__}
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/v1/predict", "/v1/detector", "/health"}
    fields = described["components"]["schemas"]["File"]["properties"]
    assert set(asdict(fakedet.Prediction())) | {"name", "suspicion", "card"} == set(fields)
    assert {"type": "null"} in fields["score"]["anyOf"]


@contextmanager
def running(app: object) -> Iterator[int]:
    """Serve an application on a free port."""
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def head(length: int) -> bytes:
    return (f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n").encode()  # fmt: skip


def test_cut_slow_and_endless_uploads_end_and_nothing_reaches_the_disk(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = Limits(max_mb=1, queue=2, seconds=0.5)
    with running(make_app(detector, Rules(), limits)) as port:
        address = ("127.0.0.1", port)
        with socket.create_connection(address) as cut:
            cut.sendall(head(1000) + b"--x\r\n")
        with socket.create_connection(address) as slow, httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            slow.sendall(head(1000) + b"--x\r\n")
            with socket.create_connection(address) as other:
                other.sendall(head(1000))
                time.sleep(0.2)
                busy = send(client, ("a.jpg", jpeg(0)))
                assert (busy.status_code, busy.headers["Retry-After"]) == (503, "5")
                assert client.get("/health").status_code == 200
                assert b" 408 " in slow.recv(1000)
            with socket.create_connection(address) as endless:
                endless.sendall(head(10**15))
                assert b" 413 " in endless.recv(1000)  # before anything was sent
            deadline = time.monotonic() + 5
            while (answer := send(client, ("a.jpg", jpeg(0)))).status_code == 503 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert answer.status_code == 200
            assert send(client, ("b.jpg", jpeg(1, 500, 700))).status_code == 200
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in caplog.text


def test_a_picture_that_breaks_the_detector_ends_only_itself(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    client = TestClient(make_app(detector, Rules(), NOTHING), base_url="http://127.0.0.1")
    with monkeypatch.context() as broken:
        broken.setattr(detector, "examine", fail)
        (found,) = send(client, ("a.jpg", jpeg(0))).json()["files"]
        assert found["error"] == "the detector failed on this file"
    assert send(client, ("a.jpg", jpeg(0))).json()["files"][0]["verdict"]
