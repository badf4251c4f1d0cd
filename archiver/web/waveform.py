"""The waveform as a picture: SVG from lowest and highest samples, a lane for each channel, in the text's own colour."""

from __future__ import annotations

from collections.abc import Sequence

#: Pixels of a lane; the picture is stretched to the width there is.
HEIGHT = 64


def svg(peaks: Sequence[Sequence[Sequence[int]]]) -> str:
    """The whole document; a part of a channel is one unit wide. Text of nobody is in it, only numbers."""
    lanes = max(1, len(peaks))
    width = max(1, *(len(lane) for lane in peaks), 1)
    drawn = "".join(_lane(lane, HEIGHT * number + HEIGHT // 2) for number, lane in enumerate(peaks))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT * lanes}"'
        f' preserveAspectRatio="none" fill="#3b7dd8">{drawn}</svg>'
    )


def _lane(lane: Sequence[Sequence[int]], middle: int) -> str:
    """One closed outline: along the highest samples, and back along the lowest; silence is a thin line."""
    if not lane:
        return ""
    scale = (HEIGHT // 2 - 2) / 32768
    above = [f"{x},{middle - max(0.5, most * scale):.1f}" for x, (_, most) in enumerate(lane)]
    below = [f"{x},{middle - min(-0.5, least * scale):.1f}" for x, (least, _) in enumerate(lane)]
    return f'<path d="M{" L".join(above)} L{" L".join(reversed(below))}Z"/>'
