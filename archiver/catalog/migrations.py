"""The files of sql/: which version of the tables they make."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import CatalogMisfit


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, text) of each file of sql/, in order."""
    folder = resources.files("archiver") / "sql"
    files: Iterable[Any] = folder.iterdir() if folder.is_dir() else (Path(__file__).parents[2] / "sql").iterdir()
    return sorted((int(f.name[:4]), f.name, f.read_text("utf-8")) for f in files if f.name.endswith(".sql"))


@functools.cache
def newest() -> int:
    """The schema's version that this program knows."""
    return migrations()[-1][0]


@functools.cache
def tables() -> list[str]:
    """Names of all tables and sequences that the files of sql/ make and leave."""
    text = "\n".join(text for _, _, text in migrations())
    made = re.findall(r"(?m)^CREATE (?:UNLOGGED )?(?:TABLE|SEQUENCE) (?:IF NOT EXISTS )?(\w+)", text)
    return sorted({*made} - {*re.findall(r"(?m)^DROP (?:TABLE|SEQUENCE) (?:IF EXISTS )?(\w+)", text)})


async def version_of(connection: Any) -> int:
    """The schema's version; 0 where there is none."""
    if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
        return 0
    return int(await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_version"))


def other_version(version: int) -> CatalogMisfit:
    """What to raise where the schema is not the one that this program knows."""
    told = f"the database has schema {version}, and this version knows {newest()}"
    if version > newest():
        return CatalogMisfit(
            f"{told} at most",
            "run the newer version, or make the catalog again (`archiver rebuild`, into an empty database)",
        )
    return CatalogMisfit(told, "stop older daemons, then `archiver migrate` (`run` and `sync` do it themselves)")
