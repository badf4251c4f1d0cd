#!/usr/bin/env bash
# lame writes no Info frame into telephone MP3 (8 kHz, 16 kbit/s), without a word.
#
# Expected: lame's manual: "-t: disable writing of the INFO Tag on encoding" – so the tag is written unless -t is
#   given. It tells frames, bytes, delay and padding, and with it a reader sees whether a file is whole.
# Seen: at 24 kbit/s and above the tag is there. At 8 and 16 kbit/s a frame has 72 or 144 bytes, too few for the tag;
#   lame then leaves it out: same bytes as with -t, exit code 0, no message.
# Who meets it: recorders that store mono calls at 8 or 16 kbit/s. Such a file that is cut between two frames looks
#   whole to every reader, and its length is 0.15 s too long, for the delay is not told.
# What to do: trust the length and the hash of the download, not the file; compare the length with the call's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
command -v lame >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends lame >/dev/null; }
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' lame # seen with 3.100-6
python3 - <<'PY'
import math, struct, subprocess, wave

with wave.open("call.wav", "wb") as out:
    out.setnchannels(1), out.setsampwidth(2), out.setframerate(8000)
    out.writeframes(b"".join(struct.pack("<h", int(8000 * math.sin(i * 0.3))) for i in range(80000)))

def encode(name, *options):
    done = subprocess.run(["lame", "--quiet", *options, "call.wav", name], check=True, capture_output=True)
    assert not done.stdout + done.stderr, "changed: lame says something"
    return open(name, "rb").read()

for kbits in (8, 16, 24, 32):
    plain, without = encode("a.mp3", "-b", str(kbits)), encode("b.mp3", "-t", "-b", str(kbits))
    tagged = b"Info" in plain[:200]
    print(f"{kbits} kbit/s: Info frame {'written' if tagged else 'missing'}")
    assert tagged == (kbits >= 24), "changed: where the tag is written"
    assert tagged or plain == without, "changed: the file without a tag"
PY
