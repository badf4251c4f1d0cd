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
    """A server's line of the table: what passed, and by name what did not."""
    server = getattr(matrix, name).server
    protocol = "S3" if issubclass(getattr(matrix, name), matrix.S3) else "WebDAV"
    try:
        version = server.version()
    except (OSError, subprocess.SubprocessError) as error:
        return f"| {server.name} | {protocol} | could not be installed: {error} | |"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "--timeout=120",
            f"--junitxml={report}", f"tests/matrix/matrix.py::{name}",
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=False)
        if not report.exists():
            return f"| {version} | {protocol} | did not start | |"
        cases = list(parse(report).iter("testcase"))  # pytest's own
    failed, skipped = [], 0
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(re.sub(r"^test_", "", case.get("name", "")).replace("_", " ").replace("|", "\\|"))
        elif case.find("skipped") is not None:
            skipped += 1
    passed = len(cases) - len(set(failed)) - skipped
    return (
        f"| {version} | {protocol} | {passed} of {len(cases) - skipped} | {'; '.join(dict.fromkeys(failed)) or '–'} |"
    )


def main() -> None:
    only = os.environ.get("ONLY")
    rows = [row(name) for name in NAMES if only in {None, "", name.removeprefix("Test")}]
    table = "\n".join(["| server | protocol | tests passed | failed |", "|---|---|---|---|", *rows]) + "\n"
    print(table)
    if not only:
        page = PAGE.read_text()
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
