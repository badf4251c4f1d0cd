#!/usr/bin/env bash
# miniaudio opens G.722 and G.726 in WAV, tells half the length, and decodes nothing, without an error.
#
# Expected: a DecodeError for a coding that can't be decoded, as miniaudio raises it for GSM and G.723.1 in WAV; the
#   length by the format's own rate (both codings here have 32 or 64 kbit/s).
# Seen: ten seconds of G.722 or G.726 in WAV (formats 0x028F and 0x0045): get_file_info() tells 5.0 s and the
#   sample format UNKNOWN, decode_file() returns 0 samples. µ-law, A-law and ADPCM are decoded.
# Who meets it: whoever checks or transcribes calls of wideband phones (G.722) or DECT systems (G.726) with miniaudio:
#   "an empty call" in place of "a coding I don't know".
# What to do: take 0 samples of a file that has audio for an error; look at the format code in "fmt " first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
command -v ffmpeg >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends ffmpeg >/dev/null; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check miniaudio==1.71
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' ffmpeg # seen with 7:5.1.9-0+deb12u1
"$work/venv/bin/python" - <<'PY'
import struct, subprocess
import miniaudio

print("miniaudio", miniaudio.__version__)
for coding, rate, expected in (("pcm_mulaw", 8000, 80000), ("g722", 16000, 0), ("g726", 8000, 0),
                               ("libgsm_ms", 8000, "DecodeError"), ("g723_1", 8000, "DecodeError")):
    tone = f"sine=frequency=440:sample_rate={rate}:duration=10"
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", tone, "-c:a", coding, "call.wav"], check=True)
    there = len(subprocess.run(["ffmpeg", "-v", "error", "-i", "call.wav", "-f", "s16le", "-"],
                               capture_output=True, check=True).stdout) // 2
    assert 10 * rate <= there <= 10.1 * rate, "the file is another one"
    try:
        told = miniaudio.get_file_info("call.wav").duration
        samples = miniaudio.decode_file("call.wav", nchannels=1, sample_rate=rate).num_frames
    except miniaudio.DecodeError:
        told, samples = None, "DecodeError"
    code = struct.unpack_from("<H", open("call.wav", "rb").read(), 20)[0]
    print(f"{coding} (0x{code:04X}): ffmpeg {there} samples; miniaudio {told} s, {samples} samples")
    assert samples == expected, f"changed: {coding}"
    if expected == 0:
        assert told == 5.0, "changed: the length told"
PY
