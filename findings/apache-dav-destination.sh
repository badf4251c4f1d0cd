#!/usr/bin/env bash
# Apache's mod_dav refuses a Destination that is a path, and calls a missing target folder its own error.
#
# Expected: RFC 4918, section 10.3: Destination = Simple-ref, and section 8.3: Simple-ref is an absolute URI or an
#   absolute path. Sections 9.8.5 and 9.9.4: MOVE or COPY into a folder that is not there is 409.
# Seen: MOVE with "Destination: /b.wav": 400; with "Destination: http://host/b.wav": 201. Into a missing folder: 500
#   for MOVE, 409 for COPY. wsgidav, lighttpd, rclone, SeaweedFS and asgi-webdav take the path.
# Who meets it: clients behind a proxy that changes scheme or host: a path would be the way round it, and RFC 4918
#   brought it for that. And clients that try a 5xx again for ever, though the folder has to be made first.
# What to do: send the absolute URI, as the server knows itself; take a 500 to MOVE for "is the folder there?".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
[ -x /usr/sbin/apache2 ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends apache2-bin >/dev/null; }
dpkg-query -W -f '${Package} ${Version}\n' apache2-bin # seen with 2.4.71-1~deb12u1
chmod 755 "$work"
cd "$work"
python3 - <<'PY'
import http.client, os, pwd, socket, subprocess, time

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
here = os.getcwd()
os.mkdir("files"), os.mkdir("lock")
user = pwd.getpwnam("www-data")
for folder in ("files", "lock"):
    os.chown(folder, user.pw_uid, user.pw_gid)
modules = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
                  for name in ("mpm_event", "authn_core", "authz_core", "dav", "dav_fs"))
with open("httpd.conf", "w") as out:
    out.write(f"""{modules}
User www-data
Group www-data
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile {here}/pid
DefaultRuntimeDir {here}
ErrorLog {here}/log
DavLockDB {here}/lock/db
DocumentRoot {here}/files
<Directory {here}/files>
Dav On
Require all granted
</Directory>
""")
server = subprocess.Popen(["/usr/sbin/apache2", "-DFOREGROUND", "-f", f"{here}/httpd.conf"])

def ask(method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status

try:
    for _ in range(100):
        try:
            ask("OPTIONS", "/")
            break
        except OSError:
            time.sleep(0.1)
    origin = f"http://127.0.0.1:{port}"
    assert ask("PUT", "/a.wav", b"call") == 201
    path, whole = ask("MOVE", "/a.wav", Destination="/b.wav"), ask("MOVE", "/a.wav", Destination=origin + "/b.wav")
    copied = ask("COPY", "/b.wav", Destination=origin + "/none/c.wav")
    moved = ask("MOVE", "/b.wav", Destination=origin + "/none/c.wav")
    print(f"Destination as a path: {path}, as a URI: {whole}; into a missing folder: COPY {copied}, MOVE {moved}")
    assert (path, whole) == (400, 201), "changed: the Destination"
    assert (copied, moved) == (409, 500), "changed: the missing folder"
finally:
    server.terminate()
    server.wait()
PY
