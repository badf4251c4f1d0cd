"""How durations, sizes, rates and moments are written in a config, and what is refused."""

from __future__ import annotations

import contextlib
import datetime as dt
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from archiver.model import ListingKey
from archiver.settings.options import Rate, SourceOptions, StoreOptions, duration, rate, size


def options(**changes) -> SourceOptions:
    return SourceOptions.model_validate({"kind": "any", "base_url": "http://10.0.0.1:9080", **changes})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("7d", 604800), ("2w", 1209600), ("1y", 31536000),
     ("250ms", 0.25), ("1.5h", 5400), (" 5 m ", 300), ("0s", 0)],
)  # fmt: skip
def test_a_duration_is_numbers_with_units(text, seconds):
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("wrong", ["", " ", "5", "m", "5 minutes", "-5m", "5m,", "1h x", "∞", 5, None, True, ["5m"]])
def test_what_is_no_duration_says_how_to_write_one(wrong):
    with pytest.raises(ValueError, match=r'is not a duration; write it like "90s"'):
        duration(wrong)


def test_a_duration_beyond_all_time_is_refused():
    with pytest.raises(ValueError, match="too long"):
        duration("9" * 30 + "y")


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert duration(text) >= timedelta()


@pytest.mark.parametrize(
    ("text", "count"),
    [("64MiB", 64 << 20), ("10GB", 10**10), ("1kB", 1000), ("1KB", 1000), ("1KiB", 1024), ("12", 12), ("12B", 12),
     ("1.5GiB", 3 << 29), (" 2 TiB ", 2 << 40), (4096, 4096)],
)  # fmt: skip
def test_a_size_is_a_number_with_a_unit(text, count):
    assert size(text) == count


@pytest.mark.parametrize("wrong", ["", "MiB", "64 MiBs", "64mib", "64kiB", "-1MB", "1e3", True, None, 1.5])
def test_what_is_no_size_says_how_to_write_one(wrong):
    with pytest.raises(ValueError, match=r'is not a size; write it like "64MiB"'):
        size(wrong)


@pytest.mark.parametrize(
    ("text", "interval"), [("10/s", 0.1), ("20/m", 3), ("1/3s", 3), ("6/2h", 1200), ("1/d", 86400), (" 10 / s ", 0.1)]
)
def test_a_rate_is_a_count_per_time(text, interval):
    assert rate(text).interval == timedelta(seconds=interval)
    assert rate(rate(text)) == rate(text)


@pytest.mark.parametrize("wrong", ["", "10", "10/", "/s", "0/s", "1/0s", "-1/s", "1/y", "ten/s", 10, None])
def test_what_is_no_rate_says_how_to_write_one(wrong):
    with pytest.raises(ValueError, match=r'is not a rate; write it like "10/s"'):
        rate(wrong)


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        (dt.date(2024, 1, 31), datetime(2024, 1, 31, tzinfo=UTC)),
        ("2024-01-31", datetime(2024, 1, 31, tzinfo=UTC)),
        ("2024-01-31T08:00:00Z", datetime(2024, 1, 31, 8, tzinfo=UTC)),
        ("2024-01-31T08:00:00+02:00", datetime(2024, 1, 31, 6, tzinfo=UTC)),
        (datetime(2024, 1, 31, 8), datetime(2024, 1, 31, 8, tzinfo=UTC)),  # noqa: DTZ001
    ],
)
def test_a_start_is_a_moment_in_utc(written, moment):
    assert options(start=written).start == moment


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"start": "yesterday"}, "is no date"),
        ({"timezone": "Mars/Olympus"}, "is no IANA time zone"),
        ({"timezone": "../../etc/passwd"}, "is no IANA time zone"),
        ({"base_url": "10.0.0.1"}, "is no base URL"),
        ({"base_url": "http://user:pw@10.0.0.1"}, "is no base URL"),
        ({"base_url": "http://10.0.0.1/?a=b"}, "is no base URL"),
        ({"window": "0s"}, "is too short"),
        ({"poll": "10ms"}, "is too short"),
        ({"poll": "often"}, "is not a duration"),
        ({"nonsense": 1}, "Extra inputs"),
        ({"concurrency": 0}, "greater than or equal"),
    ],
)
def test_a_source_refuses_nonsense_without_repeating_it(wrong, why):
    with pytest.raises(ValidationError, match=why) as caught:
        options(**wrong)
    assert "pw@" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "archive/", "a/b/", "archive-"])
def test_a_prefix_is_relative(prefix):
    assert StoreOptions(kind="any", prefix=prefix).prefix == prefix


@pytest.mark.parametrize("prefix", ["/", "/a", "../", "a/../b", "a/..", "./a", "a/\0"])
def test_a_prefix_that_leads_elsewhere_is_refused(prefix):
    with pytest.raises(ValidationError, match="is no prefix"):
        StoreOptions(kind="any", prefix=prefix)


def test_a_base_url_loses_its_last_slash_and_keeps_its_path():
    assert options(base_url="https://gws.example.com/api/v2/").base_url == "https://gws.example.com/api/v2"


def test_options_are_frozen():
    with pytest.raises(ValidationError):
        options().poll = "1m"


def test_a_source_listed_by_start_is_listed_again_for_the_longest_call():
    short = options(lookback="1h", longest_call="8h")
    assert short.relisted(ListingKey.START) == timedelta(hours=8)
    assert short.relisted(ListingKey.END) == timedelta(hours=1)


def test_a_rate_in_a_model_is_parsed_and_secrets_are_not_shown():
    class Options(SourceOptions):
        token: SecretStr

    parsed = Options.model_validate({"kind": "x", "base_url": "http://a", "token": "hunter2", "rate": "20/m"})
    assert parsed.rate == Rate(count=20, per=timedelta(minutes=1))
    assert "hunter2" not in repr(parsed)
    with pytest.raises(ValidationError) as caught:
        Options.model_validate({"kind": "x", "base_url": 3, "token": {"deep": "hunter2"}})
    assert "hunter2" not in str(caught.value)
