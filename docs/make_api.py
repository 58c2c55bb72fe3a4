"""Write docs/api.md from the docstrings of what `import fakedet` offers: python docs/make_api.py."""

import ast
import re
import textwrap
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
WIDTH = 100
ORDER = ("load", "Detector", "Prediction", "train", "TrainedRun", "evaluate", "Evaluation", "average_precision",
         "AveragePrecision", "compose", "UserError")  # fmt: skip
SECTIONS = ("Args", "Returns", "Yields", "Raises", "Example")
HEAD = """\
# Python API

Made from the docstrings by `python docs/make_api.py`; do not edit.

```python
import fakedet

detector = fakedet.load()
detector.predict("photo.jpg").verdict  # "real", "fake" or "undecided"
detector.predict("folder").to_csv("answers.csv")
detector.embed(["a.jpg", "b.jpg"])  # float32 (2, D)
```

`examples/` holds scripts and a notebook. `import fakedet` alone is light: PyTorch is imported when
a name is first used. Label 0 = real, 1 = fake; score = P(fake). Whatever the caller can mend raises
`fakedet.UserError`.
"""


def main() -> str:
    """Return the whole page."""
    lines = (ROOT / "fakedet" / "__init__.py").read_text(encoding="utf-8")
    names = next(
        ast.literal_eval(node.value)
        for node in ast.parse(lines).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES"
    )
    missing = set(names) ^ set(ORDER)
    assert not missing, f"ORDER and fakedet.__init__ differ: {missing}"
    return "\n".join([HEAD, *(_described(name, names[name]) for name in ORDER)]).rstrip() + "\n"


def _described(name: str, module: str) -> str:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(item for item in tree.body if getattr(item, "name", None) == name)
    parts = [f"## fakedet.{name}\n"]
    if isinstance(node, ast.FunctionDef):
        return "\n".join([*parts, _signature(node), _text(node)])
    assert isinstance(node, ast.ClassDef)
    parts.append(_text(node))
    if attributes := _attributes(node):
        parts += ["Attributes:\n", *attributes, ""]
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and _is_public(item):
            decorators = [ast.unparse(one) for one in item.decorator_list]
            if any(one.endswith("property") for one in decorators):
                parts += [f"### {name}.{item.name}\n", _text(item)]
            elif "overload" not in decorators:
                parts += [f"### {name}.{item.name}\n", _signature(item), _text(item)]
    return "\n".join(parts)


def _is_public(node: ast.FunctionDef) -> bool:
    return node.name == "__call__" or not node.name.startswith("_")


def _signature(node: ast.FunctionDef) -> str:
    arguments = node.args
    if arguments.args and arguments.args[0].arg == "self":
        arguments.args.pop(0)
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    # Commas outside of brackets separate parameters; the first "=" begins a default.
    depth, parts = 0, [""]
    for sign in ast.unparse(arguments).replace("'", '"'):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    parts = [part.strip().replace("=", " = ", 1) for part in parts if part]
    line = f"{node.name}({', '.join(parts)}){returned}"
    if len(line) > WIDTH:
        line = "\n".join([f"{node.name}(", *(f"    {part}," for part in parts), f"){returned}"])
    return f"```python\n{line}\n```\n"


def _attributes(node: ast.ClassDef) -> list[str]:
    """List fields and attributes that a string follows, of the class and of its __init__."""
    bodies = [node.body, *(item.body for item in node.body if getattr(item, "name", "") == "__init__")]
    found = []
    for body in bodies:
        for item, after in pairwise(body):
            if not isinstance(item, ast.Assign | ast.AnnAssign) or not _is_string(after):
                continue
            target = item.target if isinstance(item, ast.AnnAssign) else item.targets[0]
            kind = f" ({_code(ast.unparse(item.annotation))})" if isinstance(item, ast.AnnAssign) else ""
            found.append(_bullet(ast.unparse(target).removeprefix("self."), kind, ast.literal_eval(after.value)))
    return found


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _text(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Turn a Google docstring into Markdown."""
    doc = ast.get_docstring(node) or ""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", doc, flags=re.MULTILINE)
    lines = [_wrapped(paragraph) + "\n" for paragraph in parts[0].strip().split("\n\n") if paragraph]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        body = textwrap.dedent(body).strip()
        if title == "Example":
            lines += [f"```python\n{body}\n```\n"]
        elif title in ("Returns", "Yields"):
            lines += [_wrapped(f"{title}: {body}") + "\n"]
        elif not (isinstance(node, ast.ClassDef) and title == "Args"):  # nobody makes these classes by hand
            lines += [f"{title}:\n"]
            for entry in re.split(r"\n(?=\S)", body):
                name, _, told = entry.partition(": ")
                lines += [_bullet(name, "", told)]
            lines += [""]
    return "\n".join(lines)


def _bullet(name: str, kind: str, told: str) -> str:
    return _wrapped(f"- {_code(name)}{kind}: {' '.join(told.split())}", "  ")


def _code(text: str) -> str:
    return f"`{text.replace(chr(92), '')}`"


def _wrapped(text: str, indent: str = "") -> str:
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split())).replace("``", "`")
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(main(), encoding="utf-8")
