#!/bin/sh
# extract_snippets.sh FOLDER FILE.md...: writes each ```cpp block, a whole program, to FOLDER/<file>_<n>.cc.
set -eu
folder=$1
shift
mkdir -p "$folder"
for page; do
  awk -v stem="$folder/$(basename "$page" .md)" '
    /^```cpp$/ { source = stem "_" ++n ".cc"; printf "" > source; next }
    /^```$/    { source = ""; next }
    source     { print > source }' "$page"
done
