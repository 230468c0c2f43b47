#!/bin/sh
# find_python.sh LEAST: prints a Python 3 with a minor version of at least LEAST, the newest that is on PATH or under
# pyenv; ends with 1 if there is none.
set -eu
least=$1 minor=20
while [ "$minor" -ge "$least" ]; do
  for python in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor".*/bin/python; do
    # A shim of pyenv is on PATH for versions that are not enabled, too.
    "$python" -c 'import ensurepip, venv' 2>/dev/null && command -v "$python" && exit 0
  done
  minor=$((minor - 1))
done
exit 1
