#!/usr/bin/env bash
# asgi-webdav answers HEAD with Content-Length: 0 and text/html, whatever the file is.
#
# Expected: RFC 9110, section 8.6: a server "MUST NOT send Content-Length" in an answer to HEAD "unless its field
#   value equals the decimal number of octets that would have been sent" for GET; section 9.3.2: HEAD sends GET's
#   fields.
# Seen: a WAV of 1,004 bytes: GET tells 1004 and audio/x-wav, PROPFIND too; HEAD tells 0 and text/html. It also
#   ignores If-None-Match: * on PUT and writes over the file (RFC 9110, section 13.1.2: 412).
# Who meets it: whoever checks an upload by HEAD: every recording looks empty, and is sent again and again.
# What to do: take the size from PROPFIND (getcontentlength), and the hash from a GET.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'ASGIWebDAV[standalone]==2.1.0'
cd "$work"
"$work/venv/bin/python" - <<'PY'
import base64, http.client, os, re, socket, subprocess, sys, time
from importlib.metadata import version

print("asgi-webdav", version("ASGIWebDAV"))
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
os.mkdir("files")
server = subprocess.Popen(
    [os.path.join(os.path.dirname(sys.executable), "asgi-webdav"), "-H", "127.0.0.1", "-P", str(port),
     "-u", "writer", "secret", "-r", "files"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def ask(method, path, body=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers["Authorization"] = "Basic " + base64.b64encode(b"writer:secret").decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()

try:
    for _ in range(300):
        try:
            ask("OPTIONS", "/")
            break
        except OSError:
            time.sleep(0.1)
    ask("PUT", "/call.wav", b"RIFF" + bytes(1000))
    get, head = ask("GET", "/call.wav"), ask("HEAD", "/call.wav")
    listed = re.search(rb"getcontentlength>(\d+)<", ask("PROPFIND", "/call.wav", Depth="0")[2])[1]
    again = ask("PUT", "/call.wav", b"other", If_None_Match="*")[0], ask("GET", "/call.wav")[2]
    for name, answer in (("GET", get), ("HEAD", head)):
        print(name, answer[0], answer[1]["Content-Length"], answer[1]["Content-Type"])
    print("PROPFIND", listed.decode(), "- PUT with If-None-Match: *:", *again)
    assert len(get[2]) == 1004 and listed == b"1004", "the file is another one"
    assert get[1]["Content-Type"] == "audio/x-wav", "changed: GET"
    assert (head[0], head[1]["Content-Length"], head[1]["Content-Type"]) == (200, "0", "text/html"), "changed: HEAD"
    assert again == (201, b"other"), "changed: If-None-Match"
finally:
    server.kill()
    server.wait()
PY
