"""The arrows of the house: who may import whom, and who alone calls Hydra's instantiate."""

import ast
from pathlib import Path

import pytest

import fakedet

ROOT = Path(fakedet.__file__).parent
# Each package or module of fakedet and those that it may import, besides its own.
ALLOWED = {
    "errors": set(),
    "losses": {"errors"},
    "metrics": {"errors"},
    "models": {"errors"},
    "methods": {"models", "losses", "metrics", "errors"},
    "data": {"models", "losses", "metrics", "errors"},
    "audit": {"data", "evaluation", "metrics", "errors"},
    "prediction": {"methods", "data", "metrics", "errors"},
    "serving": {"prediction", "errors"},
    "evaluation": {"models", "losses", "metrics", "errors"},
    "callbacks": {"models", "errors"},
    "published": {"errors"},
    "checkpoint": {"published", "errors"},
    "instantiation": {"errors"},
    "build": {"instantiation", "checkpoint", "methods", "data", "models", "callbacks", "errors"},
    "runs": {
        "build",
        "checkpoint",
        "published",
        "methods",
        "data",
        "evaluation",
        "audit",
        "prediction",
        "serving",
        "metrics",
        "callbacks",
        "errors",
    },
    "commands": {"runs", "evaluation", "errors"},
    "__main__": {"commands"},
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "fakedet" and len(pieces) > 1 and pieces[1] in ALLOWED:
                found.add(pieces[1])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path: Path) -> None:
    here = part(path)
    forbidden = imports(path) - ALLOWED[here] - {here}
    assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_every_part_has_its_rule() -> None:
    assert {part(path) for path in FILES} <= set(ALLOWED)


def test_one_module_calls_instantiate() -> None:
    callers = {
        str(path.relative_to(ROOT))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "hydra.utils"
    }
    assert callers == {"instantiation.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 280
