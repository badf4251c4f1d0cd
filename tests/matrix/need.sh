#!/bin/sh
# What `make stores` needs beside what the tests need: Ceph, nginx with dav-ext and lighttpd from Debian, and a venv with
# moto, WsgiDAV and copyparty, apart from ours because their dependencies are not ours.
set -eu
cd "$(dirname "$0")/../.."
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
missing=""
[ -e /usr/lib/nginx/modules/ngx_http_dav_ext_module.so ] || missing="$missing nginx-light libnginx-mod-http-dav-ext"
[ -e /usr/lib/lighttpd/mod_webdav.so ] || missing="$missing lighttpd lighttpd-mod-webdav"
for program in ceph ceph-mon ceph-osd radosgw; do
    command -v "$program" >/dev/null || { missing="$missing ceph-common ceph-mon ceph-osd radosgw" && break; }
done
if [ -n "$missing" ]; then
    echo "installing$missing"
    $as_root apt-get update -qq
    # Installed, not started: the run starts its own. One that can't be had is a row of the table that says so.
    for package in $missing; do
        DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
            $as_root apt-get install -y -qq --no-install-recommends "$package" >/dev/null || echo "could not install $package"
    done
fi
if [ ! -x .venv/others/bin/python ]; then
    .venv/bin/python -m venv .venv/others
fi
for package in "moto[server]==5.2.5" "wsgidav==4.4.0 cheroot==11.1.2" copyparty==1.20.26; do
    .venv/others/bin/pip install -q --disable-pip-version-check $package || echo "could not install $package"
done
