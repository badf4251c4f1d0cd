#!/usr/bin/env bash
# obstore lists an object by a name under which it can't be read, and one odd key ends the listing of a bucket.
#
# Expected: Amazon S3 User Guide, "Naming Amazon S3 objects": a key is any string; keys may begin with "/", end with it,
#   or hold "//". obstore's documentation of list(): it yields the objects whose names begin with the prefix.
# Seen: the object "/1.wav" is listed as "1.wav", and get("1.wav") or get("/1.wav") is FileNotFoundError. "folder/" is
#   listed as "folder", with the same end. "hq//1.wav" or a key with a tab: list() raises InvalidPathError and yields
#   nothing, not even the other keys. boto3 lists and reads all of them.
# Who meets it: whoever audits or copies a bucket of recordings whose keys were built of parts that can be empty, or
#   that others filled: an object counts as lost, or the audit does not run at all.
# What to do: list such buckets with boto3; never leave a part of a key empty.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1 'moto[server,s3]==5.2.5' boto3==1.44.8
cd "$work"
"$work/venv/bin/python" -W ignore - 2>requests <<'PY' || { cat requests >&2; exit 1; }
from importlib.metadata import version
import boto3
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

print("obstore", version("obstore"))
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
access = {"aws_access_key_id": "key", "aws_secret_access_key": "secret-of-this-test"}
s3 = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **access)
s3.create_bucket(Bucket="calls")
store = S3Store("calls", endpoint=f"http://{host}:{port}", region="us-east-1", client_options={"allow_http": True},
                virtual_hosted_style_request=False, **access)

def outcome(ask):
    try:
        return ask()
    except Exception as error:
        return type(error).__name__

def read(name):
    return outcome(lambda: bytes(store.get(name).bytes()))

seen = {}
s3.put_object(Bucket="calls", Key="a.wav", Body=b"call")
for key in ("b.wav", "/1.wav", "folder/", "hq//1.wav", "a\tb.wav"):
    s3.put_object(Bucket="calls", Key=key, Body=b"call")
    assert s3.get_object(Bucket="calls", Key=key)["Body"].read() == b"call"
    names = outcome(lambda: sorted(item["path"] for page in store.list() for item in page))
    other = [name for name in names if name != "a.wav"] if isinstance(names, list) else [key]
    seen[key] = names, read(other[0]), read(key)
    print(f"{key!r}: listed {names}, read as listed {seen[key][1]}, as stored {seen[key][2]}")
    s3.delete_object(Bucket="calls", Key=key)
server.stop()
assert seen["b.wav"] == (["a.wav", "b.wav"], b"call", b"call"), "the plain key is another one"
assert seen["/1.wav"] == (["1.wav", "a.wav"], "FileNotFoundError", "FileNotFoundError"), "changed: a leading /"
assert seen["folder/"] == (["a.wav", "folder"], "FileNotFoundError", "FileNotFoundError"), "changed: a closing /"
assert seen["hq//1.wav"][0] == seen["a\tb.wav"][0] == "InvalidPathError", "changed: the listing"
PY
