#!/usr/bin/env bash
# s3fs stores half a recording when the writer fails in the middle.
#
# Expected: Amazon S3 User Guide, "Amazon S3 data consistency model": no partial writes; an upload that is not finished
#   leaves no object. smart_open and obstore keep to that: an exception inside "with" ends the upload unfinished.
# Seen: "with fs.open(key, 'wb')": four bytes are written, then the source fails with an exception. s3fs closes the file
#   as if all was well, so the object is there, with four bytes; HEAD tells nothing unusual. smart_open and obstore leave
#   no object. s3fs does it right only inside fs.transaction.
# Who meets it: whoever streams a recording from a recorder into a bucket: when the recorder's connection breaks, the
#   short object stays, and the next run finds the key "already archived".
# What to do: write within "with fs.transaction:", or upload a file that is whole and was checked; compare size and hash
#   with the source's, never only that the key exists.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  s3fs==2026.9.0 'smart_open[s3]==9.0.2' obstore==0.12.1 'moto[server,s3]==5.2.5' 2>/dev/null
cd "$work"
"$work/venv/bin/python" -W ignore - 2>requests <<'PY' || { cat requests >&2; exit 1; }
from importlib.metadata import version
import boto3, obstore, s3fs, smart_open
from moto.server import ThreadedMotoServer

print(*(f"{name} {version(name)}" for name in ("s3fs", "smart_open", "obstore")))
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
url, key, secret = f"http://{host}:{port}", "key", "secret-of-this-test"
s3 = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret)
s3.create_bucket(Bucket="calls")
fs = s3fs.S3FileSystem(key=key, secret=secret, endpoint_url=url, client_kwargs={"region_name": "us-east-1"})
store = obstore.store.S3Store("calls", endpoint=url, region="us-east-1", client_options={"allow_http": True},
                              aws_access_key_id=key, aws_secret_access_key=secret, virtual_hosted_style_request=False)

def kept(opened):
    """What the bucket holds after a source that fails in the middle of a call."""
    try:
        with opened() as out:
            out.write(b"RIFF")
            raise ConnectionResetError("the recorder is gone")
    except ConnectionResetError:
        pass
    there = s3.list_objects_v2(Bucket="calls").get("Contents", [])
    return [(s3.delete_object(Bucket="calls", Key=item["Key"]), item["Size"])[1] for item in there]

def in_transaction():
    try:
        with fs.transaction, fs.open("calls/1.wav", "wb") as out:
            out.write(b"RIFF")
            raise ConnectionResetError("the recorder is gone")
    except ConnectionResetError:
        pass
    return [item["Size"] for item in s3.list_objects_v2(Bucket="calls").get("Contents", [])]

one = kept(lambda: fs.open("calls/1.wav", "wb"))
two = kept(lambda: smart_open.open("s3://calls/1.wav", "wb", transport_params={"client": s3}))
three = kept(lambda: obstore.open_writer(store, "1.wav"))
four = in_transaction()
server.stop()
print(f"sizes of the objects left: s3fs {one}, smart_open {two}, obstore {three}, s3fs in a transaction {four}")
assert one == [4], "changed: s3fs leaves no half object"
assert two == three == four == [], "changed: smart_open, obstore or the transaction"
PY
