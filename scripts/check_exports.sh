#!/bin/sh
# check_exports.sh LIBRARY: fails unless all that the shared library exports is the C ABI's pm_* functions.
set -eu
exported=$(nm -D --defined-only --format=posix "$1" | cut -d ' ' -f 1)
echo "$exported" | grep -q '^pm_' || { echo "$1 exports no pm_ function" >&2; exit 1; }
foreign=$(echo "$exported" | grep -v '^pm_' || :)
[ -z "$foreign" ] || { printf '%s exports more than pm_*:\n%s\n' "$1" "$foreign" >&2; exit 1; }
