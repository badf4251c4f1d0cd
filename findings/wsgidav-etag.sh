#!/usr/bin/env bash
# wsgidav gives two different files the same strong ETag, and PROPFIND tells it without its quotes.
#
# Expected: RFC 9110, section 8.8.1: a strong validator "changes value whenever a change occurs to the representation
#   data". RFC 4918, section 15.6: getetag holds the value of the ETag header, an entity-tag, which is quoted (RFC
#   9110, section 8.8.3). So a writer that sends If-Match never writes over what somebody else wrote meanwhile.
# Seen: the ETag is made of inode, size and whole seconds. Two PUTs of the same length within a second get the same
#   one, without W/ before it; If-Match with the first one's ETag then replaces the second file (204, not 412). The
#   quotes are in the header, not in PROPFIND.
# Who meets it: whoever lets several hosts write one manifest or state file over WebDAV and relies on If-Match;
#   whoever compares the ETag of a PUT with the one of a listing.
# What to do: never change a file in place; name files by their content. Strip quotes before comparing, and prove
#   content by reading it back.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check wsgidav==4.4.0 cheroot==11.1.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import http.client, os, re, socket, subprocess, sys, time
from importlib.metadata import version

print("wsgidav", version("wsgidav"))
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
os.mkdir("files")
server = subprocess.Popen(
    [os.path.join(os.path.dirname(sys.executable), "wsgidav"), "--host=127.0.0.1", f"--port={port}", "--root=files",
     "--auth=anonymous", "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def ask(method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()

try:
    for _ in range(300):
        try:
            ask("OPTIONS", "/")
            break
        except OSError:
            time.sleep(0.1)
    for _ in range(20):  # a second must not end between the two
        while time.time() % 1 > 0.1:
            time.sleep(0.01)
        began = int(time.time())
        one = ask("PUT", "/state", b"AAAA")[1]["ETag"]
        two = ask("PUT", "/state", b"BBBB")[1]["ETag"]
        if int(time.time()) == began:
            break
    listed = re.search(rb"getetag>([^<]*)<", ask("PROPFIND", "/state", Depth="0")[2])[1].decode()
    status, _, _ = ask("PUT", "/state", b"CCCC", If_Match=one)
    now = ask("GET", "/state")[2]
    print(f"PUT AAAA: {one}; PUT BBBB: {two}; PROPFIND: {listed}; PUT CCCC if it is still AAAA: {status}, now {now}")
    assert one == two and one.startswith('"'), "changed: the ETags differ or are weak"
    assert status == 204 and now == b"CCCC", "changed: If-Match"
    assert listed == two.strip('"'), "changed: the quotes in PROPFIND"
finally:
    server.kill()
    server.wait()
PY
