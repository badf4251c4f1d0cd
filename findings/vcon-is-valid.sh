#!/usr/bin/env bash
# vcon calls a vCon invalid that tells of an unanswered call or of a transfer.
#
# Expected: IETF draft vCon container (draft-ietf-vcon-vcon-container), section on the Dialog Object: type is one of
#   recording, text, transfer and incomplete; transfer and incomplete have no content, so no media type either.
# Seen: is_valid() of vcon 0.3.10 (the newest that Python 3.11 gets) wants one of its own nine media types in every
#   dialog: "Dialog 0 has invalid mimetype: missing". And get_tag() cuts a value at its first colon: a SIP address
#   "sip:1001@pbx.example" comes back as "sip". (In the source of vcon 0.10.0, for Python 3.12, is_valid() knows both
#   types; get_tag() is the same.)
# Who meets it: whoever exports a call history with its missed and transferred calls, or checks what others export.
# What to do: don't take is_valid() for the draft's rules; read tags from the attachment itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check vcon==0.3.10
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version
from vcon import Vcon
from vcon.dialog import Dialog
from vcon.party import Party

print("vcon", version("vcon"))

def verdict(**fields):
    vcon = Vcon.build_new()
    for number in ("+15550100", "+15550101", "+15550102"):
        vcon.add_party(Party(tel=number))
    vcon.add_dialog(Dialog(start="2026-01-02T03:04:05Z", **fields))
    return vcon.is_valid()

recorded = verdict(type="recording", parties=[0, 1], mimetype="audio/x-wav", body="UklGRg", encoding="base64url")
missed = verdict(type="incomplete", parties=[0, 1], disposition="no-answer")
passed = verdict(type="transfer", parties=[0, 1, 2], transferor=0, transferee=1, transfer_target=2)
vcon = Vcon.build_new()
vcon.add_tag("caller", "sip:1001@pbx.example")
print("recording:", *recorded), print("incomplete:", *missed), print("transfer:", *passed)
print("tag sip:1001@pbx.example is read as", vcon.get_tag("caller"))
assert recorded == (True, []), "changed: a recording"
for answer in (missed, passed):
    assert answer == (False, ["Dialog 0 has invalid mimetype: missing"]), "changed: what is valid"
assert vcon.get_tag("caller") == "sip", "changed: get_tag()"
PY
