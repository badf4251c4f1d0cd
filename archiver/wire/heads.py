"""Heads of answers as their parser wants them, put right where browsers forgive too."""

from __future__ import annotations

import re

from .exchange import NoHttp

#: A head that needs no mending, if besides it tells one length at most.
_PLAIN = re.compile(rb"HTTP/[^\n]*(?:\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\n]*)*")
_FRAMING = re.compile(rb"(?i)\n(?:content-length|(transfer-encoding)):([^\n]*)")
NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def mended(head: bytes) -> bytes:
    """An answer's head (without the empty line) as its parser wants it, put right where browsers forgive too.

    Folded lines are joined; spaces before a colon, lines that are no header and ``Transfer-Encoding: identity`` left
    out; a length that is told twice is told once, and none beside chunks (RFC 9112, 6.3). Raises NoHttp for two lengths
    and for a transfer encoding that nobody asked for.
    """
    framing = _FRAMING.findall(head)
    plain = not framing or (len(framing) == 1 and not framing[0][0] and framing[0][1].strip().isdigit())
    if plain and _PLAIN.fullmatch(head):
        return head + b"\r\n\r\n"
    status, *lines = head.split(b"\n")
    fields: list[tuple[bytes, bytes]] = []
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    folds = False
    for line in lines:
        if line[:1] in {b" ", b"\t"}:
            if folds:
                name, value = fields.pop()
                fields.append((name, value + b" " + line.strip()))
            continue
        name, colon, value = line.partition(b":")
        name, value = name.rstrip(b" \t"), value.strip(b" \t\r")
        folds = False
        if not colon or not NAME.fullmatch(name):
            continue
        match name.lower():
            case b"content-length":
                lengths |= {told.strip() for told in value.split(b",")}
            case b"transfer-encoding":
                codings += [told.strip().lower() for told in value.split(b",")]
            case _:
                fields.append((name, value))
                folds = True
    codings = [coding for coding in codings if coding not in {b"identity", b""}]
    if codings == [b"chunked"]:
        fields.append((b"Transfer-Encoding", b"chunked"))
    elif codings:
        raise NoHttp("it uses a transfer encoding that nobody asked for")
    elif lengths:
        length = lengths.pop()
        if lengths or not length.isdigit() or len(length) > 18:
            raise NoHttp("it tells two lengths" if lengths else "it tells no usable length")
        fields.append((b"Content-Length", length))
    return b"".join([status.rstrip(b"\r"), b"\r\n", *(b"%b: %b\r\n" % field for field in fields), b"\r\n"])
