#!/usr/bin/env bash
# dpkt and pyVoIP hand out an RTP packet's header extension and padding as if they were audio.
#
# Expected: RFC 3550, section 5.1: with the P bit the packet ends in padding octets "which are not part of the payload",
#   the last one tells how many; section 5.3.1: with the X bit a header extension stands before the payload and tells its
#   length.
# Seen: 20 bytes of µ-law with an extension of 8 bytes (audio level, RFC 6464) come out as 28 bytes, with padding of 4 as
#   24. dpkt reads both bits (properties x and p), but does not act on them. CSRC entries are skipped rightly by both.
#   The package rtp 0.0.4 skips the extension, and keeps the padding.
# Who meets it: whoever makes recordings from a capture (port mirror, SIPREC media): each packet of a WebRTC gateway or SBC
#   that sends extensions becomes a click, and the recording a twentieth longer than the call.
# What to do: cut extension and padding off oneself, by the two bits, before decoding.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dpkt==1.9.8 pyvoip==1.6.8 rtp==0.0.4
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import struct
from importlib.metadata import version
import dpkt, rtp
from pyVoIP.RTP import PayloadType, RTPMessage

print(*(f"{name} {version(name)}" for name in ("dpkt", "pyvoip", "rtp")))
audio = bytes(range(160, 180))

def packet(bits, before=b"", after=b""):
    return struct.pack("!BBHII", 0x80 | bits, 0, 7, 160, 0x1234) + before + audio + after

level = struct.pack("!HH", 0xBEDE, 1) + b"\x10\x7f\x00\x00"
packets = {
    "plain": packet(0),
    "CSRC": packet(0x01, before=struct.pack("!I", 99)),
    "extension": packet(0x10, before=level),
    "padding": packet(0x20, after=b"\x00\x00\x00\x04"),
}
lengths = {}
for name, raw in packets.items():
    one = bytes(dpkt.rtp.RTP(raw).data)
    two = bytes(RTPMessage(raw, {0: PayloadType.PCMU}).payload)
    three = bytes(rtp.RTP().fromBytes(raw).payload)
    lengths[name] = [len(payload) for payload in (one, two, three)]
    print(f"{name}: 20 bytes of audio; dpkt {len(one)}, pyVoIP {len(two)}, rtp {len(three)}")
    assert one == two and (three == audio) == (len(three) == 20)
assert lengths["plain"] == lengths["CSRC"] == [20, 20, 20], "changed: plain packets"
assert lengths["extension"] == [28, 28, 20], "changed: the extension"
assert lengths["padding"] == [24, 24, 24], "changed: the padding"
PY
