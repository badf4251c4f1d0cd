"""What the values of a recorder's rows are read as."""

import math

import pytest

from archiver.sources.kit.rows import as_told, identifier, requoted, segment


@pytest.mark.parametrize(
    ("told", "is_id"),
    [
        (" lead and trail ", " lead and trail "),
        ("a\tb", "a\tb"),
        ("e\u0301", "e\u0301"),
        ("\u00e9", "\u00e9"),
        ("ABC", "ABC"),
        ("007", "007"),
        ("1e3", "1e3"),
        ("10.0", "10.0"),
        ("%2F", "%2F"),
        (7, "7"),
        (0, "0"),
        (10.0, "10"),
        (1e3, "1000"),
        (2**70, str(2**70)),
        (1392271611.1, None),
        (math.inf, None),
        (math.nan, None),
        (True, None),
        (None, None),
        ("", None),
        (" \t", None),
        ([], None),
        ({}, None),
    ],
)
def test_an_id_is_what_was_told(told, is_id):
    assert as_told(told) == is_id


@pytest.mark.parametrize("told", [".", "..", "a\0b", "\ud800", "  ", None, 1.5])
def test_an_id_that_no_path_or_catalog_can_hold_is_refused_by_name(told):
    with pytest.raises(ValueError, match="no usable recordingKey"):
        identifier(told, "recordingKey")


def test_a_segment_is_quoted_once_and_one_that_is_quoted_stays_as_it_is():
    assert segment(" 50%2F1\t/é") == "%2050%252F1%09%2F%C3%A9"
    assert requoted("%2050%2f1 é+") == "%2050%2f1%20%C3%A9+"
