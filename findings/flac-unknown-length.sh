#!/usr/bin/env bash
# Three readers, three lengths for a FLAC file that was streamed: 36 million years, 0 s, unknown.
#
# Expected: RFC 9639, section 8.2: "A value of 0 here means the number of total samples is unknown" – the usual case
#   for an encoder that writes to a pipe. A reader should say that it does not know, or count.
# Seen: soundfile.info() tells 9,223,372,036,854,775,807 samples, over 10^15 s at 8 kHz; mutagen and tinytag tell 0.0
#   s; PyAV says None, and decodes the 10 s that are there.
# Who meets it: whoever receives FLAC from a recorder or converter that streams, and stores or compares the length:
#   the one number overflows a database's interval or a progress bar, the other looks like an empty call.
# What to do: take 0 and 2^63-1 as "unknown"; count the samples by decoding, where the length matters.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  soundfile==0.14.0 mutagen==1.48.1 tinytag==2.3.2 av==18.1.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import av, mutagen, numpy, soundfile, tinytag

print("soundfile", soundfile.__version__, soundfile.__libsndfile_version__)

class Pipe:
    """A file that can't seek: the encoder can't go back to its header."""
    def __init__(self): self.written = b""
    def write(self, data): self.written += bytes(data); return len(data)

pipe = Pipe()
with av.open(pipe, "w", format="flac") as out:
    stream = out.add_stream("flac", rate=8000)
    stream.layout = "mono"
    tone = (8000 * numpy.sin(numpy.arange(80000) * 0.3)).astype(numpy.int16)
    for at in range(0, len(tone), 1600):
        frame = av.AudioFrame.from_ndarray(tone[None, at : at + 1600], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, at
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
open("call.flac", "wb").write(pipe.written)
assert int.from_bytes(pipe.written[21:26], "big") & 0xFFFFFFFFF == 0, "the header tells a length after all"

frames = soundfile.info("call.flac").frames
tags = mutagen.File("call.flac").info.length, tinytag.TinyTag.get("call.flac").duration
with av.open("call.flac") as there:
    told, decoded = there.duration, sum(frame.samples for frame in there.decode(audio=0))
print(f"soundfile {frames} samples, mutagen {tags[0]} s, tinytag {tags[1]} s, PyAV {told}, decoded {decoded} samples")
assert decoded == 80000 and told is None, "the file is another one"
assert frames == 2**63 - 1, "changed: soundfile"
assert tags == (0.0, 0.0), "changed: mutagen or tinytag"
PY
