#!/usr/bin/env bash
# Installs the Debian packages that building and testing need, where we may and they are missing. Prints nothing when all is there.
source "$(dirname "$0")/cache.sh"

packages=(cmake ninja-build g++ clang lld python3 python3-pip python3-venv python3-yaml git make binutils
          libgtest-dev googletest libbenchmark-dev libcli11-dev nlohmann-json3-dev libfmt-dev
          libncurses-dev chromium)
[ "${1:-}" = cross ] && packages+=(g++-aarch64-linux-gnu qemu-user)

missing=()
for p in "${packages[@]}"; do dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p"); done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
    say "missing packages: ${missing[*]} (apt-get install them)"
    exit 0 # cmake says which of them it cannot do without
fi
say "installing ${missing[*]}"
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
    >"$cache/apt.log" 2>&1 || { tail -5 "$cache/apt.log" >&2; exit 1; }
