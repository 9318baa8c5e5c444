"""The house's rules, read from the imports themselves: which way they run, and that each name stands for one thing.

Imports count wherever they stand, in functions and under `TYPE_CHECKING` too: a type from above is a circle as well.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 400
HEAVY = frozenset({"torch", "transformers", "nnsight", "accelerate"})

BASE = frozenset({"errors", "settings", "cancellation", "redaction", "formatting", "version", "interruption"})
SHARED = BASE | {"request", "table", "render", "display", "contract"}
LIBRARY = BASE | {"request", "model", "engine", "experiments"}
MAY_IMPORT: dict[str, frozenset[str]] = {
    **dict.fromkeys(BASE, BASE),
    "request": BASE,
    "table": BASE,
    "render": BASE | {"request"},
    "display": BASE,
    "contract": SHARED - {"render"},
    "toolset": SHARED,
    "runs": SHARED,
    "pool": SHARED | {"toolset", "runs"},
    "viewer": SHARED | {"toolset", "runs", "pool"},
    "server": SHARED | {"toolset", "runs", "pool", "viewer"},
    "model": BASE | {"request"},
    "engine": LIBRARY - {"experiments"},
    "experiments": LIBRARY,
    "verification": LIBRARY,
    "nnterp": LIBRARY | {"display"},
    "worker": LIBRARY | SHARED | {"toolset", "runs", "pool"},
    "toolset.run": LIBRARY | SHARED | {"toolset", "runs", "pool", "worker"},
    "worker.main": LIBRARY | SHARED | {"toolset", "runs", "pool", "verification", "worker"},
    "tool_methods": SHARED | {"toolset"},
    "laboratory": LIBRARY | SHARED | {"toolset", "tool_methods", "runs", "pool", "worker", "worker.main"},
    "": LIBRARY | {"nnterp", "verification", "laboratory"},
}
"""What the modules of each part import besides one another. `toolset` is a tool's spec and its torch-free files;
`toolset.run` is the file that does the work, which server and worker import by the tool's name; the command line
imports anything. A worker has two parts: what tools work with, and above the tools the loop that calls them."""

WORKER_LOOP = ("main", "load_model", "edit_model")
"""The files of the worker that stand above the tools."""

TORCH_FREE = ("request", "table", "render", "display", "contract", "toolset", "runs", "pool", "viewer", "server")
TORCH_FREE_FILES = ("params", "result", "answer", "sets", "figure")
"""The files of a tool that are no part of its work; `sets` are sentences of an answer."""
MANY = frozenset({"run", "digest", "figure", "SPEC", "logger"})
"""Names that stand in several modules, each for the part that its module plays."""

KNOWN: dict[str, frozenset[str]] = {
    "upwards": frozenset(),
    "circles": frozenset(),
    "between_tools": frozenset(),
    "heavy": frozenset(),
    "twice": frozenset(
        {
            "Cell",
            "Prompt",
            "Report",
            "Row",
            "Run",
            "Site",
            "Span",
            "T",
            "Target",
        }
    ),
    "long": frozenset(),
}
"""Breaches that are known and still to be mended, by rule: names for two things and long files by their names."""


@dataclass(frozen=True)
class House:
    """The modules of a package below a folder, and what they import of one another."""

    folder: Path
    package: str = "nnterp_mcp"

    @cached_property
    def files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted((self.folder / self.package).rglob("*.py")):
            parts = path.relative_to(self.folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """For each module, the modules of the package that it imports anywhere."""
        return {
            name: {found for asked in imported(tree) if (found := self._module(asked))} - {name}
            for name, tree in self.trees.items()
        }

    def _module(self, name: str) -> str | None:
        """The module that a dotted name is, or is in."""
        while name and name not in self.files:
            name = name.rpartition(".")[0]
        return name or None

    def part(self, module: str) -> str:
        """The part of the house that a module belongs to; empty for the package itself."""
        _, *names = module.split(".")
        if len(names) == 3 and names[0] == "toolset" and names[2] not in TORCH_FREE_FILES:
            return "toolset.run"
        if len(names) == 2 and names[0] == "worker" and names[1] in WORKER_LOOP:
            return "worker.main"
        return names[0] if names else ""

    def tool(self, module: str) -> str | None:
        """The tool whose folder a module is in."""
        _, *names = module.split(".")
        return names[1] if len(names) > 1 and names[0] == "toolset" else None


def imported(node: ast.AST, types: bool = True) -> Iterator[str]:
    """The dotted names that code imports, with or without those that only types need."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif types or not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from imported(child, types)


def upwards(house: House) -> Iterator[str]:
    """Imports of a part that is not below."""
    for module, targets in house.imports.items():
        part = house.part(module)
        for target in targets:
            other = house.part(target)
            if part in MAY_IMPORT and other not in (part, "") and other not in MAY_IMPORT[part]:
                yield f"{module} imports {target}"


def circles(house: House) -> Iterator[str]:
    """Modules that import one another, directly or through others."""
    for group in knots(house.imports):
        yield ", ".join(sorted(group))


def between_tools(house: House) -> Iterator[str]:
    """Imports of one tool by another."""
    for module, targets in house.imports.items():
        for target in targets:
            if (tool := house.tool(module)) and (other := house.tool(target)) and tool != other:
                yield f"{module} imports {target}"


def heavy(house: House) -> Iterator[str]:
    """Heavy libraries in the parts that a server imports."""
    for module, tree in house.trees.items():
        if house.part(module) in TORCH_FREE:
            for name in {name.partition(".")[0] for name in imported(tree, types=False)} & HEAVY:
                yield f"{module} imports {name}"


def twice(house: House) -> Iterator[str]:
    """Public names that several modules define."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, tree in house.trees.items():
        for name in {name for node in tree.body for name in defined(node)}:
            if not name.startswith("_") and name not in MANY:
                found[name].append(module.partition(".")[2])
    return (f"{name}: {', '.join(sorted(places))}" for name, places in found.items() if len(places) > 1)


def long(house: House) -> Iterator[str]:
    """Files of more lines than one idea takes."""
    for module, path in house.files.items():
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST:
            yield f"{module} has {count} lines"


RULES: dict[str, Callable[[House], Iterator[str]]] = {
    rule.__name__: rule for rule in (upwards, circles, between_tools, heavy, twice, long)
}


def defined(node: ast.stmt) -> Iterator[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def knots(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """The groups of nodes of which each can be reached from each (Tarjan)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            place = stack.index(node)
            found.append(set(stack[place:]))
            del stack[place:]

    for node in graph:
        if node not in number:
            visit(node)
    return [group for group in found if len(group) > 1]


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule_but_for_what_is_known(house: House, rule: str) -> None:
    assert len(house.files) > 200
    found = {re.split(":| has ", breach)[0]: breach for breach in RULES[rule](house)}

    assert not [breach for name, breach in found.items() if name not in KNOWN[rule]]
    assert set(found) == KNOWN[rule], "a breach that is mended is known no more"


def test_the_rules_themselves_have_no_circle() -> None:
    assert not knots(
        {part: below - {part} for part, below in MAY_IMPORT.items() if part not in BASE} | dict.fromkeys(BASE, ())
    )


SOUND = {
    "errors.py": "class Refused(Exception): ...",
    "request/__init__.py": "",
    "request/fields.py": "from house.errors import Refused\nLayers = int",
    "model/loading.py": "import torch\nfrom house.request.fields import Layers",
    "engine/forward.py": "import torch\nfrom house.model.loading import torch",
    "toolset/lens/__init__.py": "from house.toolset.lens.params import LensParams\nSPEC = LensParams",
    "toolset/lens/params.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nLensParams = int",
    "toolset/lens/run.py": "from house.engine.forward import torch\ndef run(): ...",
    "toolset/steer/__init__.py": "SPEC = 1",
    "toolset/steer/run.py": "def run(): ...",
    "server/app.py": "from house.toolset.lens import SPEC",
}
BREACHES: dict[str, tuple[str, dict[str, str], str]] = {
    "an import from above": (
        "upwards",
        {"model/hooks.py": "from house.engine.forward import torch"},
        "house.model.hooks imports house.engine.forward",
    ),
    "a tool's work in the server": (
        "upwards",
        {"server/late.py": "def late():\n    from house.toolset.lens.run import run"},
        "house.server.late imports house.toolset.lens.run",
    ),
    "the worker's loop in a tool": (
        "upwards",
        {"worker/main.py": "", "toolset/lens/run.py": "from house.worker.main import loop"},
        "house.toolset.lens.run imports house.worker.main",
    ),
    "a tool's work in the workbench": (
        "upwards",
        {"worker/workbench.py": "from house.toolset.lens.run import run as lens"},
        "house.worker.workbench imports house.toolset.lens.run",
    ),
    "the engine in a tool's answer": (
        "upwards",
        {"toolset/lens/answer.py": "from house.engine.forward import torch"},
        "house.toolset.lens.answer imports house.engine.forward",
    ),
    "a circle that only types make": (
        "circles",
        {
            "model/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.model.c import C",
            "model/b.py": "from house.model import a",
            "model/c.py": "from house.model.b import a\nclass C: ...",
        },
        "house.model.a, house.model.b, house.model.c",
    ),
    "a tool that imports a tool": (
        "between_tools",
        {"toolset/steer/params.py": "from house.toolset.lens.params import LensParams"},
        "house.toolset.steer.params imports house.toolset.lens.params",
    ),
    "torch in a tool's result": (
        "heavy",
        {"toolset/lens/result.py": "from torch.nn import Module"},
        "house.toolset.lens.result imports torch",
    ),
    "torch in a function of the server": (
        "heavy",
        {"server/late.py": "def late():\n    import torch"},
        "house.server.late imports torch",
    ),
    "a name for two things": (
        "twice",
        {"engine/layers.py": "class Layers: ..."},
        "Layers: engine.layers, request.fields",
    ),
    "a long file": (
        "long",
        {"engine/long.py": "x = 1\n" * (LONGEST + 1)},
        f"house.engine.long has {LONGEST + 1} lines",
    ),
}


def build(folder: Path, files: Mapping[str, str]) -> House:
    for name, code in files.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return House(folder, "house")


def test_a_sound_house_breaks_no_rule(tmp_path: Path) -> None:
    sound = build(tmp_path, SOUND)

    assert {name: [*rule(sound)] for name, rule in RULES.items()} == {name: [] for name in RULES}


@pytest.mark.parametrize("breach", BREACHES)
def test_each_rule_would_notice_a_breach(tmp_path: Path, breach: str) -> None:
    broken, files, said = BREACHES[breach]
    house = build(tmp_path, SOUND | files)

    assert [*RULES[broken](house)] == [said]


def test_every_rule_has_a_breach() -> None:
    assert {rule for rule, _, _ in BREACHES.values()} == set(RULES) == set(KNOWN)
