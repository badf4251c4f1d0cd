"""`make stores`: runs matrix.py against one server after the other and writes what it saw into docs/stores.md.

`make stores ONLY=Nginx` runs one; the table is written when all were run.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree.ElementTree import parse

from tests.matrix import matrix

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "stores.md"
BEGIN, END = "<!-- made by `make stores` -->\n", "<!-- end -->\n"
NAMES = sorted(name for name in vars(matrix) if name.startswith("Test"))


def row(name: str) -> str:
    """A server's line of the table: what passed, by name what did not, and what its class tells of it."""
    server = getattr(matrix, name).server
    protocol = "S3" if issubclass(getattr(matrix, name), matrix.S3) else "WebDAV"
    try:
        version = server.version()
    except (OSError, subprocess.SubprocessError) as error:
        return line(server.name, protocol, "–", f"could not be installed: {error}", "–", "–")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "--tb=line", "--show-capture=no", "-p", "no:cacheprovider",
            "--timeout=300", f"--junitxml={report}", f"tests/matrix/matrix.py::{name}",
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=False)
        if not report.exists():
            return line(version, protocol, "–", "did not start", "–", "–")
        cases = list(parse(report).iter("testcase"))  # pytest's own
    failed, skipped = set(), 0
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(re.sub(r"^test_", "", case.get("name", "")).replace("_", " "))
        elif case.find("skipped") is not None:
            skipped += 1
    passed = len(cases) - len(failed) - skipped
    return line(
        version,
        protocol,
        f"{passed} of {len(cases) - skipped}",
        "; ".join(sorted(failed)) or "–",
        server.lacks,
        server.to_set,
    )


def line(*cells: str) -> str:
    """Of the table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> None:
    only = os.environ.get("ONLY")
    rows = [row(name) for name in NAMES if only in {None, "", name.removeprefix("Test")}]
    head = line("server", "protocol", "tests passed", "what failed", "what it lacks", "what to set")
    table = "\n".join([head, "|---|---|---|---|---|---|", *rows]) + "\n"
    print(table)
    if not only:
        page = PAGE.read_text()
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
