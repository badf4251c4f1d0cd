#!/usr/bin/env bash
# sox does not use the "fact" chunk it wrote itself, nor the LAME tag: IMA ADPCM and MP3 calls get longer.
#
# Expected: Microsoft, "Multimedia Data Standards Update" (April 1994): the fact chunk holds the length of the data in
#   samples; that is how a coding with whole blocks tells where the last block ends. The Info frame of LAME tells delay
#   and padding of an MP3 for the same reason.
# Seen: ten seconds at 8 kHz. sox writes IMA ADPCM with fact = 80000 and reads 80295 (0.037 s more, made of the padding
#   of the last block). MP3 by lame with an Info frame: sox reads 81216, soundfile, miniaudio, ffmpeg and lame 80000. MS
#   ADPCM and GSM written by sox are read rightly. soundfile reads 80295 too.
# Who meets it: whoever proves "nothing was lost" by comparing samples of original and conversion, or joins parts of a
#   call one after the other: each part adds a gap, and the clock of a long call drifts.
# What to do: take the length from fact or from the Info frame; compare with a tolerance of one block or MP3 frame.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
{ command -v sox && command -v lame; } >/dev/null ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends sox libsox-fmt-mp3 lame >/dev/null; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 miniaudio==1.71 numpy==2.4.6
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' sox lame # seen with 14.4.2+git20190427-3.5, 3.100-6
"$work/venv/bin/python" - <<'PY'
import struct, subprocess
import miniaudio, soundfile

def run(*args):
    return subprocess.run(args, capture_output=True, check=True).stdout

run("sox", "-n", "-r", "8000", "-b", "16", "call.wav", "synth", "10", "sine", "440", "vol", "0.3")
for coding, read in (("ima-adpcm", 80295), ("ms-adpcm", 80000), ("gsm-full-rate", 80000)):
    run("sox", "call.wav", "-e", coding, "coded.wav")
    data = open("coded.wav", "rb").read()
    fact = struct.unpack_from("<I", data, data.index(b"fact") + 8)[0]
    samples = len(run("sox", "coded.wav", "-t", "raw", "-e", "signed", "-b", "16", "-")) // 2
    print(f"{coding}: fact {fact}, sox {samples}, soundfile {soundfile.info('coded.wav').frames}")
    assert fact == 80000, "the file is another one"
    assert samples == read and soundfile.info("coded.wav").frames == read, f"changed: {coding}"
run("lame", "--quiet", "-b", "32", "call.wav", "call.mp3")
assert b"Info" in open("call.mp3", "rb").read(200), "the file has no Info frame"
samples = len(run("sox", "call.mp3", "-t", "raw", "-e", "signed", "-b", "16", "-")) // 2
others = soundfile.info("call.mp3").frames, miniaudio.decode_file("call.mp3", nchannels=1, sample_rate=8000).num_frames
print(f"mp3: sox {samples}, soundfile and miniaudio {others}")
assert others == (80000, 80000), "the file is another one"
assert samples == 81216, "changed: MP3"
PY
