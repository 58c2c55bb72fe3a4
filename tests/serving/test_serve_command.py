"""The command: what docs/serving.md says to type, proxies, and an end that loses no answer."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx2
import numpy as np
import pytest

import fakedet
from tests.serving.served import Served

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("FAKEDET_TOKEN", "a long secret")
    running = Served(tmp_path / "temporary", "proxy=[127.0.0.0/8]", "per_minute=3", "root_path=/fakedet")
    yield running
    running.end()


def test_the_commands_of_the_docs_work_as_printed_and_the_end_loses_no_answer(served: Served, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.GaussianBlur(image, (9, 9), 0))
    (tmp_path / "text.jpg").write_text("no picture")
    commands = re.findall(r"^curl (?:.*\\\n)*.*", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 2
    answers = []
    for command in commands:
        command = command.replace("http://127.0.0.1:7860/", served.address)
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True,
                              env={**os.environ, "FAKEDET_TOKEN": "a long secret"})  # fmt: skip
        answers.append(json.loads(done.stdout))
    assert answers[0]["ready"] is True
    found, other = answers[1]["files"]
    assert [found["name"], other["name"]] == ["photo.jpg", "text.jpg"]
    assert found["score"] == fakedet.load("demo").predict(tmp_path / "photo.jpg").score
    assert other["verdict"] is None

    # Visitors are told apart by what the proxy says of them.
    with httpx2.Client(base_url=served.address, headers={"Authorization": "Bearer a long secret"}) as client:
        codes = [client.post("v1/predict", files={"files": ("a.jpg", b"x")}, headers={"X-Forwarded-For": address})
                 .status_code for address in ["192.0.2.1"] * 4 + ["192.0.2.2"]]  # fmt: skip
        assert codes == [200, 200, 200, 429, 200]
        assert client.get("openapi.json").json()["servers"] == [{"url": "/fakedet"}]
        late: list[httpx2.Response] = []
        content = (tmp_path / "photo.jpg").read_bytes()
        send = threading.Thread(target=lambda: late.append(httpx2.post(
            f"{served.address}v1/predict?card=true", files={"files": ("a.jpg", content)}, timeout=100,
            headers={"Authorization": "Bearer a long secret", "X-Forwarded-For": "192.0.2.3"})))  # fmt: skip
        send.start()
        send.join(0.4)
        assert served.end() == 0
        send.join()
    assert late[0].status_code == 200
    assert late[0].json()["files"][0]["width"] == 4000
    assert "Traceback" not in served.said
    assert "no password" not in served.said


def test_nobody_is_believed_without_proxy_and_open_doors_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own
    served = Served(tmp_path / "temporary", "host=0.0.0.0", "per_minute=1")
    address = served.address.replace("0.0.0.0", "127.0.0.1")
    with httpx2.Client(base_url=address) as client:
        codes = [client.post("v1/predict", files={"files": ("a.jpg", b"x")}, headers={"X-Forwarded-For": name})
                 .status_code for name in ("192.0.2.1", "192.0.2.2")]  # fmt: skip
        assert codes == [200, 429]
    assert "other machines can reach the page; it has no password" in served.said
    assert served.end() == 0
