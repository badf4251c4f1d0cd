"""Telephone numbers as people type them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import phonenumbers

#: Fewer digits than these find too much to be looked for.
FEWEST_DIGITS = 3


class Number(NamedTuple):
    """A number that is looked for."""

    #: Digits that all its spellings end with, national and international.
    ending: str
    #: How it was understood.
    shown: str
    #: Its country's calling code, where that is known.
    code: str | None = None
    #: Sources in other countries: the same digits, written nationally, are another number there.
    abroad: tuple[str, ...] = ()


def understood(typed: str, countries: Mapping[str, str] | None = None) -> Number:
    """What was typed: a whole number, or the last digits of one.

    ``countries``: by source the region (like GB) whose national numbers it tells. A number that is typed nationally is
    of theirs, where it is good in one of them only. Raises ValueError where there are too few digits.
    """
    digits = re.sub(r"[^0-9]", "", typed)
    if len(digits) < FEWEST_DIGITS:
        raise ValueError(f'"{typed}" has too few digits; {FEWEST_DIGITS} find something')
    regions = countries or {}
    if typed.strip().startswith(("+", "00")):
        found = _valid("+" + digits.lstrip("0"), None)
        if found is None:
            return Number(digits.lstrip("0"), digits)
    else:
        # An extension is no number of a country, though some countries have such short ones.
        valid = [_valid(typed, region) for region in sorted({*regions.values()})] if len(digits) > 6 else []
        good = [number for number in valid if number is not None]
        if len({number.country_code for number in good}) != 1:
            return Number(digits.lstrip("0") if len(digits) > 6 else digits, digits)
        found = good[0]
    code = found.country_code
    shown = phonenumbers.format_number(found, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
    abroad = tuple(s for s, region in regions.items() if phonenumbers.country_code_for_region(region) != code)
    return Number(str(found.national_number), shown, str(code), abroad)


def is_country(region: str) -> bool:
    """Is it a region that numbers are known of, like GB?"""
    return region in phonenumbers.SUPPORTED_REGIONS


def _valid(typed: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        found = phonenumbers.parse(typed, region)
    except phonenumbers.NumberParseException:
        return None
    return found if phonenumbers.is_valid_number(found) else None
