"""What PROPFIND is asked with, and how its answer (RFC 4918, 13) is read while it comes."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from ..errors import StoreDown
from ..wire.exchange import Answer
from ..wire.store import XmlReader, local_name

#: The size and kind of each entry.
ASK = (
    b'<?xml version="1.0" encoding="utf-8"?>'
    b'<propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/></prop></propfind>'
)
_XML_LIMIT = 512 << 20


def path_of(address: str) -> str:
    """The decoded path of an entry's address, which may be a URL or a path."""
    return unquote(urlsplit(address).path)


async def read_entries(response: Answer) -> list[tuple[str, int | None, bool]]:
    """Its entries: (address, size in bytes or None, is a folder). Raises StoreDown for what can't be read."""
    reader = XmlReader(_Multistatus())
    length = 0
    while chunk := await response.read():
        length += len(chunk)
        if length > _XML_LIMIT:
            raise StoreDown(f"the listing of a folder is longer than {_XML_LIMIT} bytes")
        reader.feed(chunk)
    found: list[tuple[str, int | None, bool]] = reader.close()
    return found


class _Multistatus:
    """The target of the XML parser; close() gives what was found."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int | None, bool]] = []
        self._texts: list[str] = []
        self._href = ""
        self._size: int | None = None
        self._is_folder = False

    def start(self, tag: str, _: object) -> None:
        self._texts = []
        match local_name(tag):
            case "response":
                self._href, self._size, self._is_folder = "", None, False
            case "collection":
                self._is_folder = True

    def data(self, text: str) -> None:
        self._texts.append(text)

    def end(self, tag: str) -> None:
        text = "".join(self._texts).strip()
        self._texts = []
        match local_name(tag):
            case "href" if not self._href:
                self._href = text
            case "getcontentlength" if text.isdecimal():
                self._size = int(text)
            case "response" if self._href:
                self.found.append((self._href, self._size, self._is_folder))

    def close(self) -> list[tuple[str, int | None, bool]]:
        return self.found
