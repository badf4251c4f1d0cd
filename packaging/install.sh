#!/bin/sh
# `make install` and `make uninstall`. Nothing of an administrator's is overwritten or removed: a config that is there
# stays, and so do /etc/archiver and /var/lib/archiver.
#
#   PREFIX=/opt/archiver   each version has a virtual environment of its own in there
#   DESTDIR=               another root folder, for building packages
#   PYTHON=python3         must be one that the service's user may run
set -eu
PREFIX=${PREFIX:-/opt/archiver}
DESTDIR=${DESTDIR:-}
PYTHON=${PYTHON:-python3}
UNITS=$DESTDIR/usr/lib/systemd/system
BIN=$DESTDIR/usr/local/bin
MAN=$DESTDIR/usr/local/share/man/man1
ETC=$DESTDIR/etc/archiver

say() { printf '%s\n' "$*"; }
fail() { say "make ${1}" >&2; exit 2; }

systemd_version() { systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p'; }
# A running systemd, and ours: not while a package is being built.
live() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

install_program() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "install: needs Python 3.11 or later; name one: make install PYTHON=/usr/bin/python3.11"
    real=$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    case $real in
        /root/*|/home/*) fail "install: $PYTHON is $real, where the service may not look; name another: make install PYTHON=/usr/bin/python3" ;;
    esac
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || fail "install: $PYTHON has no venv; apt-get install python3-venv"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    version=$("$PYTHON" -c 'import re; print(re.search("version__ = .(.+?).$", open("archiver/__init__.py").read(), re.M)[1])')
    # Each version beside the last one: a running service keeps its own until it is restarted, and the way back is a link.
    home=$PREFIX/$version-$(date -u +%Y%m%dT%H%M%SZ)
    say "into $DESTDIR$home"
    mkdir -p "$DESTDIR$PREFIX"
    "$PYTHON" -m venv "$DESTDIR$home"
    pip="$DESTDIR$home/bin/python -m pip --disable-pip-version-check -q"
    # `make wheels` on a host with internet access fills dist/wheels; what was made for another version will not do.
    [ -d dist/wheels ] && PIP_NO_INDEX=1 PIP_FIND_LINKS=dist/wheels $pip install --require-hashes -r requirements.lock ||
        $pip install --require-hashes -r requirements.lock
    $pip wheel --no-deps --no-build-isolation -w "$work" .
    $pip install --no-deps "$work"/*.whl
    if [ -n "$DESTDIR" ]; then
        # Scripts name the interpreter where it will be.
        grep -rlI "^#!$DESTDIR$home" "$DESTDIR$home/bin" | xargs -r sed -i "1s|^#!$DESTDIR$home|#!$home|"
    fi
    chmod -R go+rX "$DESTDIR$home"
    chmod go+rx "$DESTDIR$PREFIX"
    before=$(readlink "$DESTDIR$PREFIX/current" || true)
    ln -sfn "${home##*/}" "$DESTDIR$PREFIX/current"
    for old in "$DESTDIR$PREFIX"/*-*Z; do
        case ${old##*/} in "${home##*/}" | "$before") ;; *) rm -rf "$old" ;; esac
    done
    [ -z "$before" ] || say "the version before stays beside it: ln -sfn $before $PREFIX/current; systemctl restart archiver"
}

unit() { sed "s|/opt/archiver/current/bin/archiver|$PREFIX/current/bin/archiver|g" "systemd/$1" > "$UNITS/$1"; chmod 0644 "$UNITS/$1"; }

install_units() {
    mkdir -p "$UNITS" "$DESTDIR/usr/lib/sysusers.d" "$DESTDIR/usr/lib/tmpfiles.d" "$BIN"
    for name in archiver.service archiver-web.service archiver-backfill@.service archiver-verify.service archiver-verify.timer; do unit $name; done
    if [ "$(systemd_version || echo 0)" -ge 254 ] 2>/dev/null; then
        mkdir -p "$UNITS/archiver.service.d"
        install -m 0644 systemd/archiver-backoff.conf "$UNITS/archiver.service.d/backoff.conf"
    fi
    install -m 0644 systemd/archiver.sysusers "$DESTDIR/usr/lib/sysusers.d/archiver.conf"
    install -m 0644 systemd/archiver.tmpfiles "$DESTDIR/usr/lib/tmpfiles.d/archiver.conf"
    sed "s|/opt/archiver/current/bin/archiver|$PREFIX/current/bin/archiver|g" packaging/archiver.sh > "$BIN/archiver"
    chmod 0755 "$BIN/archiver"
    mkdir -p "$MAN"
    install -m 0644 docs/archiver.1 "$MAN/archiver.1"
    mkdir -p "$ETC"
    if [ -e "$ETC/archiver.toml" ]; then
        install -m 0644 config/archiver.toml "$ETC/archiver.toml.example"
        say "$ETC/archiver.toml stays as it is; archiver.toml.example beside it is this version's"
    else
        # 0640: it may hold secrets. Whoever runs `archiver` by hand must come to the same database as the service.
        (umask 027; sed 's|^#data_dir = "var"|data_dir = "/var/lib/archiver"|; s|^path = "calls"|path = "/var/lib/archiver/calls"|' \
            config/archiver.toml > "$ETC/archiver.toml")
    fi
    if live; then
        systemd-sysusers archiver.conf
        systemd-tmpfiles --create archiver.conf
        chgrp archiver "$ETC/archiver.toml"
        systemctl daemon-reload
        if systemctl -q is-active archiver.service; then
            systemctl restart archiver.service
            say "the running service was restarted"
            systemctl try-restart archiver-web.service
        else
            say "next: edit /etc/archiver/archiver.toml, then"
            say "  archiver check && systemctl enable --now archiver"
            say "pages for people: [web] in the config, archiver user add NAME --role ROLE, systemctl enable --now archiver-web"
        fi
    fi
}

uninstall() {
    if live; then
        systemctl disable -q --now archiver.service archiver-web.service archiver-verify.timer 2>/dev/null || true
        systemctl stop 'archiver-backfill@*.service' archiver-verify.service 2>/dev/null || true
    fi
    rm -f "$UNITS"/archiver.service "$UNITS"/archiver-web.service "$UNITS"/archiver-backfill@.service "$UNITS"/archiver-verify.service \
        "$UNITS"/archiver-verify.timer "$UNITS"/archiver.service.d/backoff.conf \
        "$DESTDIR/usr/lib/sysusers.d/archiver.conf" "$DESTDIR/usr/lib/tmpfiles.d/archiver.conf" \
        "$BIN/archiver" "$MAN/archiver.1" "$ETC/archiver.toml.example"
    rmdir "$UNITS/archiver.service.d" 2>/dev/null || true
    rm -rf "$DESTDIR$PREFIX"/*-*Z "$DESTDIR$PREFIX/current"
    rmdir "$DESTDIR$PREFIX" 2>/dev/null || true
    if live; then systemctl daemon-reload; fi
    say "left as they are: $ETC, $DESTDIR/var/lib/archiver (database, spool) and the users archiver, archiver-web"
}

case ${1:-} in
    install) install_program; install_units ;;
    units) install_units ;;
    uninstall) uninstall ;;
    *) fail "install.sh: install, units or uninstall" ;;
esac
