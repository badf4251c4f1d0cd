#!/usr/bin/env bash
# ffmpeg 5.1.9 and PyAV decode 0.112 s more of an M4A call than its edit list allows; ffmpeg 9.0.2 does not.
#
# Expected: ISO/IEC 14496-12, "Edit List Box": the edit list maps the presentation onto the media; what lies outside an
#   edit is not presented. That is how an AAC file (frames of 1,024 samples) tells its exact length.
# Seen: ffmpeg writes ten seconds at 8 kHz with an edit list of exactly 10.000 s, and ffprobe tells 10.000000. Decoding
#   gives 80,896 samples (10.112 s) with Debian 12's ffmpeg 5.1.9 and with PyAV 18.1 (ffmpeg 8.1.2 inside), 80,000 with
#   ffmpeg 9.0.2. The start is cut rightly by all three.
# Who meets it: whoever counts decoded samples to prove that a call is whole, or joins parts of a call: two tools of one
#   family differ by a tenth of a second, and each joined part adds a gap.
# What to do: take the length from the edit list (mvhd/elst), and cut the decoded samples to it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
command -v ffprobe >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends ffmpeg >/dev/null; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check imageio-ffmpeg==0.8.1 av==18.1.0
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' ffmpeg # seen with 7:5.1.9-0+deb12u1
"$work/venv/bin/python" - <<'PY'
import subprocess
import av
from imageio_ffmpeg import get_ffmpeg_exe

def run(*args):
    return subprocess.run(args, capture_output=True, check=True).stdout

newest = get_ffmpeg_exe()
print(run(newest, "-version").decode().splitlines()[0], "- PyAV", av.__version__, "with ffmpeg", av.ffmpeg_version_info)
for exe in ("ffmpeg", newest):
    run(exe, "-v", "error", "-y", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=8000:duration=10",
        "-c:a", "aac", "call.m4a")
    data = open("call.m4a", "rb").read()
    at = data.index(b"elst") + 12  # after version, flags and the number of edits
    edits, scale = int.from_bytes(data[at - 4 : at]), int.from_bytes(data[data.index(b"mvhd") + 16 :][:4])
    length = int.from_bytes(data[at : at + 4]) / scale
    told = run("ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", "call.m4a").decode().strip()
    decoded = [len(run(each, "-v", "error", "-i", "call.m4a", "-f", "s16le", "-")) // 2 for each in ("ffmpeg", newest)]
    with av.open("call.m4a") as there:
        decoded.append(sum(frame.samples for frame in there.decode(audio=0)))
    print(f"{edits} edit of {length} s, ffprobe {told} s, decoded: Debian's {decoded[0]}, newer {decoded[1]}, PyAV {decoded[2]}")
    assert (edits, length, told) == (1, 10.0, "10.000000"), "the file is another one"
    assert decoded == [80896, 80000, 80896], "changed: what is decoded"
PY
