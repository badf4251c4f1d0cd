"""Telephone numbers as people type them."""

from __future__ import annotations

import re

import phonenumbers

#: Fewer digits than these find too much to be looked for.
FEWEST_DIGITS = 3


def understood(typed: str) -> tuple[str, str]:
    """The digits that both spellings of a number end with, national and international; and how it was understood.

    Raises ValueError where there are too few.
    """
    digits = re.sub(r"[^0-9]", "", typed)
    if len(digits) < FEWEST_DIGITS:
        raise ValueError(f'"{typed}" has too few digits; {FEWEST_DIGITS} find something')
    try:
        told = phonenumbers.parse("+" + digits.lstrip("0") if typed.strip().startswith(("+", "00")) else typed, None)
    except phonenumbers.NumberParseException:
        return (digits.lstrip("0") if len(digits) > 6 else digits), digits
    if not phonenumbers.is_valid_number(told):
        return digits.lstrip("0"), digits
    shown = phonenumbers.format_number(told, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
    return str(told.national_number), shown
