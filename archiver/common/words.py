"""Sizes, spans and vendor text as people read them."""

from __future__ import annotations

import difflib
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


def number(count: int, one: str, many: str = "") -> str:
    """``1 copy``, ``2 copies``; without ``many`` by an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"
