#!/bin/sh
# check_isa_leaks.sh FOLDER: the linker keeps one copy of each weak symbol, so a weak symbol of an object built with
# an ISA's flags may run on machines without that ISA, unless its name says whose it is. Fails if one does not.
set -eu
objects=$(find "$1" -path "*/isa/*" -name "*.o")
[ -n "$objects" ] || { echo "no objects of an ISA under $1" >&2; exit 1; }
leaks=0
for object in $objects; do
  isa=$(basename "$(dirname "$object")" | sed 's/_/_\\?/')
  found=$(nm -C --defined-only "$object" | grep ' [WVu] ' | grep -v ' DW\.ref\.' | grep -iv "$isa" || :)
  [ -z "$found" ] && continue
  printf '%s: weak symbols that do not name their ISA:\n%s\n' "$object" "$found" >&2
  leaks=1
done
exit $leaks
