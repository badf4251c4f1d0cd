#!/bin/sh
# The command for people. Root runs it as the service's user, so that nothing it makes is closed to the service.
: "${CREDENTIALS_DIRECTORY:=/etc/archiver/credentials}"
export CREDENTIALS_DIRECTORY
if [ "$(id -u)" = 0 ] && id archiver >/dev/null 2>&1; then
    exec setpriv --reuid=archiver --regid=archiver --init-groups env HOME=/var/lib/archiver /opt/archiver/current/bin/archiver "$@"
fi
exec /opt/archiver/current/bin/archiver "$@"
