"""Sizes, spans and vendor text as people read them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def size(count: float) -> str:
    """Bytes as people read them: 1.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span(seconds: float | None) -> str:
    """Seconds as people read them: 3m 20s, 2d 4h."""
    if seconds is None:
        return "–"
    left, parts = int(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= length:
            parts.append(f"{left // length}{unit}")
            left %= length
    return " ".join(parts[:2]) or "0s"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.0) -> list[str]:
    """The known names that are like it, the likest first; ``cutoff``: between 0 (any) and 1 (the same)."""
    folded = {key.lower(): key for key in known}
    found = difflib.get_close_matches(name[:100].lower(), folded, n=max(1, len(folded)), cutoff=cutoff)
    return [folded[key] for key in found]


def plain(text: object) -> str:
    """Vendor text for a terminal: no control characters, one line."""
    return "".join(c if c.isprintable() else " " for c in str(text if text is not None else "–"))


def one_line(text: str, most: int = 160) -> str:
    """A server's own words for a message: one line of at most so many characters."""
    return plain(" ".join(text.split()))[:most]


def visible(text: str, most: int = 500) -> str:
    """What somebody wrote, on one line, with what can't be printed as ``\\u001b``, so that a mistake can be seen."""
    flat = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in re.sub(r"[\r\n\t]+", " ", text[: 2 * most]))
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def reason_of(error: BaseException) -> str:
    """What an error says for a message: one line, without its number and without the library's own brackets."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return plain(re.sub(r"^(\[[^\]]*\] )+", "", str(said)))[:1000]


def number(count: int, one: str, many: str = "") -> str:
    """``1 copy``, ``2 copies``; without ``many`` by an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"
