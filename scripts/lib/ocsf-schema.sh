#!/usr/bin/env bash
# Writes agent/src/export/ocsf/schema.json anew: of the published schema of OCSF the class Detection Finding and the objects
# that we use, reduced to names, types, requirements and enums. The package ocsf-json-schema carries the schema as published.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PACKAGE=ocsf-json-schema==1.2.0
VERSION=1.8.0

need python3 python3
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$directory" "$PACKAGE"
python3 - "$directory"/*.whl "$VERSION" >"$REPO/agent/src/export/ocsf/schema.json" <<'PYTHON'
import json, sys, zipfile

OBJECTS = """analytic api attack container device dns_query evidences file finding_info image metadata network_connection_info
network_endpoint observable os policy process process_entity product related_event resource_details sub_technique technique user""".split()
wheel, version = sys.argv[1:]
schema = json.loads(zipfile.ZipFile(wheel).read(f"ocsf_json_schema/ocsf/{version}.json"))


def reduced(item, optional=()):
    def attribute(name, its):
        out = {"type": its.get("object_type") or its["type"]}
        if its.get("is_array"):
            out["array"] = True
        if its.get("requirement") == "required" and name not in optional:
            out["required"] = True
        if "enum" in its:
            out["enum"] = sorted(its["enum"], key=lambda key: (len(key), key))
        return out

    attributes = {name: attribute(name, its) for name, its in sorted(item["attributes"].items()) if "@deprecated" not in its}
    constraints = item.get("constraints") or {}
    return {"attributes": attributes, **({"at_least_one": constraints["at_least_one"]} if "at_least_one" in constraints else {})}


finding = schema["classes"]["detection_finding"]
# What a profile requires, only those have to say who apply it.
of_profiles = {"cloud", "osint"}
assert schema["version"] == version
print(json.dumps({
    "version": version,
    "profiles": sorted(finding["profiles"]),
    "detection_finding": reduced(finding, of_profiles),
    "objects": {name: reduced(schema["objects"][name]) for name in OBJECTS},
}, indent=1))
PYTHON
