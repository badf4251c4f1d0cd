"""`reconcile`: a source's list of some time against the catalog, both ways."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..catalog.catalog import Catalog, Document
from ..common.scope import IN_A_ROW
from ..errors import Refused, SourceError
from ..model import Listing, State, Window, holdable, utc_text
from ..sync import poll, record
from ..sync.feeds import Feed
from ..sync.record import Polled
from ..sync.windows import cut, subtract


@dataclass(slots=True)
class Reconciled:
    """What differed, by recording_id."""

    windows: int = 0
    listed: set[str] = field(default_factory=set)
    #: At the source, not here.
    not_here: dict[str, Document] = field(default_factory=dict)
    #: Here, no longer at the source.
    no_longer_there: dict[str, Document] = field(default_factory=dict)
    #: The source tells it otherwise now.
    changed: dict[str, Document] = field(default_factory=dict)
    rejected: int = 0
    #: What of it was never listed before.
    new: list[Window] = field(default_factory=list)
    #: All of it was: there was nothing to compare with.
    all_new: bool = False
    #: Windows that could not be listed, and why.
    failed: list[str] = field(default_factory=list)
    #: The source could not be asked on.
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Nothing is missing here; what the source has deleted after we archived it is as it should be."""
        lost = any(d["state"] != State.ARCHIVED for d in self.no_longer_there.values())
        unproved = self.all_new or self.failed or self.error
        return not (self.not_here or self.changed or lost or self.rejected or unproved)


async def reconcile(feed: Feed, catalog: Catalog, wanted: Window, *, dry_run: bool, pause: float = 1.0) -> Reconciled:
    """List all of ``wanted`` again and compare; then, unless ``dry_run``, record what was found: it falls due.

    A window that can't be listed is told, and the others are compared; where the source itself fails it ends. Raises
    CatalogDown.
    """
    report = Reconciled()
    covered = next((row["covered"] for row in await catalog.sources([feed.name])), ())
    report.new = subtract([wanted], covered)
    report.all_new = report.new == [wanted]
    in_a_row = 0
    for part in cut(wanted, feed.options.window):
        try:
            async for window, listing in poll.listed(feed, part, pause=pause):
                await _compare(feed, catalog, window, listing, report)
                if not dry_run:
                    await record.record(feed, catalog, listing, Polled(), window=window, cover=True)
                report.windows += 1
        except SourceError as error:
            in_a_row += 1
            report.failed.append(f"{part}: {error}")
            if isinstance(error, Refused) or in_a_row >= IN_A_ROW or not await _answers(feed):
                report.error = report.failed[-1]
                break
        else:
            in_a_row = 0
    return report


async def _answers(feed: Feed) -> bool:
    try:
        await feed.source.check()
    except SourceError:
        return False
    return True


async def _compare(feed: Feed, catalog: Catalog, window: Window, listing: Listing, report: Reconciled) -> None:
    ids = {holdable(r.recording_id) for r in listing.recordings}
    report.listed |= ids
    report.rejected += len(listing.rejected)
    kept = await catalog.kept(feed.name, sorted(ids))
    for recording in await catalog.unknown(feed.name, listing.recordings):
        recording_id = holdable(recording.recording_id)
        told = {
            "recording_id": recording_id,
            "started_at": utc_text(recording.started_at),
            "media": len(recording.media),
        }
        (report.changed if recording_id in kept else report.not_here)[recording_id] = told
    if listing.rejected:
        # What nobody could read may be what seems to be gone.
        return
    for document in await catalog.within(feed.name, window):
        if document["recording_id"] not in ids:
            report.no_longer_there[document["recording_id"]] = document
