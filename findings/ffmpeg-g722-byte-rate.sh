#!/usr/bin/env bash
# ffmpeg writes a G.722 recording into WAV with a byte rate twice too high.
#
# Expected: the WAV header's nAvgBytesPerSec is the average number of bytes a second (Microsoft, "WAVEFORMATEX
#   structure": "required average data-transfer rate"). G.722 at 64 kbit/s has 8,000 bytes a second, and RFC 2361
#   leaves the field's meaning as it is. A reader that knows no G.722 divides the data's length by that number.
# Seen: ffmpeg writes 16,000. Ten seconds, 80,000 bytes, then last 5 s by the header (Debian 12's MediaInfo
#   23.04 says 5 s). The "fact" chunk of the same file holds the right number of samples, 160,000 at 16,000 Hz.
#   Debian 12's ffmpeg 5.1.9 does it to IMA and Microsoft ADPCM as well, there four times too high.
# Who meets it: whoever keeps wideband calls that were remuxed by ffmpeg, and compares the length of the audio with
#   the length of the call.
# What to do: for anything but PCM and G.711 take the samples of the "fact" chunk, and the byte rate only where there
#   is none; never reject a recording for its byte rate.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check imageio-ffmpeg==0.8.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import struct, subprocess
from imageio_ffmpeg import get_ffmpeg_exe

exe = get_ffmpeg_exe()
print(subprocess.run([exe, "-version"], capture_output=True, text=True).stdout.splitlines()[0])
tone = "sine=frequency=440:sample_rate=16000:duration=10"
subprocess.run([exe, "-v", "error", "-f", "lavfi", "-i", tone, "-c:a", "g722", "call.wav"], check=True)

data, at, chunks = open("call.wav", "rb").read(), 12, {}
while at + 8 <= len(data):
    name, size = struct.unpack_from("<4sI", data, at)
    chunks[name] = data[at + 8 : at + 8 + size]
    at += 8 + size + (size & 1)
coding, channels, rate, byte_rate = struct.unpack_from("<HHII", chunks[b"fmt "])
(samples,) = struct.unpack("<I", chunks[b"fact"])
length = len(chunks[b"data"])
print(f"coding {coding:#06x}, {rate} Hz, {length} bytes, {samples} samples: {samples / rate} s")
print(f"byte rate {byte_rate}, so {length / byte_rate} s")
assert (coding, rate, samples, length) == (0x028F, 16000, 160000, 80000), "the file is another one"
assert byte_rate == 16000, "changed: the byte rate"
PY
