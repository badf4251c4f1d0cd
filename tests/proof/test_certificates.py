"""Certificates and their lists: the bytes, the counts that add up, what is bounded, what is never left out."""

from __future__ import annotations

import base64
import json
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.proof import certificates, tree
from archiver.proof.certificates import Gap, Issued, Leaf, Leaves, Listings, Medium, issue, moved, read_leaf
from archiver.proof.log import LONGEST_ENTRY

DAY = date(2024, 5, 17)
START = datetime(2024, 5, 17, tzinfo=UTC)
END = START + timedelta(days=1)
ABOUT = certificates.about(certificates.disclosure(bytes(16), {}))


def handle(n: int) -> str:
    return f"{n:024x}"


def archived(n: int, size: int = 100, **more: Any) -> Leaf:
    medium = Medium(size=size, sha256=sha256(b"%d" % n).hexdigest())
    return Leaf(handle(n), "archived", ABOUT, media=[medium], stores=["dav", "main"], **more)


def listed(*leaves: Leaf, earlier: tuple[str, ...] = ()) -> tuple[Leaves, list[bytes]]:
    made = Leaves(earlier)
    text = b"".join(made.add(leaf) for leaf in leaves) + made.finish()
    return made, text.splitlines()


def certify(leaves: Leaves, **other: Any) -> Issued:
    told: dict[str, Any] = {
        "source": "hq",
        "kind": "chronicall",
        "day": DAY,
        "revision": 1,
        "previous": None,
        "issued_at": END + timedelta(hours=26),
        "software": "archiver 0.1.0",
        "settings": None,
        "basis": "window",
        "covered": (START, END),
        "first_day": False,
        "gaps": [],
        "listings": Listings(24, START, END, 3, 0, bytes(32)),
        "folders": ["hq/2024/05/17"],
        "stamp": "01HY0000000000000000000000",
    }
    return issue(leaves, **{**told, **other})


def test_a_line_is_short_and_holds_no_more_than_what_is_written_down():
    _, (line, other) = listed(archived(1, flags=["unchecked"]), Leaf(handle(2), "gone", ABOUT, media=[Medium("gone")]))
    assert line.decode() == (
        '{"recording":"000000000000000000000001","state":"archived",'
        f'"about":"{ABOUT}","flags":["unchecked"],'
        f'"media":[{{"size":100,"sha256":"{sha256(b"1").hexdigest()}"}}],"stores":["dav","main"]}}'
    )
    assert other.decode() == (
        f'{{"recording":"000000000000000000000002","state":"gone","about":"{ABOUT}","media":[{{"state":"gone"}}]}}'
    )
    assert read_leaf(line) == archived(1, flags=["unchecked"])


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b'{"recording":"12","state":"gone"}', b'{"recording":"%s","state":"lost"}' % (b"0" * 24)],
)
def test_what_is_no_line_is_refused(line: bytes):
    with pytest.raises(ValueError, match="no line of a list"):
        read_leaf(line)


def test_what_a_line_commits_to_is_opened_by_its_salt_as_rfc_9901_has_it():
    facts = {"recording_id": "7", "caller": "+16504668888", "raw": {"b": 1, "a": "ü"}, "source": "hq", "media": []}
    disclosed = certificates.disclosure(b"\1" * 16, facts)
    salt, name, told = json.loads(base64.urlsafe_b64decode(disclosed + "=" * (-len(disclosed) % 4)))
    assert (salt, name) == ("AQEBAQEBAQEBAQEBAQEBAQ", "recording")
    assert set(told) == set(certificates.FACTS)
    assert told["caller"] == "+16504668888"
    assert certificates.about(disclosed) == base64.urlsafe_b64encode(
        sha256(disclosed.encode()).digest()
    ).decode().rstrip("=")
    # However a database ordered the vendor's members, and whatever the source is called now.
    again = certificates.disclosure(b"\1" * 16, {**facts, "raw": {"a": "ü", "b": 1}, "source": "office"})
    assert again == disclosed
    assert certificates.disclosure(b"\2" * 16, facts) != disclosed


def test_the_example_of_rfc_9901_has_the_digest_that_it_names():
    disclosed = "WyJfMjZiYzRMVC1hYzZxMktJNmNCVzVlcyIsICJmYW1pbHlfbmFtZSIsICJNw7ZiaXVzIl0"
    assert certificates.about(disclosed) == "X9yH0Ajrdm1Oij4tWso9UzzKJvPoDxwmuEcO3XAdRC0"


def test_a_certificate_says_what_was_listed_and_its_counts_add_up():
    states = ["archived", "empty", "gone", "failed", "pending", "excluded", "erased", "expired"]
    leaves, lines = listed(*[Leaf(handle(n), state) for n, state in enumerate(states, 1)], archived(9))
    issued = certify(leaves, previous="ab" * 32, settings="cd" * 32)
    told = json.loads(issued.entry)
    assert told["type"] == "archiver/certificate/v1"
    assert (told["source"], told["day"], told["revision"], told["previous"]) == ("hq", "2024-05-17", 1, "ab" * 32)
    assert told["coverage"] == {"from": "2024-05-17T00:00:00.000Z", "to": "2024-05-18T00:00:00.000Z", "gaps": []}
    assert told["counts"] == {"listed": 9, **dict.fromkeys(states, 1), "archived": 2, "moved": 0}
    assert told["counts"]["listed"] == sum(told["counts"][state] for state in states)
    assert (told["media"], told["bytes"]) == (1, 100)
    root = tree.root(tree.leaf_hash(line) for line in lines)
    name = "days/hq/2024/05/17/01HY0000000000000000000000.leaves.jsonl"
    assert told["leaves"] == {"size": 9, "root": root.hex()}
    assert f"{told['name']}.leaves.jsonl" == name
    assert issued.leaves_name == name
    assert issued.objects == [(name.replace("leaves.jsonl", "certificate.json"), issued.entry + b"\n")]
    assert issued.sha256 == sha256(issued.entry).hexdigest()


def test_a_day_without_a_call_has_a_certificate_and_no_list():
    issued = certify(listed()[0])
    assert issued.complete is True
    assert issued.leaves_name is None
    assert json.loads(issued.entry)["leaves"] == {"size": 0, "root": sha256(b"").hexdigest()}


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("complete", "leaf", "other"),
    [
        (True, archived(1), {}),
        (True, Leaf(handle(1), "gone"), {}),
        (False, Leaf(handle(1), "failed"), {}),
        (False, Leaf(handle(1), "pending"), {}),
        (False, archived(1), {"gaps": [Gap(START, START + HOUR, "recorder unreachable")]}),
        (False, archived(1), {"listings": Listings(unreadable=1)}),
        (False, archived(1), {"covered": (START + HOUR, END)}),
        (True, archived(1), {"covered": (START + HOUR, END), "first_day": True}),
        (False, archived(1), {"covered": (START, END - HOUR)}),
        (False, archived(1), {"covered": (START, END - HOUR), "first_day": True}),
        (None, archived(1), {"basis": "ids"}),
        (None, Leaf(handle(1), "failed"), {"basis": "ids"}),
    ],
)
def test_it_calls_complete_what_was_listed_whole_and_has_nothing_left_to_do(
    complete: bool | None, leaf: Leaf, other: dict[str, Any]
):
    issued = certify(listed(leaf)[0], **other)
    assert issued.complete is complete
    assert json.loads(issued.entry)["complete"] is complete


def test_many_gaps_lie_beside_the_certificate_which_fits_into_the_log():
    gaps = [Gap(START + timedelta(seconds=n), START + timedelta(seconds=n + 1), "no answer") for n in range(10_000)]
    few, many = certify(listed()[0], gaps=gaps[:100]), certify(listed()[0], gaps=gaps)
    assert len(json.loads(few.entry)["coverage"]["gaps"]) == 100
    assert len(many.entry) <= LONGEST_ENTRY
    told = json.loads(many.entry)["coverage"]["gaps"]
    (name, lines), (_, entry) = many.objects
    assert told == {"size": 10_000, "sha256": sha256(lines).hexdigest()}
    assert name.endswith(".gaps.jsonl")
    assert json.loads(lines.splitlines()[-1])["why"] == "no answer"
    assert entry == many.entry + b"\n"
    assert many.complete is False


def test_a_long_reason_is_cut_and_odd_text_is_still_json():
    issued = certify(listed()[0], gaps=[Gap(START, END, "\ud800é" * 5000)])
    assert json.loads(issued.entry)["coverage"]["gaps"][0]["why"] == "\ud800é" * 150


@given(st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)))
def test_what_an_earlier_certificate_told_of_is_never_left_out(before: set[int], now: set[int]):
    earlier = [handle(n) for n in sorted(before)]
    made, lines = listed(*[archived(n) for n in sorted(now)], earlier=tuple(earlier))
    assert list(certificates.handles(lines)) == [handle(n) for n in sorted(before | now)]
    assert made.counts["moved"] == len(before - now)
    assert made.size == len(before | now)
    assert json.loads(certify(made).entry)["counts"]["listed"] == len(now)


def test_what_stays_of_a_moved_one_says_no_more_than_that():
    assert listed(earlier=(handle(7),))[1] == [b'{"recording":"000000000000000000000007","state":"moved"}']
    assert read_leaf(b'{"recording":"000000000000000000000007","state":"moved"}') == moved(handle(7))


def test_a_list_out_of_order_or_not_finished_is_refused():
    for second in (handle(2), handle(1)):
        leaves = Leaves()
        leaves.add(Leaf(handle(2), "gone"))
        with pytest.raises(ValueError, match="out of order"):
            leaves.add(Leaf(second, "gone"))
    leaves = Leaves([handle(9)])
    leaves.add(Leaf(handle(2), "gone"))
    with pytest.raises(ValueError, match="not finished"):
        certify(leaves)


def test_a_source_with_an_odd_name_stays_below_days():
    issued = certify(listed(archived(1))[0], source="../up")
    assert issued.leaves_name is not None
    assert issued.leaves_name.startswith("days/%2E.%2Fup/2024/")
