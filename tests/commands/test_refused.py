"""Files that are refused are named, with what they were for, and the others go on; whatever the machine lacks."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

SCRIPT = """
import json, sys
from fakedet.cli.app import launch
for verb, *arguments in json.load(sys.stdin):
    try:
        status = launch(verb, arguments)
    except SystemExit as stop:
        status = stop.code
    sys.stderr.write(f'={status}\\n')
"""
# Root reads everything, unless it has given that up.
AS_NOBODY = ["setpriv", "--inh-caps=-dac_override,-dac_read_search", "--bounding-set=-dac_override,-dac_read_search"]


def outcomes(commands: list[list[str]], folder: Path, **environment: str) -> list[tuple[str, int]]:
    """Run commands, none of which may read what its user may not; give for each what it said and its status."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and there is no setpriv")
    done = subprocess.run([*(AS_NOBODY if os.geteuid() == 0 else []), sys.executable, "-c", SCRIPT], check=False,
                          input=json.dumps(commands), cwd=folder, capture_output=True, text=True,
                          env={**os.environ, **environment})  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    told, found = "", []
    for line in done.stderr.splitlines():
        if line.startswith("="):
            found.append((told, int(line[1:])))
            told = ""
        else:
            told += f"{line}\n"
    return found


@pytest.mark.slow
def test_a_file_without_permission_is_named_with_what_it_was_for(tmp_path: Path) -> None:
    for name in ("secret", "desk/inner", "locked", "open"):
        (tmp_path / name).mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("secret/a.jpg", "good.png", "desk/inner/b.png", "desk/c.png", "closed.png"):
        cv2.imwrite(str(tmp_path / name), picture)
    (tmp_path / "secret" / "m.csv").write_text("path,label,generator\n")
    (tmp_path / "closed.csv").write_text("path,label,generator\n")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    for name in ("secret", "desk/inner", "closed.png", "closed.csv"):
        (tmp_path / name).chmod(0)
    (tmp_path / "locked").chmod(0o555)
    long = "x" * 300
    refused = {
        "data.manifest=secret/m.csv: no permission to read it": ["evaluate", "checkpoint=demo", "output_dir=1"],
        "data.manifest=closed.csv: no permission to read it": ["evaluate", "checkpoint=demo", "output_dir=2"],
        f"data.manifest={long}.csv: cannot be read: File name too long": ["evaluate", "checkpoint=demo"],
        "checkpoint=secret/x.ckpt: no permission to read it": ["predict", "source=good.png", "output=p.csv"],
        f"checkpoint={long}: File name too long": ["predict", "source=good.png", "output=p.csv"],
        "source=secret/x: no permission to read it": ["index", "output=m.parquet"],
        "predictions=secret/p.parquet: no permission to read it": ["report", "output_dir=3"],
        "run=secret/run: secret/run/config.yaml: no permission to read it": ["resume"],
        "output=secret/p.csv: no permission to write it": ["predict", "checkpoint=demo", "source=good.png"],
        "output=locked/p.csv cannot be written: Permission denied": ["predict", "checkpoint=demo", "source=good.png"],
        "locked/x: Permission denied; name an output_dir that can be written": [
            "match", "data.manifest=good.png", "output_dir=locked/x"],
    }  # fmt: skip
    wrong = [told.split(":")[0].split(" ")[0] for told in refused]
    commands = [[*command, *([word] if "=" in word else [])]
                for command, word in zip(refused.values(), wrong, strict=True)]  # fmt: skip
    sources = f"[secret/a.jpg,good.png,desk,closed.png,secret,{long}.png,phone.jpg]"
    try:
        found = outcomes([["predict", "checkpoint=demo", f"source={sources}", "output=o.csv"], *commands], tmp_path)
    finally:
        for name in ("secret", "desk/inner", "locked"):
            (tmp_path / name).chmod(0o755)
    assert found[0] == ("", 1), "some have an error"
    with open(tmp_path / "o.csv", newline="") as file:
        errors = {row["path"]: row["error"] for row in csv.DictReader(file)}
    assert errors == {
        "secret/a.jpg": "no permission to read it", "good.png": "", "desk/c.png": "",
        "desk/inner": "a folder without permission to read it", "closed.png": "no permission to read it",
        "secret": "a folder without permission to read it", f"{long}.png": "cannot be read: File name too long",
        "phone.jpg": "not an image of a known format, or its header is truncated",
    }  # fmt: skip
    for told, (said, status) in zip(refused, found[1:], strict=True):
        assert (said, status) == (f"fakedet: {told}\n", 2)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a home")
def test_neither_a_home_folder_nor_an_encoding_is_needed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    cv2.imwrite(str(tmp_path / "état.png"), np.zeros((64, 64, 3), np.uint8))
    commands = [["predict", "checkpoint=demo", "source=.", "output=o.csv"], ["train", "model=bce", "output_dir=run"]]
    lost = {"HOME": "/dev/null/home", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "FAKEDET_CACHE": ""}
    (said, status), (refused, mistake) = outcomes(commands, tmp_path, **lost)
    assert status == 0, said
    assert mistake == 2
    assert refused.startswith("fakedet: the demo data cannot be kept in /dev/null/home/.cache/fakedet: ")
    assert refused.endswith("set FAKEDET_CACHE or data.cache to a folder that can be written\n")
    assert "état.png" in (tmp_path / "o.csv").read_text(encoding="utf-8")
