#!/usr/bin/env bash
# ffmpeg of Debian 12 writes a WebM from telephone audio whose two start delays differ: 1.08 ms and 6.5 ms.
#
# Expected: the Matroska codec specification (draft-ietf-cellar-codec, A_OPUS): CodecDelay is the pre-skip of OpusHead,
#   "converted to nanoseconds". RFC 7845, section 5.1: the pre-skip counts samples at 48 kHz, whatever the input was.
# Seen: the pre-skip is 312 samples, 6.5 ms. ffmpeg 5.1.9 takes the encoder's delay, counted at the input's rate, for one
#   at 48 kHz: CodecDelay is 1,083,333 ns for 8 kHz, 2,166,667 for 16 kHz, right only at 48 kHz. ffmpeg 9.0.2 writes
#   6,500,000 for all.
# Who meets it: whoever joins or aligns WebM recordings (browser phones) by CodecDelay, or checks files against the
#   specification: parts shift by 5 ms, and a strict reader calls the archive's own conversion broken.
# What to do: convert with a newer ffmpeg, or resample to 48 kHz first; read the pre-skip from OpusHead.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
command -v ffmpeg >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends ffmpeg >/dev/null; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check imageio-ffmpeg==0.8.1
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' ffmpeg # seen with 7:5.1.9-0+deb12u1
"$work/venv/bin/python" - <<'PY'
import struct, subprocess
from imageio_ffmpeg import get_ffmpeg_exe

newest = get_ffmpeg_exe()
print(subprocess.run([newest, "-version"], capture_output=True, text=True).stdout.splitlines()[0])

def delays(exe, rate):
    """CodecDelay and the pre-skip of OpusHead, both in nanoseconds."""
    tone = f"sine=frequency=440:sample_rate={rate}:duration=2"
    subprocess.run([exe, "-v", "error", "-y", "-f", "lavfi", "-i", tone, "-c:a", "libopus", "call.webm"], check=True)
    data = open("call.webm", "rb").read()
    at = data.index(b"\x56\xaa")  # the id of CodecDelay; its size and value follow
    delay = int.from_bytes(data[at + 3 : at + 3 + (data[at + 2] & 0x7F)], "big")
    skip = struct.unpack_from("<H", data, data.index(b"OpusHead") + 10)[0]
    return delay, round(skip * 1e9 / 48000)

for exe, name, seen in (("ffmpeg", "Debian's", {8000: 1083333, 16000: 2166667, 48000: 6500000}),
                        (newest, "newer", {8000: 6500000, 16000: 6500000, 48000: 6500000})):
    for rate, expected in seen.items():
        delay, skip = delays(exe, rate)
        print(f"{name} at {rate} Hz: CodecDelay {delay} ns, pre-skip {skip} ns")
        assert skip == 6500000, "the file is another one"
        assert delay == expected, "changed: CodecDelay"
PY
