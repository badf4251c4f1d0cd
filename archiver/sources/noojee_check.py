"""Is Noojee's audio where ``audio_path`` says? No published page tells its address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ..errors import BadData, Gone, NotReady, TryAgain
from ..model import Availability, Medium, Recording
from ..ports import Sink
from .kit.sinks import sampled


async def audio_problem(
    fetch: Callable[[Medium, Sink], Awaitable[None]], known: Sequence[Recording], said: list[str]
) -> str | None:
    """What is wrong with the audio of one leg of these calls; what is right goes to ``said``. Raises Refused."""
    medium = next((m for r in reversed(known) for m in r.media if m.availability is Availability.READY), None)
    if medium is None:
        return None
    which = f"the audio of leg {medium.ref['leg']} of call {medium.recording_id}"
    try:
        size, found = await sampled(partial(fetch, medium))
    except (NotReady, BadData, Gone) as error:
        return f"{which} is not there: is audio_path right? ({error})"
    except TryAgain as error:
        return f"{which} can't be had ({error})"
    if found.ext == "bin":
        return f"{which} came as {size} bytes that are no audio we know: is audio_path right?"
    said.append(f"audio comes as {found.content_type}")
    return None
