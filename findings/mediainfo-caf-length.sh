#!/usr/bin/env bash
# MediaInfo tells 7.7 s for any longer telephone call in a CAF file.
#
# Expected: Apple's Core Audio Format Specification 1.0: the data chunk's size and the bytes and frames per packet in
#   "desc" tell the length of constant-rate audio; 8,000 bytes of µ-law are one second.
# Seen: a minute of µ-law at 8 kHz in CAF: MediaInfo tells 7680 ms, of 16-bit PCM 3840 ms: the
#   length of what fits in the first 64 KiB of the file. The same audio in WAV or AU: 60000. soundfile tells 60 s of the
#   CAF too. With the CAF that ffmpeg writes it is 8176 and 4088 ms (a shorter header), and Debian 12's MediaInfo 23.04
#   says the same. It calls µ-law "ADPCM" everywhere.
# Who meets it: whoever lists recordings of Apple softphones or voicemail by MediaInfo (many archives' file checks do):
#   every call of more than 8 s (4 s of PCM) seems to be cut to the same length.
# What to do: read the length with soundfile, or from "desc" and the size of "data"; a length that many files share is
#   the reader's limit, not the calls'.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pymediainfo==7.0.1 soundfile==0.14.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy, soundfile
from pymediainfo import MediaInfo

print("MediaInfoLib", MediaInfo._get_library()[2])
told = {}
for seconds in (5, 10, 60):
    tone = 0.3 * numpy.sin(numpy.arange(seconds * 8000) * 0.3)
    for name, subtype in (("ulaw.caf", "ULAW"), ("pcm.caf", "PCM_16"), ("ulaw.wav", "ULAW"), ("ulaw.au", "ULAW")):
        soundfile.write(name, tone, 8000, subtype=subtype)
        track = MediaInfo.parse(name).audio_tracks[0]
        told[name, seconds] = track.duration
        print(f"{name}, {seconds} s: soundfile {soundfile.info(name).duration} s, MediaInfo {track.duration} ms ({track.format})")
        assert soundfile.info(name).duration == seconds, "the file is another one"
for name in ("ulaw.wav", "ulaw.au"):
    assert abs(told[name, 60] - 60000) < 10, "changed: WAV or AU"
assert abs(told["ulaw.caf", 5] - 5000) < 10, "changed: a short CAF"
assert told["ulaw.caf", 10] == told["ulaw.caf", 60] and 7000 < told["ulaw.caf", 60] < 8300, "changed: µ-law in CAF"
assert told["pcm.caf", 60] < 4200, "changed: PCM in CAF"
PY
