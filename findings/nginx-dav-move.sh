#!/usr/bin/env bash
# nginx's dav module makes missing folders on MOVE, though create_full_put_path is off, and never says 201 or 412.
#
# Expected: nginx's documentation of ngx_http_dav_module: "The WebDAV specification only allows creating files in
#   already existing directories" – create_full_put_path (default off) is the exception. RFC 4918, section 9.9.4: MOVE
#   to a missing folder is 409, to a new name 201. RFC 9110, section 13.1.2: PUT with If-None-Match: * over a file is
#   412.
# Seen: MOVE into folders that are not there: 204, and they are there now; PUT into one: 500. MOVE to a new name: 204,
#   as if something had been replaced. PUT with If-None-Match: *: 204, the file is overwritten.
# Who meets it: whoever uploads under a temporary name and MOVEs: a wrong target path is never noticed, and the answer
#   does not tell "new" from "replaced".
# What to do: send Overwrite: F with each MOVE (nginx does heed that: 412), and make folders with MKCOL first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
if command -v nginx >/dev/null; then
  nginx=$(command -v nginx)
else # unpacked, not installed: installing would start a server on port 80
  apt-get update -qq
  apt-get download -qq -o APT::Sandbox::User=root nginx >/dev/null
  dpkg -x nginx_*.deb .
  nginx=$work/usr/sbin/nginx
fi
"$nginx" -v # seen with 1.22.1
nginx=$nginx python3 - <<'PY'
import http.client, os, socket, subprocess, time

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
here = os.getcwd()
for folder in ("files", "body", "other"):
    os.mkdir(folder)
temporary = "".join(f"{name}_temp_path {here}/other;" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
with open("nginx.conf", "w") as out:
    out.write(f"""daemon off; user root; worker_processes 1; pid {here}/pid; error_log {here}/log;
events {{ }}
http {{ access_log off; client_body_temp_path {here}/body; {temporary}
  server {{ listen 127.0.0.1:{port}; root {here}/files; location / {{ dav_methods PUT DELETE MKCOL COPY MOVE; }} }} }}
""")
server = subprocess.Popen([os.environ["nginx"], "-e", f"{here}/log", "-c", f"{here}/nginx.conf"])

def ask(method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read()

try:
    for _ in range(100):
        try:
            ask("GET", "/none")
            break
        except OSError:
            time.sleep(0.1)
    origin = f"http://127.0.0.1:{port}"
    assert ask("PUT", "/a.wav", b"one")[0] == 201
    again = ask("PUT", "/a.wav", b"two", If_None_Match="*")[0], ask("GET", "/a.wav")[1]
    put = ask("PUT", "/none/a.wav", b"x")[0]
    new = ask("MOVE", "/a.wav", Destination=origin + "/b.wav")[0]
    deep = ask("MOVE", "/b.wav", Destination=origin + "/not/there/c.wav")[0], ask("GET", "/not/there/c.wav")[1]
    ask("PUT", "/d.wav", b"x")
    kept = ask("MOVE", "/d.wav", Destination=origin + "/not/there/c.wav", Overwrite="F")[0]
    print(f"PUT with If-None-Match: * {again}; PUT into a missing folder {put}; MOVE to a new name {new}, into missing"
          f" folders {deep}, Overwrite: F {kept}")
    assert again == (204, b"two"), "changed: If-None-Match"
    assert put == 500, "changed: PUT into a missing folder"
    assert new == 204 and deep == (204, b"two"), "changed: MOVE"
    assert kept == 412, "changed: Overwrite: F"
finally:
    server.terminate()
    server.wait()
PY
