#!/usr/bin/env bash
# wsgidav cuts the Destination of MOVE at a ? or ; that belongs to the name, and answers 201.
#
# Expected: RFC 4918, section 10.3: Destination is a URI or a path; RFC 3986, section 2.4: a URI is parted at its
#   delimiters first, and decoded then, so that %3F and %3B are letters of a name. PUT, GET and MKCOL take them so.
# Seen: the header is decoded first and parted then. MOVE to "a%3Bb.wav" is 201, and the file lies under "a"; to
#   "what%3F/b.wav", in a folder that is there, is 201, and it lies beside the folder, under "what". With
#   Overwrite: F the next such file is refused (412), because the name that was not asked for is taken; without it,
#   it replaces the one before. COPY does the same. "#", ":", "&", "," and "%" are kept.
# Who meets it: whoever uploads under a temporary name and MOVEs, with names that come from elsewhere: subjects,
#   queries, SIP URIs (sip:200@pbx;transport=udp).
# What to do: percent-encode such names once more, so that the name itself holds %3B; and look at the target after
#   MOVE or COPY.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check wsgidav==4.4.0 cheroot==11.1.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import http.client, os, socket, subprocess, sys, time
from importlib.metadata import version
from urllib.parse import quote

print("wsgidav", version("wsgidav"))
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
os.mkdir("files")
server = subprocess.Popen(
    [os.path.join(os.path.dirname(sys.executable), "wsgidav"), "--host=127.0.0.1", f"--port={port}", "--root=files",
     "--auth=anonymous", "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def ask(method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()

def brought(method, name, overwrite="F"):
    """What the server says to it, and what lies under the name then."""
    path = "/" + quote(name)
    assert ask("PUT", "/upload", name.encode())[0] in (201, 204)
    status, _ = ask(method, "/upload", Destination=f"http://127.0.0.1:{port}{path}", Overwrite=overwrite)
    return status, ask("GET", path)[0]

def files():
    return sorted(os.path.join(folder, name)[6:] for folder, _, names in os.walk("files") for name in names)

try:
    for _ in range(300):
        try:
            ask("OPTIONS", "/")
            break
        except OSError:
            time.sleep(0.1)
    kept = {name: brought("MOVE", name) for name in ("#1.wav", "1:2.wav", "1&2,3.wav", "1%3B2.wav")}
    assert ask("MKCOL", "/what%3F")[0] == 201 and ask("PUT", "/direct%3F%3B", b"x")[0] == 201
    cut = brought("MOVE", "a;b.wav"), brought("MOVE", "what?/b.wav"), brought("COPY", "copied;b.wav")
    second, replaced = brought("MOVE", "a;c.wav"), brought("MOVE", "a;d.wav", "T")
    print(f"kept: {kept}; cut (answer to MOVE, to GET after it): {cut}; a second one: {second}, with Overwrite: T "
          f"{replaced}; files: {files()}")
    assert set(kept.values()) == {(201, 200)}, "changed: other marks"
    assert cut == ((201, 404),) * 3, "changed: the Destination"
    assert second == (412, 404) and replaced == (204, 404), "changed: the second one"
    assert {"a", "what", "copied", "direct?;"} <= set(files()), "changed: where it lies"
    assert ask("GET", "/a")[1] == b"a;d.wav", "changed: what was replaced"
finally:
    server.kill()
    server.wait()
PY
