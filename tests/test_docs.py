"""README and docs: what they tell the reader to type composes, links lead somewhere, lines are short."""

import functools
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fakedet.config import expand_encoders

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
ALL = [*PAGES, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("ex*/**/*.md"))]
VERBS = sorted(path.stem for path in ROOT.glob("conf/*.yaml"))
FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|[\s/])fakedet ([a-z]+)((?: .*)?)$")
SETTING = re.compile(r"[+~]?[a-z](?!\w*__)[\w./@]*=(?!\S*,[a-z]+=)\S+")
# For the reader to fill in, or a config of the reader's own.
PLACEHOLDER = re.compile(r"[A-Z_]+|.*(\.\.\.|<|…).*|my\w*|mine|value|margin|bce_wide")


def settings(page: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (verb, overrides) of each command on a page; the verb is "" where only overrides are named."""
    lines = [line for block in FENCED.findall(page) for line in block.replace("\\\n", " ").splitlines()[1:-1]]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCED.sub("", page))]
    for line in lines:
        calls = [line]
        if re.match(r"(\w+=\S+ )*make [a-z-]+ .*=", line):
            words = shlex.split(line[line.index("make ") :], comments=True)
            made = subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert made.returncode == 0, f"{line}: {made.stderr}"
            calls = made.stdout.splitlines()
        for call in filter(None, map(COMMAND.search, calls)):
            words = shlex.split(call[2], comments=True)
            yield call[1], tuple(word for word in words if "=" in word and not word.startswith("-"))
        if calls == [line] and all(map(SETTING.fullmatch, line.split())):
            yield "", tuple(line.split())


def parsed(words: tuple[str, ...]) -> Iterator[list[Override]]:
    """Leave out placeholders, and write "a|b" as several commands."""
    commands: list[list[str]] = [[]]
    for word in words:
        key, _, value = word.partition("=")
        if not PLACEHOLDER.fullmatch(value):
            commands = [[*command, f"{key}={one}"] for command in commands for one in value.split("|")]
    for command in commands:
        yield OverridesParser.create().parse_overrides(expand_encoders(command))


@functools.cache
def composed(verb: str, choices: tuple[str, ...]) -> DictConfig:
    # For commands with --config-dir experiments/wide.
    return compose(verb, overrides=[f"hydra.searchpath=[file://{ROOT}/experiments/wide]", *choices])


def mistake(verb: str, overrides: list[Override]) -> str:
    """Compose a verb with the groups that are chosen, then set the other keys: all must be known."""
    texts = {
        one.get_key_element(): next(one.sweep_string_iterator()) if one.is_sweep_override()
        else one.get_value_element_as_str() for one in overrides
    }  # fmt: skip
    groups = [key for key in texts if key.startswith("hydra") or (ROOT / "conf" / key).is_dir()]
    try:
        config = composed(verb, tuple(f"{key}={texts[key]}" for key in groups)).copy()
        for key in texts.keys() - set(groups):
            OmegaConf.update(config, key.lstrip("+~"), texts[key], force_add=key.startswith("+"))
    except (HydraException, OmegaConfBaseException) as error:
        return f"{verb} {texts}: {str(error).splitlines()[0]}"
    return ""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_says_to_type_composes(path: Path) -> None:
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        for verb, words in sorted(set(settings(path.read_text()))):
            for overrides in parsed(words):
                verbs = [verb if verb in VERBS else "train"] if verb else ["train", *VERBS]
                assert not all(mistake(one, overrides) for one in verbs), mistake(verbs[0], overrides)


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere_and_lines_are_short(path: Path) -> None:
    text = FENCED.sub("", path.read_text())
    links = {path.parent / link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link}
    if path in PAGES:
        files = re.findall(r"`((?:fakedet|conf|tests|docs|experiments|examples)/[\w./]+)`", text)
        links |= {ROOT / file for file in files if not PLACEHOLDER.fullmatch(Path(file).stem)}
    assert not {link for link in links if not link.exists()}
    assert not re.findall(r"^(?! *\||!\[|    ).{101,}", text, re.MULTILINE)
    assert path.name != "README.md" or path.parent != ROOT or len(path.read_text().splitlines()) <= 110
