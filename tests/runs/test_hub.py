"""Detectors on the Hugging Face hub, by its own library against a small server that stands for it."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import fakedet
from fakedet.hub import repository_of

COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """Keep one repository's files in memory, as the hub's interface shows them."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        """Make a repository, say that files come within the commit, and take a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(self.path)
        if self.path == "/api/repos/create":
            return self._json({"url": f"http://{self.headers['Host']}/lab/{json.loads(body)['name']}"})
        if self.path.endswith("/preupload/main"):
            named = [one["path"] for one in json.loads(body)["files"]]
            return self._json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in named]})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._json({"commitUrl": f"http://{self.headers['Host']}/lab/traces/commit/{COMMIT}",
                           "commitOid": COMMIT, "success": True})  # fmt: skip

    def do_HEAD(self) -> None:
        """Describe a file."""
        self.do_GET()

    def do_GET(self) -> None:
        """Serve a file of the repository."""
        self.asked.append(self.path)
        if self.path.startswith("/api/"):
            self._json({"files": []})
            return
        data = self.files.get(self.path.rpartition("/")[2])
        self.send_response(200 if data is not None else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", '"abc"')
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if self.command == "GET" and data:
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("Own", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def run(code: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    # The hub's client reads its address when it is imported.
    given = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0",
             "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given, timeout=300)


@pytest.mark.slow
def test_a_detector_goes_to_the_hub_and_comes_back_the_same(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, handler = hub
    out = tmp_path / "x.safetensors"
    done = run("from fakedet.cli.app import launch; import sys; sys.exit(launch('export', "
               f"['checkpoint=demo', 'output={out}', 'check=2', 'push=hf://lab/traces', 'licence=mit']))",
               endpoint, tmp_path / "home")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert handler.files["detector.safetensors"] == out.read_bytes()
    card = handler.files["README.md"].decode()
    assert card.startswith("---\n")
    assert "license: mit" in card
    assert "library_name: fakedet" in card
    assert "# " in card
    loaded = run("import fakedet, torch\n"
                 "one = fakedet.load('hf://lab/traces', device='cpu'); other = fakedet.load('demo', device='cpu')\n"
                 "x = torch.rand(4, 3, 64, 64)\nassert torch.equal(one(x), other(x))\n"
                 "print(one.predict(x)['verdict'].tolist())", endpoint, tmp_path / "other")  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    missing = run("from fakedet.cli.app import launch; import sys; sys.exit(launch('predict', "
                  "['checkpoint=hf://lab/traces', 'source=x']))", "http://127.0.0.1:9", tmp_path / "third")  # fmt: skip
    assert missing.returncode == 2
    assert "is not in the hub's cache, and the hub does not answer" in missing.stderr
    handler.files.clear()
    gone = run("from fakedet.cli.app import launch; import sys; sys.exit(launch('predict', "
               "['checkpoint=hf://lab/traces', 'source=x']))", endpoint, tmp_path / "fourth")  # fmt: skip
    assert gone.returncode == 2
    assert "the hub has no detector.safetensors there" in gone.stderr


def test_names_on_the_hub_are_read_or_refused() -> None:
    assert repository_of("hf://lab/traces") == ("lab/traces", None)
    assert repository_of("hf://lab/traces@v1.0") == ("lab/traces", "v1.0")
    for wrong in ("hf://lab", "hf://a/b/c", "hf:///x", "hf://../etc/passwd"):
        with pytest.raises(fakedet.UserError, match="is named hf://OWNER/NAME"):
            repository_of(wrong)


def test_means_are_given_in_the_hubs_own_form() -> None:
    from huggingface_hub import ModelCard

    from fakedet.hub import _card_data

    value = {"value": 0.91234, "low": 0.9, "high": 0.92}
    content = _card_data("lab/traces", {"map_unseen": value, "mauc_seen": {"value": None}}, "cc-by-nc-sa-4.0")
    (result,) = ModelCard(f"---\n{content}\n---\n# x").data.eval_results
    assert (result.metric_type, result.metric_value) == ("average_precision", 0.9123)
    assert "[95 % interval 0.900, 0.920]" in result.metric_name
    assert "generators not in training" in result.dataset_name
