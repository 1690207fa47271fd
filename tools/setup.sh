#!/bin/sh
# Installs what is missing to build Starling, or (setup.sh test) to test it as well: Debian
# packages from tools/packages.txt, and for tests the npm packages of tests/js. Asks for root only
# when a package is missing; does nothing, and needs no network, when all is there.
set -eu
cd "$(dirname "$0")/.."
want=${1:-build}

missing=""
while read -r group package; do
    case "$group" in '' | '#'*) continue ;; esac
    [ "$group" = test ] && [ "$want" != test ] && continue
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] ||
        missing="$missing $package"
done <tools/packages.txt
if [ "$want" = test ]; then
    command -v node >/dev/null 2>&1 || missing="$missing nodejs"
    command -v npm >/dev/null 2>&1 || missing="$missing npm"
fi

if [ -n "$missing" ]; then
    echo "setup: installing$missing" >&2
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        if command -v sudo >/dev/null 2>&1; then
            as_root=sudo
        else
            echo "setup: these Debian packages are missing; as root, run:" >&2
            echo "  apt-get update && apt-get install -y$missing" >&2
            exit 1
        fi
    fi
    export DEBIAN_FRONTEND=noninteractive
    $as_root apt-get update -qq >&2
    # Debian starts a web server on port 80 when its nginx is installed: only the program is wanted.
    case "$missing" in *" nginx"*) no_service=1 ;; *) no_service="" ;; esac
    if [ "$no_service" ] && [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' | $as_root tee /usr/sbin/policy-rc.d >/dev/null
        $as_root chmod 755 /usr/sbin/policy-rc.d
        trap '$as_root rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    # shellcheck disable=SC2086 # a list of words
    $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
    if [ "$no_service" ] && [ -d /run/systemd/system ]; then
        $as_root systemctl disable --quiet nginx.service >&2 || true
    fi
fi

# npm packages: again only when the lock file changed since they were installed.
if [ "$want" = test ] && [ -f tests/js/package-lock.json ] && ! cmp -s tests/js/package-lock.json tests/js/node_modules/.installed-lock; then
    echo "setup: installing the npm packages of tests/js" >&2
    (cd tests/js && npm ci --no-audit --no-fund --loglevel=error >&2)
    cp tests/js/package-lock.json tests/js/node_modules/.installed-lock
fi
