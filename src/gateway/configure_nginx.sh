#!/bin/sh
# configure_nginx.sh NGINX_SOURCE OUT: makes ngx_auto_config.h for the module with the options
# nginx itself was built with (its signature must match), in OUT. Called by meson, once per folder.
set -eu
source=$1
out=$2
[ -s "$out/ngx_auto_config.h" ] && [ -e "$out/done" ] && exit 0
rm -rf "$out"
mkdir -p "$out"
cd "$source"
# NGX_CONF_FLAGS=( --with-compat ... ): a bash array, of plain words
flags=$(sed -e 's/^NGX_CONF_FLAGS=(//' -e 's/)[[:space:]]*$//' conf_flags)
# shellcheck disable=SC2086 # a list of words
if ! ./configure --builddir="$out" $flags >"$out/configure.log" 2>&1; then
    echo "nginx's configure failed; its log is $out/configure.log" >&2
    tail -n 5 "$out/configure.log" >&2
    exit 1
fi
touch "$out/done"
