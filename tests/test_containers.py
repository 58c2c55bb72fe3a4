"""Dockerfile and fakedet.def, as far as they can be tried without a container: what they copy, run and start."""

import ast
import fnmatch
import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

ROOT = Path(__file__).parent.parent


def docker() -> list[tuple[str, str]]:
    """Give the instructions of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


def apptainer() -> dict[str, list[str]]:
    """Give the lines of each section of the recipe."""
    parts = re.split(r"^%(\w+)\n", (ROOT / "fakedet.def").read_text(), flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True)) | {"header": parts[0]}
    return {name: [line.strip() for line in text.splitlines() if line.strip()] for name, text in texts.items()}


def of(kind: str) -> list[str]:
    return [text for name, text in docker() if name == kind]


def copied() -> dict[str, str]:
    """Give the place in the image of each file and folder that the Dockerfile copies, below its folder."""
    places = {}
    for line in of("COPY"):
        *sources, target = line.split()
        places |= {source: f"{target}{source.rsplit('/', 1)[-1]}" if target.endswith("/") else target
                   for source in sources}  # fmt: skip
    return {source: str(Path(place)) for source, place in places.items()}


def test_both_copy_the_same_files_and_they_are_the_projects() -> None:
    assert all(source == place for source, place in copied().items())
    into = {}
    for line in apptainer()["files"]:
        source, target = line.split()
        into[source] = target + source.rsplit("/", 1)[-1]
    assert into == {source: f"/fakedet/{place}" for source, place in copied().items()}
    assert of("WORKDIR") == ["/fakedet"]
    ignored = (ROOT / ".dockerignore").read_text().split()
    for source in copied():
        tracked = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True, check=True)
        assert tracked.stdout, source
        assert any(fnmatch.fnmatch(source, rule[1:]) for rule in ignored if rule.startswith("!")), source


def test_both_run_the_same_commands_which_a_shell_and_make_understand() -> None:
    commands = of("RUN")
    recipe = apptainer()
    assert [line for line in recipe["post"] if not line.startswith("cd ")] == commands[:-1]
    assert commands[-1].startswith("useradd ")
    for lines in (*commands, *("\n".join(recipe[name]) for name in ("post", "environment", "runscript", "test"))):
        done = subprocess.run(["bash", "-n"], input=lines, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    assert "BASE=" + of("ARG")[0].removeprefix("BASE=") in recipe["arguments"]
    assert of("ENV") == [recipe["environment"][0].removeprefix("export ")]


@pytest.mark.slow
def test_the_copied_files_suffice_to_set_up_and_to_start(tmp_path: Path) -> None:
    for source, place in copied().items():
        target = tmp_path / place
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
        copy(ROOT / source, target)
    made = subprocess.run(["make", "-n", "setup"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "-r requirements.lock" in made.stdout
    # The package that `make setup` would install, without the pinned packages below it.
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
                    "--no-build-isolation", "--target", str(tmp_path / "site"), str(tmp_path)],
                   check=True, capture_output=True)  # fmt: skip
    (start,) = map(json.loads, of("ENTRYPOINT"))
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import fakedet; print(fakedet.__file__)\n"
    program += f"sys.argv = {[*start, 'checkpoint=demo', '--cfg', 'job']}; from fakedet.cli import main; main()"
    shown = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(str(tmp_path / "site"))
    assert "host: 0.0.0.0\nport: 7860\n" in shown.stdout


def test_nobody_is_root_and_the_health_is_asked_for() -> None:
    names = [name for name, _ in docker()]
    assert of("USER") == ["fakedet"]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    options, _, command = of("HEALTHCHECK")[0].partition(" CMD ")
    assert "--start-period" in options
    (start,) = map(json.loads, of("ENTRYPOINT"))
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        config = compose(start[1], overrides=start[2:])
    assert [str(config.port)] == of("EXPOSE")
    status = [200]

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    *_, program = json.loads(command)
    assert f"127.0.0.1:{config.port}/health" in program
    program = program.replace(f":{config.port}/", f":{server.server_port}/")
    ast.parse(program)
    results = []
    for status[0] in (200, 503):
        results.append(subprocess.run([sys.executable, "-c", program], capture_output=True).returncode)
    server.shutdown()
    thread.join()
    server.server_close()
    results.append(subprocess.run([sys.executable, "-c", program], capture_output=True).returncode)
    assert results == [0, 1, 1]


@pytest.mark.parametrize("name", ["Dockerfile", "fakedet.def"])
def test_both_pin_their_base(name: str) -> None:
    assert re.search(r"BASE=python:3\.1[1-4]-slim-\w+\n", (ROOT / name).read_text())
