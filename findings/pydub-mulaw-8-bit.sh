#!/usr/bin/env bash
# pydub decodes µ-law and A-law to 8 bits: quiet speech becomes silence.
#
# Expected: ITU-T G.711: 8 coded bits stand for 14 (µ-law) or 13 (A-law) linear ones. Every other decoder gives 16-bit
#   samples, and pydub's API documentation says of sample_width only "number of bytes in each sample".
# Seen: pydub takes the 8 coded bits for the width of the sample and has ffmpeg decode to 8-bit PCM. A tone of -52
#   dBFS, quiet but well audible, comes back as zeros (rms 0); soundfile gives it back. A loud tone loses eight bits,
#   without a message.
# Who meets it: whoever searches recordings for silence, one-way audio or a dead channel with pydub: a far-away
#   speaker is called silent.
# What to do: decode G.711 with ffmpeg, soundfile or audioop to 16 bits first, and hand pydub those.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
command -v ffprobe >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends ffmpeg >/dev/null; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pydub==0.25.1 soundfile==0.14.0 numpy==2.4.6
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' ffmpeg # seen with 7:5.1.9-0+deb12u1
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version
import numpy, soundfile
from pydub import AudioSegment

print("pydub", version("pydub"))
for subtype in ("ULAW", "ALAW"):
    quiet = 80 / 32768 * numpy.sin(numpy.arange(16000) * 0.3)
    soundfile.write("call.wav", quiet, 8000, subtype=subtype)
    right = soundfile.read("call.wav", dtype="int16")[0]
    heard = AudioSegment.from_file("call.wav")
    print(f"{subtype}: soundfile peak {abs(right).max()} of 32768; pydub {heard.sample_width} byte a sample,"
          f" peak {heard.max}, rms {heard.rms}")
    assert 70 <= abs(right).max() <= 90, "the file is another one"
    assert (heard.sample_width, heard.rms) == (1, 0), "changed: pydub decodes to more bits"
PY
