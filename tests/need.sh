#!/bin/sh
# What the tests need beside Python packages: Apache with mod_dav (Debian's apache2), openssl, setpriv and systemd-analyze.
set -eu
missing=""
[ -x /usr/sbin/apache2 ] || missing="$missing apache2"
command -v openssl >/dev/null || missing="$missing openssl"
command -v setpriv >/dev/null || missing="$missing util-linux"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
[ -z "$missing" ] && exit 0
echo "installing$missing"
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
$as_root apt-get update -qq
# Installed, not started: the tests start their own.
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 $as_root apt-get install -y -qq $missing >/dev/null
