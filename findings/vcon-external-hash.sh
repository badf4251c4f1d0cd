#!/usr/bin/env bash
# vcon: the hash that add_external_data() gives a recording is not the recording's hash, and its URL is lost.
#
# Expected: IETF draft vCon container (draft-ietf-vcon-vcon-container), externally referenced files: the url is given,
#   with a hash of the file's content, so that whoever fetches it later can see that it is still the same.
# Seen: vcon 0.3.10 (the newest that Python 3.11 gets) decodes the WAV as text first, replaces what is no text, and
#   hashes that: "sha256" of other bytes than the file's. The dialog has no "url" at all, so is_external_data() says
#   False. is_valid() finds no fault. (The source of vcon 0.10.0, for Python 3.12, hashes the bytes.)
# Who meets it: whoever hands call recordings over as vCon: every receiver that checks finds all of them damaged; one
#   that does not check can't fetch them.
# What to do: set url, alg and signature oneself from the bytes: Dialog(..., url=..., alg="sha256", signature=...).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check vcon==0.3.10
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import base64, hashlib, http.server, threading, wave
from importlib.metadata import version
from vcon import Vcon
from vcon.dialog import Dialog
from vcon.party import Party

print("vcon", version("vcon"))
with wave.open("call.wav", "wb") as out:
    out.setnchannels(1), out.setsampwidth(2), out.setframerate(8000)
    out.writeframes(bytes(range(256)) * 40)

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
dialog = Dialog(type="recording", start="2026-01-02T03:04:05Z", parties=[0])
dialog.add_external_data(f"http://127.0.0.1:{server.server_port}/call.wav", "call.wav", "audio/x-wav")
vcon = Vcon.build_new()
vcon.add_party(Party(tel="+15550100"))
vcon.add_dialog(dialog)
told = vcon.dialog[0]
right = base64.urlsafe_b64encode(hashlib.sha256(open("call.wav", "rb").read()).digest()).decode()
print(f"alg {told['alg']}, the file's hash {right}, told {told['signature']}")
print("fields:", *told, "- external:", dialog.is_external_data(), "- valid:", vcon.is_valid()[0])
assert told["alg"] == "sha256" and told["signature"] != right, "changed: the hash"
assert "url" not in told and not dialog.is_external_data(), "changed: the url"
assert vcon.is_valid()[0], "changed: is_valid()"
server.shutdown()
PY
