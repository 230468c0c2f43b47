#!/bin/sh
# make_venv.sh FOLDER REQUIREMENTS [REQUIREMENTS]: a virtual environment with these packages, left alone if it has them
# already. Those of the second file come without what they ask for. PYTHON: the interpreter, instead of python3.
set -eu
folder=$1 requirements=$2 alone=${3:-/dev/null}
[ -x "$folder/bin/pip" ] || "${PYTHON:-python3}" -m venv "$folder"
cat "$requirements" "$alone" | cmp -s - "$folder/installed.txt" && exit 0
pip() { "$folder/bin/pip" --disable-pip-version-check install --quiet "$@"; }
pip --requirement "$requirements"
[ "$alone" = /dev/null ] || pip --no-deps --requirement "$alone"
cat "$requirements" "$alone" >"$folder/installed.txt"
