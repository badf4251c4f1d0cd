#!/bin/sh
# What the tests need beside Python packages: Apache with mod_dav (Debian's apache2), pgbouncer, openssl, setpriv,
# systemd-analyze, the programs that make audio of every coding, the browsers that play it, and Prometheus's promtool.
set -eu
cd "$(dirname "$0")/.."
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
missing=""
[ -x /usr/sbin/apache2 ] || missing="$missing apache2"
[ -x /usr/sbin/pgbouncer ] || missing="$missing pgbouncer"
command -v openssl >/dev/null || missing="$missing openssl"
command -v setpriv >/dev/null || missing="$missing util-linux"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
command -v ffmpeg >/dev/null || missing="$missing ffmpeg"
{ command -v sox >/dev/null && sox --help | grep -q amr-nb; } || missing="$missing sox libsox-fmt-all"
command -v lame >/dev/null || missing="$missing lame"
command -v speexenc >/dev/null || missing="$missing speex"
command -v opusenc >/dev/null || missing="$missing opus-tools"
command -v chromium >/dev/null || missing="$missing chromium"
command -v firefox-esr >/dev/null || missing="$missing firefox-esr"
if [ -n "$missing" ]; then
    echo "installing$missing"
    $as_root apt-get update -qq
    # Installed, not started: the tests start their own.
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 $as_root apt-get install -y -qq $missing >/dev/null
fi
# Of Debian's prometheus this one program, which says whether an alert fires: nothing is installed for it.
if [ ! -x .venv/bin/promtool ] && ! command -v promtool >/dev/null; then
    echo "fetching promtool"
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    chmod 755 "$folder"
    [ -n "$missing" ] || $as_root apt-get update -qq
    (cd "$folder" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .)
    mv "$folder/usr/bin/promtool" .venv/bin/promtool
fi
