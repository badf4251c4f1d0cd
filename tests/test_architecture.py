"""docs/architecture.md shows the house as it stands: its picture against the imports, its names against the files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.commands import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PACKAGE = ROOT / "archiver"
#: Modules beside the rooms: the nouns, the failures and the seams are the floor that every room stands on.
FLOOR = {"model", "errors", "ports", "__init__"}


def room_of(module: str) -> str:
    """``archiver.sources.kit.rows`` lies in ``sources``; ``archiver.cli`` is a room of one module."""
    return module.split(".")[1] if "." in module else "__init__"


def imports() -> dict[str, set[str]]:
    """By room those that it imports, the floor left out."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        parts = ("archiver", *file.relative_to(PACKAGE).with_suffix("").parts)
        package = parts[:-1]
        mine = found.setdefault(room_of(".".join(parts)), set())
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name == "archiver":
                mine |= {alias.name for alias in node.names if not alias.name.startswith("_")}
            elif name.startswith("archiver."):
                mine.add(room_of(name))
    return {room: others - {room} - FLOOR for room, others in found.items() if room not in FLOOR}


def reduced(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Its arrows, without those that others lead to as well."""

    def reach(room: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in graph[room]))

    return {
        (room, other)
        for room, others in graph.items()
        for other in others
        if not any(other in reach(between) for between in others - {other})
    }


def test_the_picture_shows_which_room_imports_which():
    (picture,) = re.findall(r"(?ms)^```mermaid\n(.*?)^```$", PAGE)
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)$", picture, re.MULTILINE))
    real = reduced({room: others for room, others in imports().items() if room != "__main__"})
    assert drawn == real, f"draw: {sorted(real - drawn)}; take out: {sorted(drawn - real)}"


def test_every_room_has_its_sentence_and_no_other_is_named():
    told = set(re.findall(r"^\| `archiver/([\w]+)(?:/|\.py)`", PAGE, re.MULTILINE))
    assert told == (imports().keys() | FLOOR) - {"__init__", "__main__"}


def test_every_file_and_function_that_the_page_names_is_there():
    named = re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", PAGE)
    assert len(named) > 15
    for file, function in named:
        path = PACKAGE / Path(file.removeprefix("archiver/"))
        assert path.is_file(), file
        if function:
            name = function.rpartition(".")[2]
            assert re.search(rf"^\s*(async def|def|class) {name}\b", path.read_text("utf-8"), re.MULTILINE), function


def test_the_algorithm_names_only_functions_that_are_there():
    told = (PACKAGE / "sync" / "__init__.py").read_text("utf-8")
    named = re.findall(r"``(\w+)\.([\w.]+)``", told)
    assert len(named) > 10
    for module, function in named:
        text = (PACKAGE / "sync" / f"{module}.py").read_text("utf-8")
        assert re.search(rf"^\s*(async def|def|class) {function.rpartition('.')[2]}\b", text, re.MULTILINE), function


#: Modules that are still to be divided.
TOO_LONG = {"catalog/catalog.py", "proof/manifests.py", "simulators/genesys.py"}


def test_no_module_is_long_without_saying_why():
    for file in sorted(PACKAGE.rglob("*.py")):
        lines = file.read_text("utf-8").splitlines()
        if len(lines) > 500 and str(file.relative_to(PACKAGE)) not in TOO_LONG:
            assert any("500 lines" in line for line in lines[:15]), f"{file.relative_to(PACKAGE)}: {len(lines)} lines"
