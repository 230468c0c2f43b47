#!/bin/sh
# make_venv.sh FOLDER REQUIREMENTS: a virtual environment with these packages, left alone if it has them already.
set -eu
folder=$1 requirements=$2
[ -x "$folder/bin/pip" ] || python3 -m venv "$folder"
cmp -s "$requirements" "$folder/installed.txt" && exit 0
"$folder/bin/pip" --disable-pip-version-check install --quiet --requirement "$requirements"
cp "$requirements" "$folder/installed.txt"
