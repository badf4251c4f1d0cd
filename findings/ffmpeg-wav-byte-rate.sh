#!/usr/bin/env bash
# ffmpeg writes G.722 and ADPCM recordings into WAV with a byte rate two and four times too high.
#
# Expected: the WAV header's nAvgBytesPerSec is the "required average data-transfer rate, in bytes per second" (Microsoft,
#   "WAVEFORMATEX structure"). G.722 at 64 kbit/s has 8,000 bytes a second, IMA ADPCM at 8 kHz about 4,060. A reader that
#   does not know the coding divides the length of the data by that number.
# Seen: both get 16,000, the rate of 16-bit samples at 8 kHz. Ten seconds then last 5 s and 2.6 s by the header (Debian
#   12's MediaInfo 23.04 says so). The "fact" chunk of the same files holds the right number of samples. ffmpeg 9.0.2
#   writes ADPCM rightly (4,013) and G.722 as before; PyAV 18.1 writes 0 for both.
# Who meets it: whoever compares the length of the audio with the length of the call: good recordings look cut.
# What to do: for anything but PCM and G.711 take the samples of the "fact" chunk; the byte rate only where there is no
#   such chunk; never call a recording short for its byte rate alone.
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

def header(exe, coding, rate):
    tone = f"sine=frequency=440:sample_rate={rate}:duration=10"
    subprocess.run([exe, "-v", "error", "-y", "-f", "lavfi", "-i", tone, "-c:a", coding, "call.wav"], check=True)
    data, at, chunks = open("call.wav", "rb").read(), 12, {}
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        chunks[name] = data[at + 8 : at + 8 + size]
        at += 8 + size + (size & 1)
    byte_rate = struct.unpack_from("<I", chunks[b"fmt "], 8)[0]
    length, samples = len(chunks[b"data"]), struct.unpack("<I", chunks[b"fact"])[0]
    print(f"{coding}: {length} bytes at {byte_rate} a second: {length / byte_rate:.2f} s; fact: {samples / rate:.2f} s")
    assert 10 <= samples / rate < 10.3, "the file is another one"
    return length, byte_rate

assert header("ffmpeg", "g722", 16000) == (80000, 16000), "changed: G.722"
assert header("ffmpeg", "adpcm_ima_wav", 8000) == (40960, 16000), "changed: ADPCM"
assert header(newest, "g722", 16000) == (80000, 16000), "changed: G.722 by the newer ffmpeg"
assert header(newest, "adpcm_ima_wav", 8000) == (40960, 4013), "changed: ADPCM by the newer ffmpeg"
PY
