"""The same documents for people: tables and lines on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .catalog import Document


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


def plain(text: object) -> str:
    """Vendor text for a terminal: no control characters, one line."""
    return "".join(c if c.isprintable() else " " for c in str(text if text is not None else "–"))


def clean(text: object) -> str:
    """The same for rich: no markup either."""
    return escape(plain(text))


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in set(right) else "left", overflow="fold")
    return table


def status(console: Console, document: Document) -> None:
    numbers = ("lag", "archived", "pending", "failed", "gone", "empty", "size")
    table = _table("source", "kind", "lag", "covered to (UTC)", "gaps", *numbers[1:], right=numbers)
    hints = []
    for name, s in document["sources"].items():
        table.add_row(
            f"[bold]{clean(name)}[/]" if s["enabled"] else f"[dim]{clean(name)} (off)[/]",
            s["kind"],
            span(s["lag"]),
            (s["covered_to"] or "–")[:19].replace("T", " "),
            f"[yellow]{len(s['gaps'])}[/]" if s["gaps"] else "0",
            str(s["archived"]),
            str(s["pending"]),
            f"[red]{s['failed']}[/]" if s["failed"] else "0",
            str(s["gone"]),
            str(s["empty"]),
            size(s["bytes"]),
        )
        hints += _hints(name, s)
    console.print(table)
    stores = _table("store", "kind", "copies", "size", right=("copies", "size"))
    for name, s in document["stores"].items():
        stores.add_row(clean(name), s["kind"], str(s["copies"]), size(s["bytes"]))
        if s["bad"]:
            hints.append(
                f"[red]{clean(name)}: {s['bad']} copies are bad or missing[/] → `archiver verify --store {name}`"
            )
        hints += _verify_hints(clean(name), s["verify"])
        if s["lacking"]:
            hints.append(
                f"[yellow]{clean(name)}: {s['lacking']} media were archived before it was a store of their source[/]"
                f" → `archiver copy --to {name}`"
            )
    console.print()
    console.print(stores)
    for hint in [*_config_hints(document["daemon"]), *hints]:
        console.print(hint, soft_wrap=True)


def _config_hints(daemon: Mapping[str, Any] | None) -> list[str]:
    stale = daemon["stale"] if daemon is not None else []
    return [f"[red]config on disk is not the live one:[/] {clean(line)}" for line in stale]


def _verify_hints(who: str, v: Mapping[str, Any]) -> list[str]:
    hints = []
    if v["error"]:
        hints.append(f"[red]{who}: verify could not read on:[/] {clean(v['error'])}")
    if v["behind"]:
        hints.append(f"[yellow]{who}: {clean(v['behind'])}[/]")
    if v["enabled"] and v["overdue"]:
        hints.append(f"[yellow]{who}: {v['overdue']} copies were not read back for longer than the verify cycle[/]")
    if v["found"]:
        hints.append(f"[yellow]{who}: verify found {v['found']} spoilt copies, {v['repaired']} of them repaired[/]")
    for f in v["findings"]:
        ended = f"repaired by {f['repaired_by']}" if f["repaired_at"] else "not repaired"
        hints.append(f"  {f['last_at'][:19]} {clean(f['key'])}: {clean(f['problem'])}; {clean(ended)}")
    return hints


def _hints(name: str, s: Mapping[str, Any]) -> list[str]:
    who = clean(name)
    hints = []
    if s["paused_why"]:
        hints.append(
            f"\n[red]{who}: the recorder refuses the account:[/] {clean(s['paused_why'])}\n"
            f"  → mend it, then `archiver check`; it is tried again by itself at {s['paused_until']}"
        )
    elif s["last_error"]:
        hints.append(f"\n[yellow]{who}: the last poll had trouble:[/] {clean(s['last_error'])}")
    hints += [f"[red]{who}: {clean(warning['text'])}[/]" for warning in s["warnings"]]
    for reason in s["reasons"]:
        colour = "red" if reason["state"] == "failed" else "yellow"
        hints.append(f"[{colour}]{who}: {reason['count']} {reason['state']}:[/] {clean(reason['error'])}")
    if s["failed"]:
        hints.append(f"  → `archiver retry --source {who}` makes the failed ones due again")
    if s["rejected_rows"]:
        hints.append(
            f"[red]{who}: {s['rejected_rows']} rows of listings could not be read[/] → `archiver rejected {who}`"
        )
    return hints + [f"[yellow]{who}: not listed yet:[/] {gap['from']} to {gap['to']}" for gap in s["gaps"][:5]]


def recordings(console: Console, documents: Iterable[Document]) -> None:
    table = _table("started (UTC)", "source", "recording", "dir", "from", "to", "length", "state")
    colours = {"archived": "green", "failed": "red", "pending": "yellow"}
    for d in documents:
        colour = colours.get(d["state"], "dim")
        table.add_row(
            d["started_at"][:19].replace("T", " "),
            clean(d["source"]),
            clean(d["recording_id"]),
            d["direction"][:3],
            clean(d["caller"]),
            clean(d["callee"]),
            span(d["duration"]),
            f"[{colour}]{d['state']}[/]",
        )
    console.print(table)


def recording(console: Console, d: Document) -> None:
    table = _table("", "")
    told = ("source", "recording_id", "call_id", "state", "started_at", "ended_at", "duration", "direction", "caller")
    for name in (*told, "callee", "agent", "queue", "missing_since"):
        table.add_row(f"[bold]{name}[/]", clean(d[name]))
    for name, value in d["attributes"].items():
        table.add_row(clean(name), clean(value))
    console.print(table)
    for party in d["parties"]:
        told_party = ", ".join(clean(v) for v in party.values() if v)
        console.print(f"  party: {told_party}")
    for medium in d["media"]:
        length = span(medium["duration"])
        held = size(medium["size"]) if medium["size"] is not None else "–"
        kind = clean(medium["content_type"])
        console.print(f"\n[bold]{clean(medium['media_id'])}[/] {medium['state']}, {kind}, {held}, {length}")
        if medium["sha256"]:
            console.print(f"  SHA-256 {medium['sha256']}", soft_wrap=True)
        if medium["error"]:
            console.print(f"  [yellow]{clean(medium['error'])}[/]", soft_wrap=True)
        for copy in medium["copies"]:
            console.print(f"  {clean(copy['store'])}: {clean(copy['key'])}  {copy['archived_at']}", soft_wrap=True)


def story(console: Console, d: Document) -> None:
    console.print(f"[bold]{clean(d['source'])} {clean(d['recording_id'])}[/]: {d['state']}", soft_wrap=True)
    for window in d["windows"]:
        console.print(
            f"  listed with [{window['start']}, {window['end']}): {window['times']}×, first {window['first_at']},"
            f" last {window['last_at']}, {window['listed']} recordings",
            markup=False,
            soft_wrap=True,
        )
    for event in d["story"]:
        times = f" ({event['times']}×, last {event.get('last_at')})" if event["times"] > 1 else ""
        medium = f" {event['media_id']}" if event["media_id"] else ""
        detail = f": {event['detail']}" if event["detail"] else ""
        console.print(clean(f"  {event['at']}{medium} {event['what']}{detail}{times}"), soft_wrap=True)
    if d["missing_since"]:
        console.print(f"  the source no longer lists it since {d['missing_since']}")


def summary(console: Console, document: Document) -> None:
    numbers = ("windows", "listed", "new", "archived", "pending", "failed", "gone", "empty", "size")
    table = _table("source", *numbers, right=numbers)
    for name, s in document["sources"].items():
        table.add_row(clean(name), *(str(s[n]) for n in numbers[:-1]), size(s["bytes"]))
    console.print(table)
    for name, s in document["sources"].items():
        if s.get("error"):
            console.print(f"[red]{clean(name)}:[/] {clean(s['error'])}", soft_wrap=True)
    if document["complete"]:
        console.print("[green]complete[/]: nothing is pending, nothing failed")
    else:
        console.print("[yellow]not complete[/]: run the same command again, or see `archiver status`")


def verified(console: Console, stores: Mapping[str, Any], complete: bool) -> None:
    numbers = ("read", "good", "bad", "missing", "repaired")
    table = _table("store", *numbers, "size", right=(*numbers, "size"))
    for name, found in stores.items():
        table.add_row(clean(name), *(str(found[n]) for n in numbers), size(found["bytes"]))
    console.print(table)
    for found in stores.values():
        for line in [*found["findings"], *filter(None, [found["error"]])]:
            console.print(f"[red]{clean(line)}[/]", soft_wrap=True)
    if complete:
        console.print("[green]every copy that was read is good[/]")
    else:
        console.print("[red]not every copy is good[/]: mend the store, then run `archiver verify` again")


def copied(console: Console, store: str, sources: Mapping[str, Any], problems: Iterable[str]) -> None:
    table = _table("source", "copied", "failed", "size", right=("copied", "failed", "size"))
    for name, found in sources.items():
        table.add_row(clean(name), str(found["copies"]), str(found["failed"]), size(found["bytes"]))
    if sources:
        console.print(table)
    lines = [clean(problem) for problem in problems]
    for line in lines:
        console.print(f"[red]{line}[/]", soft_wrap=True)
    if lines:
        console.print("[yellow]not complete[/]: mend that, then run the same command again")
    else:
        console.print(f"[green]complete[/]: {clean(store)} holds all that was asked for")
