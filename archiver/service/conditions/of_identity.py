"""What can be wrong with who is who (identity.py), and with the certificates (proof.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..facts import Survey
from .base import Condition, Finding, Level, Of, Severity


def _told(name: str) -> Callable[[Survey], Iterator[Finding]]:
    def test(survey: Survey) -> Iterator[Finding]:
        for problem in survey.identity:
            if problem["condition"] == name:
                yield Finding(of=problem["of"], what=problem["what"], do=problem["do"])

    return test


CONDITIONS = (
    Condition(
        name="SourceChanged",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="it seems to be another recorder than the one that was listed, or one with another name: not polled",
        host=_told("SourceChanged"),
    ),
    Condition(
        name="RecorderAnew",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="calls that were listed are listed under other ids: the recorder was set up anew",
        host=_told("RecorderAnew"),
    ),
    Condition(
        name="SourceTwice",
        of=Of.SOURCE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="it is the same recorder and account as another source",
        host=_told("SourceTwice"),
    ),
    Condition(
        name="CopiesElsewhere",
        of=Of.CONFIG,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="archived media have no copy in any store of this config",
        host=_told("CopiesElsewhere"),
    ),
    Condition(
        name="StoreForgotten",
        of=Of.STORE,
        level=Level.NOTE,
        severity=Severity.INFO,
        about="it holds copies, and is no store of this config",
        host=_told("StoreForgotten"),
    ),
    Condition(
        name="ProofFailed",
        of=Of.HOST,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="no certificates can be issued, or a store does not hold their log: nothing is signed until it is mended",
        host=_told("ProofFailed"),
    ),
    Condition(
        name="DaysUncertified",
        of=Of.SOURCE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="days that are due have no certificate",
        host=_told("DaysUncertified"),
    ),
    Condition(
        name="DaysIncomplete",
        of=Of.SOURCE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="days are certified as not complete: a gap, or recordings that are not archived",
        host=_told("DaysIncomplete"),
    ),
)
