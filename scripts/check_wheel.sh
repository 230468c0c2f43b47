#!/bin/sh
# check_wheel.sh FOLDER: whether the package installed there runs on every Linux of its architecture with glibc 2.34 and
# the C++ runtime of GCC 11 (manylinux_2_34; Debian 12, Ubuntu 22.04, RHEL 9), and asks for no other library.
set -eu
module=$(find "$1" -name '_core*.so')
readelf --dynamic "$module" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
  grep -vxE '(libstdc\+\+|libm|libgcc_s|libc|libdl|libpthread|ld-linux.*)\.so\.[0-9]+' && {
  echo "$module asks for these libraries" >&2
  exit 1
}
versions=$(objdump --dynamic-syms "$module" | grep -oE '(GLIBC|GLIBCXX|CXXABI|GCC)_[0-9.]+' | sort -Vu)
for limit in GLIBC_2.34 GLIBCXX_3.4.29 CXXABI_1.3.13 GCC_12.0.0; do
  newest=$(echo "$versions" | grep "^${limit%_*}_" | tail -n 1)
  [ "$(printf '%s\n' "$newest" "$limit" | sort -V | tail -n 1)" = "$limit" ] || {
    echo "$module asks for $newest: expected at most $limit" >&2
    exit 1
  }
done
echo "wheel: $(echo "$versions" | grep ^GLIBC_ | tail -n 1), $(echo "$versions" | grep ^GLIBCXX_ | tail -n 1)"
