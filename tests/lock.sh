#!/bin/sh
# Write requirements.lock (what runs, the face included) and requirements-dev.lock (what tests): exact versions with
# hashes, no index named.
set -eu
compile() {
    uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links pyproject.toml --extra web --group build "$@"
}
compile -o requirements.lock
compile -c requirements.lock --group dev -o requirements-dev.lock
