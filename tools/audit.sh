#!/bin/sh
# Looks the locked packages up among the known vulnerabilities. `make audit` runs this; it needs the
# network: pip-audit asks a vulnerability service about each name and version.
#
#   sh tools/audit.sh                          the database of the package index
#   sh tools/audit.sh --vulnerability-service=osv
#
# The exit code is 1 if anything was found, or if a package could not be looked up. SECURITY.md, "Supply chain", has
# what was found the last time and what follows from it.

set -eu
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM HUP
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --require-hashes --no-deps -r constraints/audit.txt
status=0
for lock in constraints/python*.txt constraints/gpu.txt; do
  printf '%s\n' "$lock"
  "$folder/environment/bin/pip-audit" --strict --disable-pip --require-hashes --progress-spinner=off \
    --requirement "$lock" "$@" || status=1
done
exit "$status"
