#!/usr/bin/env bash
# mutagen tells a length of 0.03 s for ten seconds of WAV49 (GSM 06.10 in WAV), and no error.
#
# Expected: "info.length: audio length, in seconds" (mutagen's documentation, class WaveStreamInfo). The file has all
#   that is needed: the byte rate in "fmt " and the samples in "fact" (Microsoft, "Multimedia Data Standards Update",
#   April 1994: a fact chunk is required for every coding but PCM).
# Seen: mutagen divides the data by the block size, as if each block were one sample. One block of GSM has 320
#   samples, one of IMA ADPCM 505. libsndfile and tinytag tell 10 s for the same files.
# Who meets it: WAV49 is Asterisk's small WAV; ADPCM comes from many recorders. Whoever drops "calls shorter than a
#   second" by this number drops all of them.
# What to do: read the length of compressed WAV from "fact" and the sample rate, or with libsndfile (soundfile.info).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  mutagen==1.48.1 soundfile==0.14.0 tinytag==2.3.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import mutagen, numpy, soundfile, tinytag

print("mutagen", mutagen.version_string)
tone = 0.3 * numpy.sin(numpy.arange(80000) * 0.3)
for subtype, wrong in (("GSM610", 0.03), ("IMA_ADPCM", 0.02), ("MS_ADPCM", 0.02)):
    soundfile.write("call.wav", tone, 8000, subtype=subtype)
    right = soundfile.info("call.wav").duration
    tiny = tinytag.TinyTag.get("call.wav").duration
    told = mutagen.File("call.wav").info.length
    print(f"{subtype:10} soundfile {right:.2f} s, tinytag {tiny:.2f} s, mutagen {told:.3f} s")
    assert 10 <= right < 10.1 and 10 <= tiny < 10.1, "the file is another one"
    assert abs(told - wrong) < 0.005, "changed: mutagen's length"
PY
