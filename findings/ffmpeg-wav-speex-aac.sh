#!/usr/bin/env bash
# ffmpeg writes Speex and AAC into WAV, exit code 0, and can't read them back: ten seconds become less than one or two.
#
# Expected: a coding that does not fit a container ends in an error, as G.726 in AU does ("-c:a g726 call.au"). What
#   ffmpeg writes without an error, ffmpeg should read.
# Seen: with Debian 12's ffmpeg 5.1.9 both files are written without an error, and ffprobe tells 10.0 s. Decoding gives
#   480 samples of 80,000 for Speex (0.06 s), a sixth for AAC. The reason: WAV keeps no packet borders, and the reader
#   cuts the data at the block size of the header. The exit code of decoding is 0 too, messages only on stderr.
# Who meets it: whoever re-wraps Speex or AAC calls into "WAV" because a player or a records policy wants WAV, and then
#   deletes the source: the bytes are there, but no tool can play them.
# What to do: keep Speex in Ogg and AAC in MP4 or ADTS; decode what you converted, and compare samples, before the
#   original goes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
command -v ffprobe >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends ffmpeg >/dev/null; }
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' ffmpeg # seen with 7:5.1.9-0+deb12u1
python3 - <<'PY'
import subprocess

def run(*args):
    return subprocess.run(args, capture_output=True, check=True)

tone = "sine=frequency=440:sample_rate=8000:duration=10"
kept = {}
for coding, name in (("libspeex", "call.ogg"), ("libspeex", "call.wav"), ("aac", "call.m4a"), ("aac", "call.wav")):
    said = run("ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", tone, "-c:a", coding, name).stderr
    told = float(run("ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", name).stdout)
    samples = len(run("ffmpeg", "-v", "error", "-i", name, "-f", "s16le", "-").stdout) // 2
    print(f"{coding} in {name}: ffprobe {told:.2f} s, decoded {samples / 8000:.2f} s")
    assert not said, "changed: ffmpeg says something"
    assert 9.9 < told < 10.2, "changed: what ffprobe tells"
    kept[coding, name] = samples / 8000
assert kept["libspeex", "call.ogg"] > 9.9 and kept["aac", "call.m4a"] > 9.9, "the files are others"
assert kept["libspeex", "call.wav"] < 0.1, "changed: Speex in WAV"
assert kept["aac", "call.wav"] < 2, "changed: AAC in WAV"
PY
