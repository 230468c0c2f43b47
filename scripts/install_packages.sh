#!/bin/sh
# Installs those of the named Debian packages that are missing, as root or through sudo.
set -eu

missing() {
  for package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s ' "$package"
  done
}

command -v apt-get >/dev/null || { echo "no apt-get here; needed: $*" >&2; exit 0; }
wanted=$(missing "$@")
[ -n "$wanted" ] || exit 0

as_root=
[ "$(id -u)" -eq 0 ] || as_root=sudo
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }
echo "Installing $wanted" >&2
apt update
# shellcheck disable=SC2086 # one word a package
apt install -y --no-install-recommends $wanted | grep --line-buffered '^Setting up' || :
wanted=$(missing "$@")
[ -z "$wanted" ] || { echo "could not install $wanted" >&2; exit 1; }
