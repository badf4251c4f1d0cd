#!/usr/bin/env bash
# fsspec and s3fs take a name with brackets for a pattern: cat() reads, mv() moves, put() sends another call's file.
#
# Expected: fsspec's API documentation: mv() is "Move file(s) from one location to another", cat() "Fetch (potentially
#   multiple) paths' contents"; its page "Copying files and directories" tells of patterns. A name that exists() finds
#   should mean that object, and open() takes the same name literally.
# Seen: "call[1].wav" and "call1.wav" are both in the bucket. exists("call[1].wav") is True and cat_file() gives it.
#   cat() gives call1.wav. put() of a local "up[1].wav" sends up1.wav. mv() takes call1.wav away and leaves call[1].wav;
#   rm() then says FileNotFoundError. No warning. With fsspec's memory filesystem it is the same.
# Who meets it: recorders that put the agent's name in brackets into the file name ("[Smith]_1001.wav"), and browsers
#   that number downloads with them: another recording is moved or handed out, or a file "is not there".
# What to do: use the one-file methods (cat_file, put_file, get_file, cp_file, rm_file), which take names literally.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check s3fs==2026.9.0 'moto[server,s3]==5.2.5' 2>/dev/null
cd "$work"
"$work/venv/bin/python" -W ignore - 2>requests <<'PY' || { cat requests >&2; exit 1; }
import boto3, fsspec, s3fs
from moto.server import ThreadedMotoServer

print("fsspec", fsspec.__version__, "s3fs", s3fs.__version__)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
bucket = s3fs.S3FileSystem(key="key", secret="secret-of-this-test", endpoint_url=f"http://{host}:{port}",
                           client_kwargs={"region_name": "us-east-1"}, use_listings_cache=False)
boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", aws_access_key_id="key",
             aws_secret_access_key="secret-of-this-test").create_bucket(Bucket="calls")
for name, text in (("up[1].wav", "Smith"), ("up1.wav", "Jones")):
    with open(name, "w") as out:
        out.write(text)
for store, base in ((bucket, "calls"), (fsspec.filesystem("memory"), "/calls")):
    odd, other = f"{base}/call[1].wav", f"{base}/call1.wav"
    store.pipe_file(odd, b"Smith"), store.pipe_file(other, b"Jones")
    assert store.exists(odd) and store.cat_file(odd) == b"Smith", "the file is another one"
    read = store.cat(odd)
    read = list(read.values()) if isinstance(read, dict) else [read]
    store.put("up[1].wav", f"{base}/in/")
    sent = sorted(store.find(f"{base}/in"))
    store.mv(odd, f"{base}/moved")
    left = store.exists(odd), store.exists(other)
    try:
        store.rm(odd)
        removed = "removed"
    except FileNotFoundError:
        removed = "FileNotFoundError"
    print(f"{store.protocol}: cat() {read}; put() sent {sent}; after mv() there: {left}; rm() {removed}")
    assert read == [b"Jones"], "changed: cat()"
    assert [path.rsplit("/", 1)[1] for path in sent] == ["up1.wav"], "changed: put()"
    assert left == (True, False), "changed: mv()"
    assert removed == "FileNotFoundError", "changed: rm()"
server.stop()
PY
