#!/usr/bin/env bash
# rfc3161-client drops the fraction of a time stamp's second: a token of .6 s is read as .0 s.
#
# Expected: RFC 3161, section 2.4.2: genTime may tell fractions of a second ("YYYYMMDDhhmmss[.s...]Z"), and "ordering"
#   TRUE says that tokens of one authority can be put in order by genTime alone.
# Seen: gen_time of rfc3161-client is cut to the whole second; accuracy (1 s and 500 ms) is read rightly. openssl and
#   rfc3161ng tell the fraction of the same token. The signature is verified over the right bytes.
# Who meets it: whoever time-stamps the state of an archive and compares the stamp with the catalog's own times: a
#   state committed at 12:00:00.3 and stamped at 12:00:00.6 looks stamped before it existed; the order within a second
#   is lost.
# What to do: take genTime from the token itself (openssl ts -reply -text, or an ASN.1 reader), or allow a second.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rfc3161-client==1.0.9 rfc3161ng==2.1.3
cd "$work"
openssl version # seen with 3.0.x of Debian 12
cat >tsa.cnf <<'CNF'
[tsa]
default_tsa = here
[here]
serial = serial
crypto_device = builtin
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1, millisecs:500
clock_precision_digits = 6
ordering = yes
ess_cert_id_alg = sha256
CNF
echo 01 >serial
printf 'a manifest line\n' >manifest
printf 'basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=critical,timeStamping\n' >ext
printf 'subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' >>ext
new="-newkey rsa:2048 -nodes"
openssl req -x509 $new -keyout ca.key -out ca.pem -subj /CN=ca -days 30 2>/dev/null
openssl req $new -keyout tsa.key -out tsa.csr -subj "/CN=time stamps" 2>/dev/null
openssl x509 -req -in tsa.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 20 -extfile ext -out tsa.pem 2>/dev/null
issue() {
  openssl ts -query -data manifest -sha256 -cert -out one.tsq 2>/dev/null
  openssl ts -reply -config tsa.cnf -queryfile one.tsq -signer tsa.pem -inkey tsa.key -out one.tsr 2>/dev/null
}
for _ in 1 2 3 4 5; do # a stamp at .000000 exactly would show nothing
  issue
  openssl ts -reply -in one.tsr -text 2>/dev/null | grep -q 'Time stamp: .*\.' && break
done
openssl ts -verify -queryfile one.tsq -in one.tsr -CAfile ca.pem 2>/dev/null
openssl ts -reply -in one.tsr -text 2>/dev/null | grep -E 'Time stamp|Ordering'
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version
import rfc3161ng
from rfc3161_client import decode_timestamp_response

print("rfc3161-client", version("rfc3161-client"), "rfc3161ng", version("rfc3161ng"))
raw = open("one.tsr", "rb").read()
whole = rfc3161ng.get_timestamp(rfc3161ng.decode_timestamp_response(raw).time_stamp_token, naive=False)
cut = decode_timestamp_response(raw).tst_info.gen_time
print("rfc3161ng", whole, "- rfc3161-client", cut)
assert whole.microsecond != 0, "the token has no fraction"
assert cut == whole.replace(microsecond=0), "changed: the fraction"
PY
