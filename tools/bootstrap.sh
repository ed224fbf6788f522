#!/bin/sh
# Makes the project's virtual environment, or finds it ready. Every goal of the Makefile runs this.
#
#   PYTHON  the interpreter to use     (default: the first of Python 3.11, 3.10, 3.9 to be found)
#   VENV    the environment's folder   (default: .venv)
#   EXTRAS  gpu: NVIDIA's libraries, too (default: none)
#
# What is installed stands in constraints/: every package with its version and the hashes of its files,
# all extras of setup.cfg but `gpu` included. tools/lock.sh renews it.
#
# An environment is finished when it holds the stamp, which is written last and names what was
# installed. One that was interrupted is made anew, since pip takes a half-copied package for an
# installed one; one whose stamp names other dependencies is brought up to date in place.

set -eu
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
EXTRAS=${EXTRAS:-}
stamp=$VENV/tfreid-installed
unfinished=$VENV/tfreid-unfinished
log=$VENV/tfreid-install.log
python=$VENV/bin/python

# Settings of the caller that would make pip or Python miss the environment.
unset PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

pip=''
throwaway=''
# A process in the background of a script does not hear Ctrl-C by itself.
clean_up() {
  if [ -n "$pip" ]; then kill "$pip" 2>/dev/null || true; fi
  if [ -n "$throwaway" ]; then rm -rf "$throwaway"; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

say() { printf '%s\n' "$*"; }
fail() {
  say "$*" >&2
  exit 1
}

# Prints 'yes EXECUTABLE', 'no-venv VERSION' or 'no VERSION' of an interpreter; nothing if it does
# not run. The executable is the one behind a virtual environment or a pyenv shim.
probe() {
  "$1" - 2>/dev/null <<'PROBE' || true
import struct
import sys

version = '.'.join(str(part) for part in sys.version_info[:3])
if not (3, 9) <= sys.version_info[:2] <= (3, 11) or struct.calcsize('P') != 8:
  print('no ' + version)
else:
  try:
    import ensurepip
    import venv

    print('yes ' + (getattr(sys, '_base_executable', None) or sys.executable))
  except ImportError:
    print('no-venv ' + version)
PROBE
}

# Interpreters to try, one a line, the preferred version first.
candidates() {
  for version in 3.11 3.10 3.9; do
    say "python$version"
    for folder in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin "$HOME/.local/bin" \
      /opt/homebrew/bin /opt/local/bin \
      "/Library/Frameworks/Python.framework/Versions/$version/bin"; do
      if [ -x "$folder/python$version" ]; then say "$folder/python$version"; fi
    done
  done
  say python3
  say python
}

# Sets `base` to a supported interpreter, or to '' and `seen` to what was found instead.
find_python() {
  base=''
  seen=''
  while IFS= read -r candidate; do
    case $(probe "$candidate") in
      'yes '*) base=$(probe "$candidate") && base=${base#yes } && return ;;
      'no-venv '*) seen="$seen, $candidate without its venv module" ;;
      'no '*)
        version=$(probe "$candidate")
        seen="$seen, $candidate is ${version#no }"
        ;;
    esac
  done <<CANDIDATES
$(candidates)
CANDIDATES
  seen=${seen#, }
}

# Sets `base` to an interpreter that uv has or fetches, or to ''; then `seen` says why. A uv that is
# not installed comes from the package index, into a throwaway folder, by a newer Python.
find_python_by_uv() {
  throwaway=$(mktemp -d)
  for uv in uv "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv" "$throwaway/bin/uv"; do
    if "$uv" --version >/dev/null 2>&1; then break; fi
    if [ "$uv" = "$HOME/.cargo/bin/uv" ]; then
      for newer in python3 python3.14 python3.13 python3.12 python; do
        if "$newer" -m venv "$throwaway" >/dev/null 2>&1; then
          "$throwaway/bin/python" -m pip install -q --require-hashes --no-deps -r constraints/uv.txt \
            >/dev/null 2>&1 || true
          break
        fi
      done
    fi
  done
  if "$uv" --version >/dev/null 2>&1; then
    say "No Python 3.9-3.11 found (${seen:-no Python at all}); asking uv for one"
    export UV_PYTHON_PREFERENCE=only-managed
    if "$uv" python install 3.11 >"$throwaway/log" 2>&1; then
      base=$("$uv" python find 3.11)
    else
      seen="${seen:-no Python at all}; uv says '$(grep -m 1 . "$throwaway/log")'"
    fi
  fi
}

# Empties the environment's folder, but for the lock that this run holds.
clear_environment() {
  if [ ! -e "$VENV/pyvenv.cfg" ] && [ ! -e "$stamp" ] && [ ! -e "$unfinished" ] \
    && [ "$(ls -A "$VENV")" != .lock ] && [ -n "$(ls -A "$VENV")" ]; then
    fail "$VENV holds other things than a virtual environment; choose another folder with" \
      "'make ... VENV=folder'."
  fi
  for entry in "$VENV"/* "$VENV"/.[!.]*; do
    if [ "$entry" != "$VENV/.lock" ]; then rm -rf "$entry"; fi
  done
  : >"$unfinished"
}

# Nothing that is there is touched before an interpreter is found.
make_environment() {
  case "$(uname -s) $(uname -m)" in
    'Linux x86_64' | 'Darwin '*) ;;
    *) fail "tfreid runs on Linux x86-64 and macOS: tensorflow-addons 0.23 has no wheel for" \
      "$(uname -s) $(uname -m) (on Windows, use WSL 2)." ;;
  esac
  if [ -n "${PYTHON:-}" ]; then
    case $wanted in
      'yes '*) base=${wanted#yes } ;;
      '') fail "PYTHON=$PYTHON does not run; give the path of a Python 3.9, 3.10 or 3.11." ;;
      *) fail "PYTHON=$PYTHON is not a 64-bit Python 3.9, 3.10 or 3.11 with its venv module, which" \
        "TensorFlow 2.15 needs." ;;
    esac
  else
    find_python
    if [ -z "$base" ]; then find_python_by_uv; fi
    if [ -z "$base" ]; then
      fail "tfreid needs Python 3.9, 3.10 or 3.11 (TensorFlow 2.15 has no wheels for others), and" \
        "there is none here (found: ${seen:-no Python at all}) and no uv that could fetch one:" \
        "install Python 3.11, or name one with 'make ... PYTHON=/path/to/python3.11'."
    fi
  fi
  say "Making the environment $VENV with $base"
  clear_environment
  "$base" -m venv "$VENV" || fail "'$base -m venv $VENV' failed, as it says above."
}

# Runs pip in the background and shows how far it is: run_pip ARGUMENTS...
run_pip() {
  # Not compiled: the import below compiles the few files of TensorFlow's thousands that are used.
  "$python" -m pip install --no-compile "$@" >"$log" 2>&1 &
  pip=$!
  total=$(grep -c '^[^ #].*==' "$constraints")
  started=$(date +%s)
  while kill -0 "$pip" 2>/dev/null; do
    if [ -t 1 ]; then
      if grep -q '^Installing collected' "$log"; then
        done=$(find "$VENV/lib" -maxdepth 3 -name '*.dist-info' | wc -l)
        action=unpacked
      else
        done=$(grep -c '^Collecting ' "$log" || true)
        action=fetched
      fi
      if [ "$done" -gt "$total" ]; then done=$total; fi
      printf '\rInstalling: %d of %d packages %s, %d s  ' \
        "$done" "$total" "$action" "$(($(date +%s) - started))"
    fi
    sleep 1
  done
  if [ -t 1 ]; then printf '\r%60s\r' ''; fi
  wait "$pip" && status=0 || status=$?
  pip=''
  return "$status"
}

install() {
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  constraints=constraints/python$version.txt
  gpu=''
  case ",$EXTRAS," in *,gpu,*) gpu='-r constraints/gpu.txt' ;; esac
  say "Installing the dependencies locked in $constraints; 2 GB, some minutes the first time"
  # Then the project itself, built in this environment, for which nothing else is fetched.
  # shellcheck disable=SC2086
  if ! run_pip --require-hashes --no-deps -r "$constraints" $gpu \
    || ! run_pip --no-deps --no-build-isolation -e .; then
    say '' && tail -n 15 "$log" >&2
    fail "Installing failed; the lines above are the end of $log. With the cause gone (network," \
      "proxy, disk space?), run the same command again."
  fi
  if ! "$python" -c 'import tensorflow, tensorflow_addons, tfreid' >>"$log" 2>&1; then
    say '' && tail -n 15 "$log" >&2
    fail "TensorFlow was installed but does not import; the lines above are the end of $log."
  fi
}

mkdir -p "$VENV"
# Two makes at once take turns. Where there is no flock (macOS), they must not be run at once.
if command -v flock >/dev/null 2>&1; then
  exec 9>"$VENV/.lock"
  if ! flock -n 9; then
    say "Waiting for the other run that is setting up $VENV"
    flock 9
  fi
fi

key="$(cat setup.cfg constraints/*.txt | cksum) $EXTRAS"
# An environment does not survive being moved: its programs name their interpreter by its path.
place=$(cd "$VENV" && pwd -P)

wanted=''
if [ -n "${PYTHON:-}" ]; then wanted=$(probe "$PYTHON"); fi
present=''
if [ -x "$python" ]; then present=$(probe "$python"); fi

if [ -f "$unfinished" ] || { [ -f "$stamp" ] && [ -z "$present" ]; }; then
  say "The environment $VENV is not whole (an interrupted set-up?); making it anew"
  make_environment
elif [ -f "$stamp" ] && [ "$(sed -n 2p "$stamp")" != "$place" ]; then
  say "The environment $VENV was made for $(sed -n 2p "$stamp"); making it anew"
  make_environment
elif [ "$present" != "${present#no }" ]; then
  fail "$VENV holds Python ${present#no }, and tfreid needs 3.9, 3.10 or 3.11; delete $VENV, or" \
    "choose another folder with 'make ... VENV=folder'."
elif [ -z "$present" ] || { [ -n "${PYTHON:-}" ] && [ "$wanted" != "$present" ]; }; then
  make_environment
elif [ -f "$stamp" ] && [ "$(sed -n 1p "$stamp")" = "$key" ]; then
  exit 0
fi

: >"$unfinished"
rm -f "$stamp"
install
printf '%s\n' "$key" "$place" >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -f "$unfinished"
say "The environment $VENV is ready."
