#!/usr/bin/env bash
# filetype and puremagic do not know telephone MP3: at 8 kHz it is MPEG 2.5, whose frames begin with FF E3.
#
# Expected: filetype's README lists "mp3 - audio/mpeg" among the types it knows, puremagic's table has it too. A
#   frame's sync word is 11 bits, the next two bits tell the version, and 00 is MPEG 2.5 (the common extension of ISO
#   13818-3 for 8, 11.025 and 12 kHz). So FF E2 and FF E3 are MP3 as much as FF FB is.
# Seen: the same tone without an ID3 tag: at 44.1 kHz (FF FB) both say audio/mpeg, at 16 kHz (FF F3) only filetype, at
#   8 kHz neither: filetype answers None, puremagic nothing. libmagic ("file"): "MPEG ADTS, layer III, v2.5".
# Who meets it: whoever checks "is this really audio" by magic bytes before storing: 8 kHz is what telephones have.
# What to do: look for several frames in a row, all three MPEG versions, or ask libmagic.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check filetype==1.2.0 puremagic==1.30 lameenc==1.9.0
"$work/venv/bin/python" - <<'PY'
import array, math
from importlib.metadata import version
import filetype, lameenc, puremagic

print("filetype", version("filetype"), "puremagic", version("puremagic"))
seen = {}
for rate in (44100, 16000, 8000):
    tone = array.array("h", (int(8000 * math.sin(i * 0.3)) for i in range(rate)))
    encoder = lameenc.Encoder()
    encoder.set_in_sample_rate(rate), encoder.set_out_sample_rate(rate)
    encoder.set_channels(1), encoder.set_bit_rate(32 if rate < 44100 else 64), encoder.set_quality(7)
    encoder.silence()
    mp3 = bytes(encoder.encode(tone.tobytes()) + encoder.flush())
    one = filetype.guess_mime(mp3)
    try:
        two = [hit.mime_type for hit in puremagic.magic_string(mp3) if "mpeg" in hit.mime_type]
    except puremagic.PureError:
        two = []
    print(f"{rate} Hz, first bytes {mp3[:2].hex(' ')}: filetype {one}, puremagic {two}")
    seen[rate] = mp3[:2].hex(), one, bool(two)
assert seen[44100] == ("fffb", "audio/mpeg", True), "changed: music MP3"
assert seen[16000] == ("fff3", "audio/mpeg", False), "changed: MPEG 2"
assert seen[8000] == ("ffe3", None, False), "changed: MPEG 2.5 is known now"
PY
