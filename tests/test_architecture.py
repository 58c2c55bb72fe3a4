"""The arrows of the house: who may import whom, and who alone calls Hydra's instantiate."""

import ast
from pathlib import Path

import pytest

import fakedet

ROOT = Path(fakedet.__file__).parent
# From the ground up. A module imports what stands on a lower level, and its own package; never sideways or up.
LEVELS = (
    {"errors", "benchmarks", "provenance"},
    {"utils", "losses", "metrics", "shipped"},
    {"models", "pages", "hub"},
    {"methods", "data"},
    {"config", "tiles"},
    {"checkpoint"},
    {"build", "published"},
    {"audit"},
    {"evaluation", "detector"},
    {"training", "export"},
    {"api"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    return ".".join(("fakedet", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module(path) for path in FILES}


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Modules of fakedet that a file imports, anywhere or only when it is itself imported."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= MODULES.intersection(names)
    return found - {module(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path: Path) -> None:
    here = part(path)
    parts = {name.split(".")[1] for name in imports(path)} - {here}
    wrong = {name for name in parts if LEVEL[name] >= LEVEL[here]}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_every_part_has_its_level() -> None:
    assert {part(path) for path in FILES} == set(LEVEL)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module(path): imports(path, everywhere=False) for path in FILES}
    depth: dict[str, int] = {}

    def descend(name: str, above: tuple[str, ...]) -> int:
        assert name not in above, " -> ".join([*above, name])
        if name not in depth:
            depth[name] = max((1 + descend(one, (*above, name)) for one in graph[name]), default=0)
        return depth[name]

    assert max(descend(name, ()) for name in graph) <= 10, "imports one behind the other, down to errors.py"


def test_one_module_calls_instantiate() -> None:
    callers = {
        module(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "hydra.utils"
    }
    assert callers == {"fakedet.config"}


def test_the_package_imports_no_experiment() -> None:
    roots = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else str(node.module).split(".")[0]
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not roots & {"experiments", "benchmarks", "tests", "examples"}
