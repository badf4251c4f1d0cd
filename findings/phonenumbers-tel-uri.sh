#!/usr/bin/env bash
# phonenumbers refuses most valid tel URIs of a SIP trunk, and makes a country's number of a company's extension.
#
# Expected: phonenumbers' parse() reads RFC 3966 format too (its docstring). RFC 3966, section 3: a tel URI may carry
#   parameters (";name" or ";name=value") beyond its own; they are registered with IANA (RFC 5341). Section 5.1.5: a
#   local number holds only within its phone-context.
# Seen: ";npdi", ";rn=", ";cic=" (RFC 4694), ";tgrp=" (RFC 4904), ";cpc=" and ";verstat=" (3GPP TS 24.229) raise
#   NumberParseException, and the number before them is lost; only ";isub=" and ";ext=" are known.
#   "tel:1234;phone-context=pbx.example" is +491234 with region DE, and is_possible_number() says True.
# Who meets it: whoever fills the caller's number of a recording from P-Asserted-Identity or a CDR's tel URI: "unknown
#   caller" for every ported or verified number, and extensions that look like calls to the public network.
# What to do: cut the URI at its first ";" and read phone-context and ext oneself; a number with a domain as its context
#   is an extension.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check phonenumberslite==9.0.42
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version
import phonenumbers
from phonenumbers import PhoneNumberFormat

print("phonenumberslite", version("phonenumberslite"))

def read(uri):
    try:
        number = phonenumbers.parse(uri, "DE")
    except phonenumbers.NumberParseException:
        return None
    e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    return e164, number.extension, phonenumbers.is_possible_number(number)

number = "tel:+1-212-555-0123"
for parameters, expected in {
    "": ("+12125550123", None, True),
    ";ext=7": ("+12125550123", "7", True),
    ";isub=9": ("+12125550123", None, True),
    ";npdi": None,
    ";npdi;rn=+1-212-555-0000": None,
    ";cic=+1234": None,
    ";tgrp=trunk1;trunk-context=pbx.example": None,
    ";cpc=ordinary": None,
    ";verstat=TN-Validation-Passed": None,
}.items():
    answer = read(number + parameters)
    print(number + parameters, "->", answer)
    assert answer == expected, "changed: the parameters"
local = read("tel:1234;phone-context=pbx.example")
print("tel:1234;phone-context=pbx.example ->", local)
assert local == ("+491234", None, True), "changed: the local number"
PY
