#!/bin/sh
# What `make stores` needs beside what the tests need: nginx with dav-ext and lighttpd from Debian, and a venv with
# moto, WsgiDAV and copyparty, apart from ours because their dependencies are not ours.
set -eu
cd "$(dirname "$0")/../.."
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
missing=""
[ -e /usr/lib/nginx/modules/ngx_http_dav_ext_module.so ] || missing="$missing nginx-light libnginx-mod-http-dav-ext"
[ -e /usr/lib/lighttpd/mod_webdav.so ] || missing="$missing lighttpd lighttpd-mod-webdav"
if [ -n "$missing" ]; then
    echo "installing$missing"
    $as_root apt-get update -qq
    # Installed, not started: the run starts its own.
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 $as_root apt-get install -y -qq $missing >/dev/null
fi
if [ ! -x .venv/others/bin/python ]; then
    .venv/bin/python -m venv .venv/others
fi
for package in "moto[server]" "wsgidav cheroot" copyparty; do
    # One that can't be had is a row of the table that says so.
    .venv/others/bin/pip install -q --disable-pip-version-check $package || echo "could not install $package"
done
