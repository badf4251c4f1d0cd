"""The catalog in PostgreSQL: one method, one conversation; the only room that speaks SQL.

Raises errors.CatalogDown where the database can't be reached; every statement may be repeated. Each concern is a
chapter: a module with its statements and the methods that send them. This one puts them together.
"""

from __future__ import annotations

from .certificates import Certificates, Entry, Heard, LogState
from .claims import Claims
from .clock_set_back import LONGEST_PAUSE
from .copying import Copying
from .descriptions import Descriptions
from .discovery import Discovery, Recorded
from .documents import Documents
from .drills import Drill, Drills
from .from_rows import Document, copy_document, with_results, without_salt
from .history import History
from .identity import Identity
from .ledger import Ledger, Ledgers
from .locks import Locks
from .lookups import Lookups
from .migrations import migrations, newest, other_version
from .query import Limits, Query
from .rebuilding import Rebuilding, RebuildProgress
from .results import Results
from .schema import Need, Schema
from .searching import Behind
from .shares import Shares
from .to_rows import Retold
from .verification import Reading, Verification
from .watching import LATELY, Numbers, Watching

#: What other rooms take from here.
__all__ = [
    "LATELY",
    "LONGEST_PAUSE",
    "Behind",
    "Catalog",
    "Document",
    "Drill",
    "Entry",
    "Heard",
    "Ledger",
    "Limits",
    "LogState",
    "Need",
    "Numbers",
    "Query",
    "Reading",
    "RebuildProgress",
    "Recorded",
    "Retold",
    "copy_document",
    "migrations",
    "newest",
    "other_version",
    "with_results",
    "without_salt",
]


class Catalog(
    Certificates,
    Drills,
    Locks,
    Shares,
    Schema,
    Identity,
    Ledgers,
    Watching,
    Discovery,
    Lookups,
    Claims,
    Results,
    Copying,
    Descriptions,
    Documents,
    History,
    Verification,
    Rebuilding,
):
    """Open it with :func:`Catalog.open`; close it at the end."""
