"""Looking up calls at Noojee, so that one that fails each time holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import NotReady, Refused, SourceError, TryAgain
from . import noojee_legs as legs
from .kit.rows import alone
from .noojee_api import Api
from .noojee_legs import Rows

#: So many failures with no answer in between may be the server's.
_IN_A_ROW = 5
#: No call has it.
NOBODY = "0.0"


@dataclass(slots=True)
class Found:
    """What look-ups brought, in the order of the ids."""

    #: By id; no row: there is no such call.
    rows: dict[str, Rows] = field(default_factory=dict)
    #: What failed although the server works.
    failed: dict[str, SourceError] = field(default_factory=dict)
    #: The server does not work: whatever is in neither was not asked.
    broken: SourceError | None = None

    def failures(self) -> list[tuple[str, str]]:
        return [(i, str(error)) for i, error in self.failed.items()]


class LookUps:
    """Asks for calls by UniqueId or tag, so many at once."""

    def __init__(self, api: Api, at_once: int) -> None:
        self._api = api
        self._at_once = at_once
        #: Has one ever been answered? Until then a 404 may mean a wrong prefix.
        self.proven = False

    async def find(self, ids: Iterable[str], by: str) -> Found:
        """What is known of each id. After several failures, or none answered, it is tried whether the server works."""
        wanted = list(dict.fromkeys(ids))
        found = Found()
        in_a_row = 0
        turns, trying = asyncio.Semaphore(self._at_once), asyncio.Lock()

        async def try_server() -> None:
            nonlocal in_a_row
            async with trying:
                if in_a_row and found.broken is None:
                    found.broken = await self._broken()
                    in_a_row = 0

        async def one(i: str) -> None:
            nonlocal in_a_row
            async with turns:
                if found.broken is not None:
                    return
                try:
                    found.rows[i] = await (self._by_tag(i) if by == "tag" else self.by_unique_id(i))
                    in_a_row = 0
                except Refused as error:
                    found.broken = error
                except SourceError as error:
                    found.failed[i] = error
                    in_a_row += 0 if self._is_none(error) else 1
                    if in_a_row >= (_IN_A_ROW if alone(error) else 1):
                        await try_server()

        async with asyncio.TaskGroup() as group:
            for i in wanted:
                group.create_task(one(i))
        if not found.rows:
            await try_server()
        found.rows |= {i: [] for i, error in found.failed.items() if self._is_none(error)}
        found.rows = {i: found.rows[i] for i in wanted if i in found.rows}
        found.failed = {i: found.failed[i] for i in wanted if i in found.failed and i not in found.rows}
        return found

    async def _broken(self) -> SourceError | None:
        """Why not even a call that can't exist is answered; None where the server works."""
        try:
            await self.by_unique_id(NOBODY)
        except NotReady as error:
            if self.proven:
                return None
            return TryAgain(f"no look-up was answered yet; is prefix right? ({error})")
        except SourceError as error:
            return error
        return None

    async def by_unique_id(self, unique_id: str) -> Rows:
        return await self._rows("retrieveMetaDataByUniqueId", {"uniqueId": unique_id})

    async def _by_tag(self, tag: str) -> Rows:
        """The calls of which any leg bears the tag, with their other legs."""
        tagged, _ = legs.by_call(rows := await self._rows("retrieveMetaData", {"tag": tag}))
        whole = [row for unique_id in tagged for row in await self.by_unique_id(unique_id)]
        return legs.merged(whole, [row for row in rows if isinstance(row, dict)])

    async def _rows(self, method: str, asked: dict[str, str]) -> Rows:
        rows = await self._api.rows(method, asked)
        self.proven = True
        return rows

    def _is_none(self, error: SourceError) -> bool:
        return self.proven and isinstance(error, NotReady)
