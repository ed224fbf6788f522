#!/bin/sh
# Writes the locks in constraints/: each package with its version and the hashes of its files.
# `make lock` runs this; it needs the network.
#
#   sh tools/lock.sh             after a change of setup.cfg: versions stay as they are where they can
#   sh tools/lock.sh --upgrade   the newest versions that setup.cfg allows; run all tests afterwards
#
# A lock belongs to one version of Python, on Linux x86-64; the hashes are those of the files for all
# systems, and no package is for macOS alone, so it serves there too. uv, which makes it, needs neither
# that Python nor that system, and comes with a version and hashes of its own, constraints/uv.txt.

set -eu
cd "$(dirname "$0")/.."

upgrade=${1:-}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM HUP
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --require-hashes --no-deps -r constraints/uv.txt
uv=$folder/environment/bin/uv

# compile FILE PYTHON TITLE ARGUMENTS...: a lock, with a header that says how it was made.
compile() {
  file=constraints/$1
  python=$2
  title=$3
  shift 3
  # uv keeps the versions of the file that it writes, but for --upgrade.
  cp "$file" "$folder/lock.txt" 2>/dev/null || : >"$folder/lock.txt"
  "$uv" pip compile --quiet --generate-hashes --no-header --no-annotate --no-config $upgrade \
    --python-platform x86_64-manylinux_2_28 --python-version "$python" \
    --output-file "$folder/lock.txt" "$@"
  {
    printf '# %s\n' "$title"
    printf '# Written by `make lock` (tools/lock.sh, with %s): do not edit it, renew it.\n' \
      "$("$uv" --version | cut -d' ' -f1-2)"
    printf '# Used as: pip install --require-hashes --no-deps -r %s\n\n' "$file"
    grep -v '^#' "$folder/lock.txt"
  } >"$folder/new.txt"
  mv "$folder/new.txt" "$file"
}

for python in 3.9 3.10 3.11; do
  # pip too: what comes with an old Python may be too old for an editable install.
  echo 'pip>=22' | compile "python$python.txt" "$python" \
    "Python $python: the dependencies of setup.cfg and of its extras, without those of 'gpu'." \
    --extra report --extra serve --extra client --extra milvus --extra onnx --extra openvino \
    --extra test setup.cfg -
done
echo 'tensorflow[and-cuda]==2.15.1' | compile gpu.txt 3.11 \
  "The extra 'gpu': NVIDIA's libraries for TensorFlow on Linux, beside one of the other locks." \
  --constraint constraints/python3.11.txt -
# Only what the other locks do not have. A package's hashes are indented below its name.
awk '/^#/ || /^$/ { print; next } /^[^ ]/ { keep = /^nvidia-/ } keep' constraints/gpu.txt \
  >"$folder/gpu.txt"
mv "$folder/gpu.txt" constraints/gpu.txt
echo 'pip-audit>=2.7' | compile audit.txt 3.9 'What `make audit` runs, on Python 3.9 to 3.11.' -
printf 'mkdocs>=1.6,<2\nmkdocstrings[python]>=0.26\n' \
  | compile docs.txt 3.9 'What `make docs` runs, on Python 3.9 to 3.11.' -
echo 'uv>=0.8' | compile uv.txt 3.9 'What `make lock` runs, and what fetches a Python if there is none.' -
