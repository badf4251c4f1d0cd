#!/usr/bin/env bash
# lame turns a G.722 WAV into half a second of noise, and ends with 0.
#
# Expected: lame's manual says that it reads WAV, and asks for -r ("Assume the input file is raw pcm") before it takes
#   a file for headerless samples. A WAV whose coding it does not know should end in an error.
# Seen: without -r, lame takes the whole file, header included, for 16-bit stereo at 44,100 Hz. Ten seconds of speech
#   become half a second of hiss. Exit code 0; --quiet prints nothing. The same with G.726 and G.723.1. µ-law, A-law,
#   GSM and ADPCM in WAV are decoded rightly, so a converter works for years until such a file comes.
# Who meets it: whoever converts recordings to MP3 before or while archiving, and then deletes the original.
# What to do: keep the recorder's own bytes; look at the coding in "fmt " before lame; compare both lengths after it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
command -v lame >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends lame >/dev/null; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 mutagen==1.48.1 numpy==2.4.6
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' lame # seen with 3.100-6
"$work/venv/bin/python" - <<'PY'
import subprocess
import av, mutagen, numpy

def write(name, coding, rate):
    tone = (8000 * numpy.sin(numpy.arange(10 * rate) * 0.3)).astype(numpy.int16)
    with av.open(name, "w") as out:
        stream = out.add_stream(coding, rate=rate)
        stream.layout = "mono"
        for at in range(0, len(tone), 1600):
            frame = av.AudioFrame.from_ndarray(tone[None, at : at + 1600], format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))

for coding, rate in (("pcm_mulaw", 8000), ("g722", 16000)):
    write("call.wav", coding, rate)
    with av.open("call.wav") as there:
        length = there.duration / av.time_base
    done = subprocess.run(["lame", "--quiet", "call.wav", "call.mp3"], capture_output=True)
    mp3 = mutagen.File("call.mp3").info
    print(f"{coding}: {length:.1f} s of WAV, exit {done.returncode}, MP3 {mp3.length:.2f} s, {mp3.sample_rate} Hz")
    assert length == 10 and done.returncode == 0 and not done.stderr, "changed: lame's verdict"
    if coding == "g722":
        assert mp3.sample_rate == 44100 and 0.3 < mp3.length < 0.6, "changed: what lame makes of it"
    else:
        assert mp3.sample_rate == 8000 and 10 <= mp3.length < 10.3, "changed: µ-law"
PY
