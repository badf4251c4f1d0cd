"""Keeps credentials out of messages, where a recorder repeats what it was sent."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import quote, quote_plus


class Hidden:
    """What no message may repeat: credentials, also as HTML, JSON and URLs spell them."""

    def __init__(self) -> None:
        self._forms: list[str] = []

    @property
    def longest(self) -> int:
        return len(self._forms[0]) if self._forms else 0

    def add(self, values: Iterable[str]) -> None:
        plain = set()
        for value in values:
            scheme, _, rest = value.partition(" ")
            plain |= {value, rest}
            if scheme.lower() == "basic":
                with suppress(ValueError):
                    login = base64.b64decode(rest).decode()
                    plain |= {login, login.partition(":")[2]}
        forms = set(self._forms)
        for secret in plain:
            forms |= {secret, html.escape(secret), html.escape(secret, quote=False), json.dumps(secret)[1:-1]}
            forms |= {quote(secret), quote(secret, safe=""), quote_plus(secret)}
        # What is shorter is no secret, and hiding it would hide the message.
        self._forms = sorted((form for form in forms if len(form) > 3), key=len, reverse=True)

    def hide(self, text: str, *, whole: bool = True) -> str:
        """``whole``: nothing of the text was cut off, and so no half of a secret stands at its end."""
        for form in self._forms:
            text = text.replace(form, "***")
        return text if whole or not self._forms else text[: 1 - self.longest]
