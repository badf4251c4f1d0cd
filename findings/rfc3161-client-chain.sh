#!/usr/bin/env bash
# rfc3161-client can't read a time stamp that "openssl ts" made with -chain.
#
# Expected: RFC 3161, section 2.4.2: where certReq is set, the token holds the signer's certificate and may hold
#   others. They are a set, which RFC 5652 allows in BER, in any order; over HTTP RFC 3161, section 3.4 wants DER:
#   sorted by bytes.
# Seen: openssl, the reference for many, writes the certificates in the order it got them, so not in DER's; its own
#   verifier does not mind. rfc3161-client does: ValueError (InvalidSetOrdering) for a token that openssl verifies.
#   Without -chain the same authority's token is read and verified. (The shorter certificate sorts first; here that is
#   the root's.)
# Who meets it: whoever runs an internal time-stamping authority with openssl, or gets tokens from one, and checks
#   them in Python: a valid proof looks broken.
# What to do: have the authority leave the chain out and give the certificates to the verifier; keep the token's bytes
#   as they came; verify with openssl before calling a token invalid.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rfc3161-client==1.0.9
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
openssl ts -query -data manifest -sha256 -cert -out one.tsq 2>/dev/null
openssl ts -reply -config tsa.cnf -queryfile one.tsq -signer tsa.pem -inkey tsa.key -out plain.tsr 2>/dev/null
openssl ts -reply -config tsa.cnf -queryfile one.tsq -signer tsa.pem -inkey tsa.key -chain ca.pem -out chain.tsr 2>/dev/null
for token in plain chain; do
  openssl ts -verify -queryfile one.tsq -in "$token.tsr" -CAfile ca.pem 2>/dev/null
done
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version
from cryptography.x509 import load_pem_x509_certificate
from rfc3161_client import VerifierBuilder, decode_timestamp_response

print("rfc3161-client", version("rfc3161-client"))
root = load_pem_x509_certificate(open("ca.pem", "rb").read())
verifier = VerifierBuilder().add_root_certificate(root).build()
manifest = open("manifest", "rb").read()
plain = verifier.verify_message(decode_timestamp_response(open("plain.tsr", "rb").read()), manifest)
try:
    decode_timestamp_response(open("chain.tsr", "rb").read())
    chain = "read"
except ValueError as error:
    chain = str(error)
print("without the chain:", plain, "- with it:", chain)
assert plain is True, "changed: the plain token"
assert "InvalidSetOrdering" in chain, "changed: the chain is read"
PY
