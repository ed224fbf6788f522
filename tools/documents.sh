#!/bin/sh
# Builds the documents with an API reference from the docstrings, into site/; any warning is an error.
# `make docs` runs this; the first time it needs the network.
#
#   sh tools/documents.sh            PYTHON: the interpreter; FOLDER: of an environment of its own
#
# What mkdocs needs is locked in constraints/docs.txt and does not get into the project's environment:
# the reference is read from the sources, and nothing of the package is imported.

set -eu
cd "$(dirname "$0")/.."

folder=${FOLDER:-.venv/documents}
stamp=$folder/documents-installed
key=$(cksum <constraints/docs.txt)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$key" ]; then
  rm -rf "$folder"
  "${PYTHON:-python3}" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
    -r constraints/docs.txt
  printf '%s' "$key" >"$stamp"
fi
"$folder/bin/python" -m mkdocs build --strict --quiet "$@"
printf 'Written to site/: open site/index.html in a browser.\n'
