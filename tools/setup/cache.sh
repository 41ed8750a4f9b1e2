# Where everything that is fetched or built for tests and demos lives: outside the checkout, so that a fresh clone finds it again.
# Sourced by the other scripts of this folder.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${GGML_ALLOY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ggml-alloy}
mkdir -p "$cache"

say() { printf '\033[2m[setup]\033[0m %s\n' "$*" >&2; }

# need COMMAND PACKAGE: installs a Debian package when its command is missing and we may.
need() {
    command -v "$1" >/dev/null 2>&1 && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing $2"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2"; } >"$cache/apt.log" 2>&1 && return 0
        say "could not install $2 (see $cache/apt.log)"
    fi
    return 1
}
