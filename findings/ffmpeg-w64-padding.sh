#!/usr/bin/env bash
# ffmpeg counts the padding of a W64 file as audio: a µ-law call ends in a click at full volume.
#
# Expected: Sony's Wave64 format: chunks begin at multiples of 8 bytes, and a chunk's size is the header's and the
#   data's, without the bytes that fill up to there. libsndfile writes it so.
# Seen: 80,001 samples of µ-law: both ffmpeg 5.1.9 and 9.0.2 write a data chunk of 80,008 bytes, the last seven zeros;
#   zero in µ-law is -32124. ffmpeg, sox and soundfile all read 80,008 samples. The fact chunk of the same file tells
#   80001. With GSM (5.1.9) 250 blocks become 250 and 6 bytes: sox says "data chunk seems to be truncated", sox and
#   soundfile read 80,320 samples of 80,000.
# Who meets it: whoever keeps long recordings in W64 (over 4 GiB of PCM): a click at the end, a whole file called
#   truncated, and a hash of the audio that differs from the source's.
# What to do: cut at the samples of the fact chunk; write W64 with libsndfile, or take RF64.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
{ command -v ffmpeg && command -v sox; } >/dev/null ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends ffmpeg sox >/dev/null; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check imageio-ffmpeg==0.8.1 soundfile==0.14.0 numpy==2.4.6
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' ffmpeg sox # seen with 7:5.1.9-0+deb12u1, 14.4.2+git20190427-3.5
"$work/venv/bin/python" - <<'PY'
import struct, subprocess
import soundfile
from imageio_ffmpeg import get_ffmpeg_exe

def run(*args):
    return subprocess.run(args, capture_output=True, check=True)

def chunk(name):
    """Length and first eight bytes of a chunk: a GUID of 16 bytes that begins with the name, and a size with both."""
    data = open("call.w64", "rb").read()
    at = data.index(name + b"\xf3\xac\xd3\x11")
    return struct.unpack_from("<q", data, at + 16)[0] - 24, struct.unpack_from("<q", data, at + 24)[0]

newest = get_ffmpeg_exe()
print(run(newest, "-version").stdout.decode().splitlines()[0])
for exe in ("ffmpeg", newest):
    run(exe, "-v", "error", "-y", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=8000",
        "-af", "atrim=end_sample=80001", "-c:a", "pcm_mulaw", "call.w64")
    size, fact = chunk(b"data")[0], chunk(b"fact")[1]
    back = len(run(exe, "-v", "error", "-i", "call.w64", "-f", "s16le", "-").stdout) // 2
    sox = len(run("sox", "call.w64", "-t", "raw", "-e", "signed", "-b", "16", "-").stdout) // 2
    end = soundfile.read("call.w64", dtype="int16")[0][80001:].tolist()
    print(f"fact {fact}, data {size} bytes; ffmpeg reads {back}, sox {sox} samples; after the call: {end}")
    assert fact == 80001, "the file is another one"
    assert (size, back, sox) == (80008, 80008, 80008) and end == [-32124] * 7, "changed: ffmpeg's W64"
soundfile.write("call.w64", soundfile.read("call.w64")[0][:80001], 8000, subtype="ULAW", format="W64")
print("libsndfile's own data chunk:", chunk(b"data")[0], "bytes")
assert chunk(b"data")[0] == 80001, "changed: libsndfile's W64"
run("ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=8000:duration=10",
    "-c:a", "libgsm_ms", "call.w64")
said = run("soxi", "-s", "call.w64")
print("GSM:", said.stdout.decode().strip(), "samples;", said.stderr.decode().strip())
assert said.stdout.strip() == b"80320" and b"seems to be truncated" in said.stderr, "changed: GSM in W64"
PY
