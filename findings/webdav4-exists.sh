#!/usr/bin/env bash
# webdav4's exists() lists the whole tree below a folder, or fails where a server allows no such listing.
#
# Expected: webdav4's documentation: "exists: checks whether the resource with the given path exists or not". A
#   question about one resource is PROPFIND with Depth: 0 (RFC 4918, section 9.1).
# Seen: exists(), isdir() and the check before upload_file() send PROPFIND without Depth. RFC 4918, section 9.1 reads
#   that as "Depth: infinity": the server walks everything below. exists("calls") over 300 recordings in 30 folders
#   fetches 331 answers; Apache and lighttpd, which refuse infinity by default (403), make it raise an error instead,
#   and lighttpd so makes every upload_file() fail.
# Who meets it: whoever asks "is last year's folder there" on an archive of a million recordings.
# What to do: send PROPFIND with Depth: 0 oneself (client.propfind(path, headers={"Depth": "0"})).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check webdav4==0.11.0 wsgidav==4.4.0 cheroot==11.1.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import os, re, socket, subprocess, sys, time
from importlib.metadata import version
import httpx
from webdav4.client import Client

print("webdav4", version("webdav4"))
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
for day in range(30):
    os.makedirs(f"files/calls/{day}")
    for call in range(10):
        open(f"files/calls/{day}/{call}.wav", "wb").close()
server = subprocess.Popen(
    [os.path.join(os.path.dirname(sys.executable), "wsgidav"), "--host=127.0.0.1", f"--port={port}", "--root=files",
     "--auth=anonymous", "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
seen = []

def note(answer):
    answer.read()
    seen.append((answer.request.method, answer.request.headers.get("Depth"), len(re.findall(r"<[^/>]*href>", answer.text))))

try:
    for _ in range(300):
        try:
            httpx.options(f"http://127.0.0.1:{port}/")
            break
        except httpx.TransportError:
            time.sleep(0.1)
    client = Client(f"http://127.0.0.1:{port}", event_hooks={"response": [note]})
    assert client.exists("calls") and client.isdir("calls")
    print("exists, isdir:", *seen)
    assert seen == [("PROPFIND", None, 331)] * 2, "changed: what exists() and isdir() ask for"
    seen.clear()
    client.propfind("calls", headers={"Depth": "0"})
    assert seen == [("PROPFIND", "0", 1)], "changed: Depth: 0"
finally:
    server.kill()
    server.wait()
PY
