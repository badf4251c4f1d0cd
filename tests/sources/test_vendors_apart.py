"""A recorder's vendor stands in its own few files; everything else knows recorders by their seams alone."""

import re
from pathlib import Path

import pytest

from archiver.settings.config import kinds

ROOT = Path(__file__).resolve().parents[2]
KINDS = sorted(kinds("archiver.sources"))
#: Where each vendor's own files lie; tests, docs and the example config name vendors too.
OWN = [ROOT / "archiver" / folder for folder in ("sources", "simulators")]
SHARED = [
    file
    for folder in ("archiver", "sql", "systemd", ".ci")
    for file in sorted((ROOT / folder).rglob("*"))
    if file.is_file() and file.suffix != ".pyc"
] + [ROOT / "Makefile"]


def own(kind: str) -> list[Path]:
    return [file for folder in OWN for file in (folder / f"{kind}.py", *folder.glob(f"{kind}_*.py")) if file.exists()]


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_but_its_own_names_a_vendor(kind):
    name = re.compile(rb"(?i)" + kind.encode())
    strangers = [f for f in SHARED if f not in own(kind) and name.search(f.read_bytes())]
    assert not strangers, f"what is not {kind}'s own is told without its name"
    assert own(kind), "the test would see nothing"
    assert all(name.search(f.read_bytes()) for f in own(kind) if f.name == f"{kind}.py")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_vendor_has_at_most_250_lines(kind):
    files = [file for file in own(kind) if file.parent.name != "simulators"]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert not {name for name, lines in lengths.items() if lines > 250}, lengths


def test_every_file_beside_the_sources_belongs_to_one_kind():
    beside = {f for folder in OWN[:1] for f in folder.glob("*.py") if f.name != "__init__.py"}
    assert beside == {f for kind in KINDS for f in own(kind) if f.parent.name != "simulators"}
