#!/usr/bin/env bash
# libsndfile reads only the first part of a chained Ogg file, without a word.
#
# Expected: RFC 3533, section 4: logical bitstreams may follow each other in one file ("sequentially multiplexed",
#   "chaining"); RFC 7845, section 7.2 tells how to chain Opus. A recorder that pauses (hold, card payment) and goes
#   on may begin a new link. A decoder should play all of them.
# Seen: of two links of 10 s each soundfile tells and returns 10 s, for Opus and Vorbis; mutagen and tinytag tell 10
#   s. PyAV (ffmpeg) decodes 20 s, though its "duration" says 10 too. So do opusdec and ogg123: 20 s. SoX reads Vorbis
#   the same short way ("hole in stream; probably harmless").
# Who meets it: whoever transcribes, converts or measures recordings with soundfile (most speech software does): the
#   second half of the call is missing from the result, and no tool says so.
# What to do: walk the pages and count the links; decode with ffmpeg or opusdec; never replace the original.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  soundfile==0.14.0 av==18.1.0 mutagen==1.48.1 tinytag==2.3.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import av, mutagen, numpy, soundfile, tinytag

print("soundfile", soundfile.__version__, soundfile.__libsndfile_version__)
rate = 16000
for subtype in ("OPUS", "VORBIS"):
    links = b""
    for tone in (0.03, 0.05):
        sound = 0.3 * numpy.sin(numpy.arange(10 * rate) * tone)
        soundfile.write("link.ogg", sound, rate, format="OGG", subtype=subtype)
        links += open("link.ogg", "rb").read()
    open("call.ogg", "wb").write(links)
    read, read_rate = soundfile.read("call.ogg")
    with av.open("call.ogg") as there:
        decoded = sum(frame.samples / frame.sample_rate for frame in there.decode(audio=0))
    tags = mutagen.File("call.ogg").info.length, tinytag.TinyTag.get("call.ogg").duration
    print(f"{subtype}: soundfile {len(read) / read_rate:.1f} s, mutagen and tinytag {tags[0]:.1f}, {tags[1]:.1f} s,"
          f" PyAV decodes {decoded:.1f} s")
    assert 19.9 < decoded < 20.1, "the file is another one"
    assert 9.9 < len(read) / read_rate < 10.1, "changed: soundfile reads on"
    assert all(9.9 < told < 10.1 for told in tags), "changed: what the tag readers tell"
PY
