#!/usr/bin/env bash
# Makes the Python environment of the independent client (integration-tests/client), in which buf is as well, and prints the path of its python.
# The same requirements and the same Python give the same environment, which is made once.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

REQUIREMENTS=$REPO/integration-tests/client/requirements.txt

client_key() {
    { cat "$REQUIREMENTS" && python3 -c 'import sys; print(sys.version, sys.base_prefix)'; } | sha256sum | cut -c1-16
}

# An environment can't be moved: that it is complete is said by a file in it.
client_build() { # DIRECTORY
    [[ -e $1/complete ]] && return
    say "making the Python environment of the independent client"
    python3 -m venv --clear "$1"
    "$1/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: -r "$REQUIREMENTS"
    touch "$1/complete"
}

need python3 python3
environment=$TESTBED/client/$(client_key)
with_lock client client_build "$environment" >&2
echo "$environment/bin/python"
