"""A WebDAV collection (Apache mod_dav, nginx, Nextcloud, SFTPGo, SeaweedFS …).

Plain WebDAV keeps no hash and some servers finalise a cut PUT, so bytes go up under a temporary name in
the same folder, are read back and hashed, and only then get their name: MOVE with ``Overwrite: F``.

RFC 4918: https://www.rfc-editor.org/rfc/rfc4918 – MKCOL 9.3, PUT 9.7.1, MOVE 9.9, PROPFIND 9.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import secrets
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, ClassVar
from urllib.parse import quote

from pydantic import BeforeValidator, SecretStr, model_validator
from yarl import URL

from ..errors import ObjectFailed, StoreConflict, StoreDown, StoreError, StoreMissing, StoreRefused
from ..model import Body, Receipt
from ..ports import Sink
from ..settings.options import StoreOptions
from ..wire.exchange import Answer
from ..wire.login import Login, schemes
from ..wire.store import Digest, HttpOptions, Upload, Wire, failure, limited, origin
from .canary import canary_key, clear_canaries, of_the_store, prove, rehearse_names
from .folders import Entries, walk
from .multistatus import ASK, path_of, read_entries
from .names import TEMPORARIES, fault_of, temporary_name

#: Folders known to exist; forgotten all at once, since each recording has one of its own.
_KNOWN_LIMIT = 10_000
_WRITTEN = {200, 201, 204}
#: What a name alone may bring.
_REFUSED = {400, 403, 404, 405, 406, 409, 422, 451}
#: The same, and what nginx answers where a file lies in the place of a folder.
_OF_THE_NAME = {*_REFUSED, 500}
#: What layout.safe makes of ids: such names `check` proves with its canaries.
_PLAIN = re.compile(r"[A-Za-z0-9._~%/-]*")


class WebDavOptions(HttpOptions):
    #: The collection that holds everything; it exists already.
    url: Annotated[str, BeforeValidator(origin)]
    username: str | None = None
    password: SecretStr | None = None
    #: Hash what the server holds before it gets its name; without it only the size is compared.
    read_back: bool = True

    @model_validator(mode="after")
    def _login_is_whole(self) -> WebDavOptions:
        if (self.username is None) != (self.password is None):
            raise ValueError("needs username and password together, or neither")
        if self.username is not None and ":" in self.username:
            raise ValueError("takes no username with a colon (RFC 7617)")
        return self


class WebDavStore:
    """One collection. Raises only errors.StoreError."""

    Options: ClassVar[type[StoreOptions]] = WebDavOptions

    def __init__(self, name: str, options: StoreOptions) -> None:
        assert isinstance(options, WebDavOptions)
        self.name = name
        self.options = options
        self._wire = Wire(name, options, options.url)
        self._base = options.url.rstrip("/") + "/"
        self._path = URL(self._base, encoded=True).raw_path
        self._known: set[str] = set()
        #: The form of temporary names that this server takes; the first until one was refused.
        self._form = TEMPORARIES[0]
        self._login: Login | None = None
        self._introduced = asyncio.Lock()
        #: Was the server asked how it wants to be told who we are?
        self._knows = options.username is None
        if options.username is not None and options.password is not None:
            password, plain = options.password.get_secret_value(), options.url.startswith("http:")
            self._login = Login(options.username, password, open_to_all=plain)

    def location(self, key: str) -> dict[str, str]:
        return {"kind": "webdav", "url": self._url(key)}

    async def close(self) -> None:
        await self._wire.close()

    async def check(self) -> str:
        """Put, get, compare, list and delete canaries, one with the name of a medium, and old ones."""
        await self._rehearse(canary_key(self.options.prefix), overwriting=True)
        long = await rehearse_names(self.options.prefix, self._rehearse)
        await clear_canaries(self, self.options.prefix)
        notes = [f"{self.options.url}: put, get, list, compare and delete work"]
        notes.append("read back and hashed" if self.options.read_back else "only the size is read back")
        if self._form != TEMPORARIES[0]:
            notes.append(f"it takes no name with a leading dot: uploads begin as {self._form.format('…')}")
        if long:
            notes.append(long)
        notes += self._wire.way
        if not self.options.verify_tls:
            notes.append("TLS is NOT verified")
        return "; ".join(notes)

    async def _rehearse(self, key: str, *, overwriting: bool = False) -> None:
        body = Body.of(b"archiver canary " + secrets.token_bytes(32))
        with of_the_store():
            await self.put(key, body)
        try:
            length, sha256 = await self._digest(key)
            if length < 0:
                raise StoreRefused(
                    "a file that MOVE just gave its name is not there: a proxy that rewrites paths must rewrite the "
                    "Destination header as well"
                )
            if (length, sha256) != (body.length, body.sha256):
                raise StoreDown("the canary came back with other bytes")
            if overwriting and await self._move(await self._upload(key, body), key, body.length) is None:
                raise StoreRefused("the server overwrites in spite of Overwrite: F (RFC 4918, 10.6)")
            if [receipt.key async for receipt in self.list(key)] != [key]:
                raise StoreRefused("PROPFIND does not show a file that was just put")
        finally:
            with contextlib.suppress(StoreDown):
                await self.delete(key)

    async def alive(self) -> None:
        await prove(self, self.options.prefix)

    async def put(self, key: str, body: Body) -> Receipt:
        refused = await self._move(await self._upload(key, body), key, body.length)
        if refused is not None:
            # However it said so (412 by the book): the name may be taken, or the upload moved by the try before.
            there = await self._length(key)
            if there is None:
                raise await self._blamed(key, refused)
            if there != body.length or await self._digest(key) != (body.length, body.sha256):
                raise StoreConflict(f"{key} holds other bytes ({there} of them) and is not overwritten")
        return Receipt(key=key, size=body.length, sha256=body.sha256 if self.options.read_back else None)

    async def stat(self, key: str) -> Receipt | None:
        size = await self._length(key)
        return None if size is None else Receipt(key=key, size=size)

    async def get(self, key: str, into: Sink) -> None:
        async with self._ask("GET", key) as response:
            if response.status == 404:
                raise StoreMissing(f"no file {key}")
            await self._demand(response, {200}, key, f"can't get {key}")
            into.told(content_type=response.headers.get("Content-Type"))
            await self._wire.receive(response, into)

    def list(self, prefix: str, after: str = "") -> AsyncIterator[Receipt]:
        """PROPFIND, folder by folder."""
        return walk(self._entries, prefix, after)

    async def delete(self, key: str) -> None:
        async with self._ask("DELETE", key) as response:
            await self._demand(response, {200, 202, 204, 404}, key, f"can't delete {key}")

    async def _upload(self, key: str, body: Body) -> str:
        """The bytes under a temporary name beside the key, checked; returns that name."""
        if fault := fault_of(key):
            raise ObjectFailed(f"the key {key!r} {fault}")
        folder = key[: key.rfind("/") + 1]
        await self._make(folder)
        temporary = folder + temporary_name(self._form)
        try:
            status = await self._send(temporary, body)
            if status in {404, 409}:
                # Somebody removed the folder since we saw it.
                self._known.clear()
                await self._make(folder)
                status = await self._send(temporary, body)
            # Perhaps the name was refused, not the bytes.
            if status in _REFUSED and (other := await self._other_form(folder)):
                temporary = other
                status = await self._send(temporary, body)
            if status not in _WRITTEN:
                what = f"can't put {temporary} (the temporary name of {key})"
                raise await self._error(status, folder, what)
            if self.options.read_back:
                whole = await self._digest(temporary) == (body.length, body.sha256)
            else:
                whole = await self._length(temporary) == body.length
            if not whole:
                raise StoreDown(f"{key} was damaged on the way: the server holds other bytes than were announced")
        except BaseException:
            await self._discard(temporary)
            raise
        return temporary

    async def _other_form(self, folder: str) -> str | None:
        """A temporary name of another form, where files without bytes show that it is taken and ours is not."""
        if self._form != TEMPORARIES[0]:
            return None
        for form in TEMPORARIES:
            temporary = folder + temporary_name(form)
            if await self._send(temporary, Body.of(b"")) in _WRITTEN:
                if form != self._form:
                    self._form = form
                    return temporary
                # It was not the name.
                await self._discard(temporary)
                break
        return None

    async def _send(self, temporary: str, body: Body) -> int:
        headers = {"Content-Type": "application/octet-stream"}
        async with self._ask("PUT", temporary, headers, Upload(body)) as response:
            return response.status

    async def _move(self, temporary: str, key: str, length: int) -> StoreError | None:
        """Give the upload its name; what the server had against that is returned where it may be that it is taken."""
        plain = _PLAIN.fullmatch(key) is not None
        try:
            status = await self._patiently(lambda: self._move_once(temporary, key))
            # 204 is said of what was there before: by nginx of all, by lighttpd of a folder, into which it moves.
            if status == 204 or (status == 201 and not plain):
                await self._demand_named(temporary, key, length)
        except BaseException:
            await self._discard(temporary)
            raise
        if status in {201, 204}:
            return None
        await self._discard(temporary)
        if status in {404, 409}:
            return StoreDown(f"{key} can't be given its name; the upload or its folder is gone")
        error = _wrong(status, f"can't give {key} its name")
        if status == 412 and not plain:
            # Where such a name is cut, the second upload meets the first.
            return ObjectFailed(f"{error}, as if it were taken, and nothing lies there: it changes such names")
        if status < 400 or status in {408, 423, 429} or status >= 500:
            raise await self._blamed(key, error) if status in _OF_THE_NAME else error
        return error

    async def _demand_named(self, temporary: str, key: str, length: int) -> None:
        """Raises ObjectFailed where MOVE is said to have given this name, and no such file is shown under it."""
        async with self._propfind(key, 0) as response:
            await self._demand(response, {207, 404}, key, f"can't look at {key}")
            found = await read_entries(response) if response.status == 207 else []
        # Only the root may be another's, behind a proxy; macOS decomposes letters with accents.
        wanted = unicodedata.normalize("NFC", f"/{key}")
        named = [
            size
            for href, size, is_folder in found
            if not is_folder and unicodedata.normalize("NFC", path_of(href)).endswith(wanted)
        ]
        if named == [length]:
            return
        if await self._is_folder(key):
            await self._discard(f"{key}/{temporary.rpartition('/')[2]}")
            raise ObjectFailed(f"a folder lies under the name {key}")
        raise ObjectFailed(
            f"the server says that it gave {key} its name, and shows no such file there: it changes such names "
            "(the bytes may lie under another), or a proxy rewrites paths but not the Destination header"
        )

    async def _move_once(self, temporary: str, key: str) -> int:
        headers = {"Destination": self._url(key), "Overwrite": "F"}
        async with self._ask("MOVE", temporary, headers) as response:
            return response.status

    async def _patiently(self, act: Callable[[], Awaitable[int]]) -> int:
        """423 Locked is how some servers say that another does the same just now."""
        for pause in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
            status = await act()
            if status != 423:
                return status
            # Not all at the same moment again.
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311
        return await act()

    async def _discard(self, temporary: str) -> None:
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(10):
                await self.delete(temporary)

    async def _make(self, folder: str) -> None:
        """MKCOL the folder and those above it that are missing (409)."""
        if not folder or folder in self._known:
            return
        status = await self._make_one(folder)
        if status in {404, 409}:
            parent = folder[: folder.rstrip("/").rfind("/") + 1]
            if not parent:
                raise StoreRefused(f"there is no collection {self.options.url}; make it, or correct url")
            self._known.discard(parent)
            await self._make(parent)
            status = await self._make_one(folder)
        # 405: it exists. Where two make it at once, Apache answers 403 to one of them.
        if status not in {200, 201, 405} and not await self._is_folder(folder):
            raise await self._error(status, folder, f"can't make the folder {folder}")
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known.add(folder)

    async def _make_one(self, folder: str) -> int:
        async def once() -> int:
            async with self._ask("MKCOL", folder) as response:
                return response.status

        return await self._patiently(once)

    async def _demand(self, response: Answer, wanted: set[int], key: str, what: str) -> None:
        if response.status not in wanted:
            raise await self._error(response.status, key, what)

    async def _error(self, status: int, key: str, what: str) -> StoreError:
        error = _wrong(status, what)
        return await self._blamed(key, error) if status in _OF_THE_NAME else error

    async def _blamed(self, key: str, error: StoreError) -> StoreError:
        """ObjectFailed where a file lies in the place of a folder of the key, or a folder in its own; else the error.

        Each server has a status of its own for these, and none tells them from what concerns the whole store.
        """
        at = key.rstrip("/")
        with contextlib.suppress(StoreError):
            while at:
                async with self._propfind(at, 0) as response:
                    found = await read_entries(response) if response.status == 207 else []
                if len(found) == 1:
                    is_folder = found[0][2]
                    if is_folder and at == key:
                        return ObjectFailed(f"a folder lies under the name {key}")
                    if not is_folder and at != key:
                        return ObjectFailed(f"a file lies where the folder {at} should be")
                    break
                at = at.rpartition("/")[0]
        return error

    async def _is_folder(self, folder: str) -> bool:
        async with self._propfind(folder, 0) as response:
            return response.status == 207 and any(is_folder for _, _, is_folder in await read_entries(response))

    async def _digest(self, key: str) -> tuple[int, str]:
        digest = Digest()
        try:
            await self.get(key, digest)
        except StoreMissing:
            return -1, ""
        return digest.length, digest.sha256

    async def _length(self, key: str) -> int | None:
        async with self._propfind(key, 0) as response:
            if response.status == 404:
                return None
            await self._demand(response, {207}, key, f"can't look at {key}")
            found = await read_entries(response)
        sizes = [size for _, size, is_folder in found if not is_folder]
        if len(found) != 1 or (sizes and sizes[0] is None):
            raise StoreDown(f"the server does not tell the size of {key}")
        return sizes[0] if sizes else None

    async def _entries(self, folder: str) -> Entries:
        async with self._propfind(folder, 1) as response:
            if response.status == 404:
                return ()
            await self._demand(response, {207}, folder, f"can't list {folder or 'the collection'}")
            found = await read_entries(response)
        paths = [(path_of(href), size, is_folder) for href, size, is_folder in found]
        here = await self._path_of(folder, {path.rstrip("/") + "/" for path, _, _ in paths})
        entries: dict[str, int | None] = {}
        for path, size, is_folder in paths:
            name = path.removeprefix(here).removesuffix("/")
            # Whatever lies elsewhere was not asked for.
            if path.startswith(here) and name and "/" not in name and name not in {".", ".."}:
                if size is None and not is_folder:
                    raise StoreDown(f"the server does not tell the size of {folder}{name}")
                entries[name] = None if is_folder else size
        return entries.items()

    async def _path_of(self, folder: str, listed: set[str]) -> str:
        """The path that a folder's listing gives the folder itself, which must be in it (RFC 4918, 9.1).

        A proxy may have moved the root: then the folder alone is asked for. Raises StoreDown.
        """
        asked = path_of(self._url(folder))
        if asked in listed:
            return asked
        async with self._propfind(folder, 0) as response:
            found = await read_entries(response) if response.status == 207 else []
        own = {path_of(href).rstrip("/") + "/" for href, _, is_folder in found if is_folder}
        if len(own) != 1 or not own <= listed:
            raise StoreDown(
                f"the listing of {folder or 'the collection'} does not hold the folder itself: is url right, "
                "and does a proxy rewrite its paths?"
            )
        return own.pop()

    def _url(self, key: str) -> str:
        return self._base + quote(key, safe="/~")

    @asynccontextmanager
    async def _propfind(self, key: str, depth: int) -> AsyncIterator[Answer]:
        # RFC 4918, 8.2: some servers and firewalls refuse a body without its type.
        headers = {"Depth": str(depth), "Content-Type": "application/xml; charset=utf-8"}
        async with self._ask("PROPFIND", key, headers, ASK) as response:
            yield response

    @asynccontextmanager
    async def _ask(
        self, method: str, key: str, headers: Mapping[str, str] | None = None, data: Upload | bytes | None = None
    ) -> AsyncIterator[Answer]:
        if self._login is not None and not self._knows:
            await self._introduce()
        target = self._path + quote(key, safe="/~")
        async with AsyncExitStack() as stack:
            for attempt in range(3):
                login = self._login.headers(method, target) if self._login is not None else {}
                request = self._wire.request(method, target, {**login, **(headers or {})}, data)
                response = await stack.enter_async_context(request)
                if response.status != 401:
                    break
                told = response.headers.getall("WWW-Authenticate", [])
                # A challenge may be over at any time; but who is refused for what it is, is refused again.
                if self._login is None or not self._login.challenged(told) or (attempt and not self._login.stale):
                    raise StoreRefused(self._unwelcome(told))
                await _emptied(response)
                await stack.aclose()
            else:
                raise StoreDown("the server wants another log-in for each request (stale=true)")
            yield response
            if response.status >= 400:
                await _emptied(response)

    async def _introduce(self) -> None:
        """Ask without a log-in, so that no password goes out where Digest is offered. Raises StoreError."""
        async with self._introduced:
            if self._knows or self._login is None:
                return
            headers = {"Depth": "0", "Content-Type": "application/xml; charset=utf-8"}
            async with self._wire.request("PROPFIND", self._path, headers, ASK) as response:
                if response.status == 401:
                    self._login.challenged(response.headers.getall("WWW-Authenticate", []))
                await _emptied(response)
            self._knows = True

    def _unwelcome(self, told: Sequence[str]) -> str:
        offered = {scheme.capitalize() for scheme, _ in schemes(told)}
        if offered and "Basic" not in offered and not (self._login is not None and self._login.by_digest):
            return (
                f"the server answered 401: this server offers only {' and '.join(sorted(offered))}, "
                "and archiver logs in with Basic or Digest; let it offer one of them here (over https)"
            )
        if self._login is None:
            return "the server answered 401: it wants a log-in; set username and password"
        return "the server answered 401; check username and password"


async def _emptied(response: Answer) -> None:
    """Read to its end, so that the connection can be used again."""
    with contextlib.suppress(StoreError):
        await limited(response, 1 << 16)


def _wrong(status: int, what: str) -> StoreError:
    remedy = {
        403: "; allow the account to read, write, make folders, move and delete here",
        405: "; is url a WebDAV collection?",
        413: "; the server takes no file that large",
        423: "; somebody locked it",
        502: "; behind a proxy, MOVE needs its Destination header rewritten",
        507: "; the store is full",
    }.get(status, "")
    return failure(status, f"{what}: the server answered {status}{remedy}")
