"""docs/sources.md and docs/reliability.md say what the code does."""

import re
from pathlib import Path
from typing import Any

import pytest

from archiver.settings.config import kinds
from archiver.settings.options import duration, rate

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "sources.md").read_text("utf-8")
PACKAGE = DOCS.parent / "archiver"
#: What the options need beside what a row names.
REQUIRED = {
    "chronicall": {"token": "t"},
    "xivo": {"token": "t", "timezone": "Europe/Paris"},
    "imagicle": {"username": "u", "password": "p"},
    "noojee": {"api_key": "k", "timezone": "Australia/Melbourne"},
    "genesys": {"username": "u", "password": "p"},
}


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, its head first."""
    below = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("-: ")]


POLITENESS = table("Politeness")


@pytest.mark.parametrize("row", POLITENESS[1:], ids=lambda row: row[0].replace("`", ""))
def test_the_defaults_of_the_page_are_those_of_the_code(row):
    told: dict[str, Any] = dict(zip((name.strip("`") for name in POLITENESS[0]), row, strict=True))
    kind, *given = re.findall(r"`([^`]+)`", told.pop("kind"))
    cls = kinds("archiver.sources")[kind].load()
    variant = {key: value.strip('"') for key, value in (text.split(" = ") for text in given)}
    options = cls.Options(kind=kind, base_url="http://127.0.0.1:9", **REQUIRED[kind], **variant)
    assert told.pop("lists by") == cls.listing_key
    assert told.pop("poll") == options.poll
    assert int(told.pop("concurrency")) == options.concurrency
    assert (None if told["rate"] == "none" else rate(told["rate"])) == options.rate
    del told["rate"]
    assert set(told) == {"window", "settle", "lookback", "longest_call", "timeout"}
    for name, text in told.items():
        assert duration(text) == getattr(options, name), name


def test_every_kind_is_on_the_page_and_has_a_page_of_its_own():
    for heading in ("What is archived, and what is not", "Permissions, and what to set at the recorder", "Politeness"):
        assert {row[0].split(",")[0].strip("`") for row in table(heading)[1:]} == set(kinds("archiver.sources"))
    linked = set(re.findall(r"\]\(([\w./-]+\.md)\)", PAGE))
    assert linked == {f"sources/{kind}.md" for kind in kinds("archiver.sources")} | {"new-source.md"}
    assert all((DOCS / name).is_file() for name in linked)


@pytest.mark.parametrize("row", table("What `check` says")[1:], ids=lambda row: row[1][1:40])
def test_what_check_says_on_the_page_it_says_in_the_code(row):
    kind, messages, _ = row
    everyones = sorted((PACKAGE / "wire").glob("*.py"))
    files = everyones if kind == "all" else sorted((PACKAGE / "sources").glob(f"{kind.strip('`')}*.py"))
    code = "\n".join(path.read_text("utf-8") for path in files)
    for message in re.findall(r"`([^`]+)`", messages):
        for fragment in message.split("…"):
            # Of a status line the code holds only the words, and of a choice of words each by itself.
            words = re.sub(r"\b40[13]\b|(?<=recordings: )none", "", fragment).strip(" ,;()")
            assert words in code, message


def test_options_that_the_page_names_exist():
    known = {name for entry in kinds("archiver.sources").values() for name in _fields(entry.load().Options)}
    named = set(re.findall(r"`([a-z]+_[a-z_]+)(?: = [^`]*)?`", PAGE))
    assert named <= known | {"last_agent"}


def _fields(model: Any) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()} | set(model.model_fields)


def test_every_test_that_the_reliability_page_names_exists():
    page = (DOCS / "reliability.md").read_text("utf-8")
    places = [*(DOCS.parent / "tests").rglob("test_*.py"), *(PACKAGE / "testing").glob("*.py")]
    exist = {name for path in places for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))}
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 100
    assert named - exist == set()


def test_every_outcome_that_explain_knows_is_on_the_reliability_page():
    code = "".join(file.read_text("utf-8") for file in (PACKAGE / "sync").glob("*.py"))
    outcomes = set(re.findall(r'outcome\(State\.\w+, "([a-z ]+)"', code)) | set(re.findall(r'what="([a-z ]+)"', code))
    page = (DOCS / "reliability.md").read_text("utf-8").split("## Failures")[1].split("\n## ")[0]
    assert outcomes
    assert outcomes <= {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")}
