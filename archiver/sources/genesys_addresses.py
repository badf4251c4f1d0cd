"""The addresses that Genesys Web Services tells: of recordings, of next pages, of media. Pure.

A node tells them as it knows itself: of a host, and below a root, that a proxy in front of it may lack. What counts is
the recording's id, the medium's name and the query; where the API is, base_url and the paths say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from yarl import URL

from ..wire.recorder import below
from .kit.rows import requoted, segment, text

_SLASH = re.compile(r"[/\\]")


def named_id(uri: str) -> str | None:
    """The id of the recording that an address names, quoted as it stands there."""
    match = re.fullmatch(r"(?:.*/)?recordings/([^/?#]+)/?(?:[?#].*)?", uri)
    return requoted(match[1]) if match and not {".", ".."} & set(_SLASH.split(unquote(match[1]))) else None


def next_page(base: URL, list_path: str, uri: Any) -> str | None:
    """The path of the page that ``nextUri`` names; None where it names none of this list."""
    last = re.escape(list_path.rstrip("/").rpartition("/")[2])
    if isinstance(uri, str) and (match := re.fullmatch(rf"(?:[!-~]*/{last}/?)?\?([!-~]+)", uri)):
        return f"{list_path}?{match[1]}"
    return below(base, text(uri))


def address(base: URL, file: Mapping[str, Any], play: Callable[[str], str], *, foreign: bool) -> str | None:
    """Where a media file is fetched: at the base URL's host or, where ``foreign``, at the one its URI names.

    ``play`` is where a medium of some (quoted) name is played at the base URL.
    """
    for name in ("playPath", "mediaPath"):
        if (path := _path(base, text(file.get(name)), play)) and "/play/" in path:
            return path
    uri = text(file.get("mediaUri"))
    try:
        url = URL(uri or "", encoded=True)
        ours = not url.host or url.origin() == base.origin()
    except ValueError:
        return None
    if not ours:
        return uri if foreign else _played(url.raw_path.rsplit("/", 1)[-1], play)
    path = _path(base, uri, play)
    if url.host and path in {None, below(base, uri)}:
        # Something else of this origin, perhaps.
        return uri
    return path or _played(url.raw_path.rsplit("/", 1)[-1], play)


def _path(base: URL, uri: str | None, play: Callable[[str], str]) -> str | None:
    """Below the base URL; by the medium's name where it has another root."""
    path, root = below(base, uri), base.raw_path.rstrip("/")
    if path is None or (root and path == uri and not re.match(r"(/ops/contact-centers/[^/]+)?/recordings/", path)):
        match = re.fullmatch(r"(?:.*/)?recordings/[^/?#]+/play/([^/?#]+)", uri or "")
        return (_played(match[1], play) if match else None) or path
    return path


def _played(name: str, play: Callable[[str], str]) -> str | None:
    """Where a medium of that name (quoted) is played; of one that hides a path, its last part."""
    if len(parts := _SLASH.split(unquote(name))) > 1:
        name = segment(parts[-1])
    return play(requoted(name)) if unquote(name).strip(". ") else None
