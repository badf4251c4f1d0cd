"""Numbers as people type them."""

from __future__ import annotations

import pytest

from archiver.common.numbers import understood


@pytest.mark.parametrize(
    ("typed", "countries", "ending", "shown", "code"),
    [
        ("+44 20 7946 0018", {}, "2079460018", "+44 20 7946 0018", "44"),
        ("0044 20 7946 0018", {}, "2079460018", "+44 20 7946 0018", "44"),
        ("020 7946 0018", {"hq": "GB"}, "2079460018", "+44 20 7946 0018", "44"),
        ("020 7946 0018", {}, "2079460018", "02079460018", None),
        ("030/901820", {"hq": "DE"}, "30901820", "+49 30 901820", "49"),
        # Good in both: nobody knows which is meant.
        ("0201 234567", {"hq": "DE", "branch": "NL"}, "201234567", "0201234567", None),
        # Another trunk prefix than a zero.
        ("8 (495) 123-45-67", {"hq": "RU"}, "4951234567", "+7 495 123-45-67", "7"),
        ("06 6982", {"hq": "IT"}, "066982", "066982", None),
        ("1573", {"hq": "GB"}, "1573", "1573", None),
        ("01573", {"hq": "GB"}, "01573", "01573", None),
        ("79460018", {"hq": "GB"}, "79460018", "79460018", None),
    ],
)
def test_a_number_is_understood_however_it_is_typed(typed, countries, ending, shown, code):
    found = understood(typed, countries)
    assert (found.ending, found.shown, found.code) == (ending, shown, code)


def test_sources_of_other_countries_are_told_apart():
    assert understood("+44 20 7946 0018", {"hq": "GB", "maine": "US", "other": "GB"}).abroad == ("maine",)


def test_too_few_digits_are_refused():
    with pytest.raises(ValueError, match="too few digits"):
        understood("+1 2", {"hq": "GB"})
