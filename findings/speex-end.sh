#!/usr/bin/env bash
# Two Speex decoders, two ends: each reads 80,000 samples only of its own encoder's file.
#
# Expected: RFC 5574 and the Speex manual, "Ogg file format": the granule position of the last page tells the number of
#   samples; what the last frame holds beyond it is cut. RFC 3533, section 6: the granule position is the place where a
#   decoder has got to.
# Seen: ten seconds at 8 kHz. speexenc's file: speexdec gives 80000, ffmpeg 5.1.9 (and PyAV 18.1) 80160. ffmpeg's file:
#   ffmpeg gives 80000, speexdec 79920: ffmpeg's last granule is 79960, 40 short, and speexdec
#   gives another 40 less. MediaInfo, mutagen and tinytag tell 9.995 s of it.
# Who meets it: archives of older recorders (Speex was the cheap codec for years), when they convert to another format
#   or re-encode, and compare the length with the call's.
# What to do: allow one frame (20 ms) at the end; don't call a Speex file cut for less.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
{ command -v ffmpeg && command -v speexenc; } >/dev/null ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends ffmpeg speex >/dev/null; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mutagen==1.48.1 tinytag==2.3.2
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' ffmpeg speex # seen with 7:5.1.9-0+deb12u1, 1.2.1-2
"$work/venv/bin/python" - <<'PY'
import struct, subprocess, wave
import mutagen, tinytag

def run(*args):
    return subprocess.run(args, capture_output=True, check=True).stdout

run("ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=8000:duration=10", "call.wav")
run("speexenc", "-n", "call.wav", "speexenc.ogg")
run("ffmpeg", "-v", "error", "-i", "call.wav", "-c:a", "libspeex", "ffmpeg.ogg")
seen = {}
for name in ("speexenc.ogg", "ffmpeg.ogg"):
    data = open(name, "rb").read()
    granule = struct.unpack_from("<q", data, data.rindex(b"OggS") + 6)[0]
    run("speexdec", name, "back.wav")
    with wave.open("back.wav") as back:
        one = back.getnframes()
    two = len(run("ffmpeg", "-v", "error", "-i", name, "-f", "s16le", "-")) // 2
    tags = mutagen.File(name).info.length, tinytag.TinyTag.get(name).duration
    print(f"{name}: last granule {granule}, speexdec {one} samples, ffmpeg {two}, mutagen and tinytag {tags}")
    seen[name] = granule, one, two
assert seen["speexenc.ogg"][1:] == (80000, 80160), "changed: speexenc's file"
assert seen["ffmpeg.ogg"][1:] == (79920, 80000), "changed: ffmpeg's file"
PY
