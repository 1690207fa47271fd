#!/bin/sh
# Prepares cross-building for 64-bit ARM on Debian (packages gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross, qemu-user):
#
#   tools/cross_arm64.sh
#   /usr/bin/meson setup build-arm64 --cross-file build-arm64-sysroot/cross.ini
#   ninja -C build-arm64 && /usr/bin/meson test -C build-arm64 --suite kernels
#   qemu-aarch64 -L build-arm64-sysroot build-arm64/starling run -p 'hello'
#
# Collects Debian's arm64 libraries that Starling is built with in build-arm64-sysroot: the packages
# `build lib*-dev` of tools/packages.txt and what they depend on. Nothing is installed, no
# architecture is added to this machine's dpkg and no root is needed: apt-get runs on lists and a
# package database of its own (20 MB from the network), dpkg-deb unpacks. The C library to link with
# is Debian's libc6-dev-arm64-cross. Does nothing when all is there.
set -eu
cd "$(dirname "$0")/.."
to=$PWD/build-arm64-sysroot
packages=$(awk '$1 == "build" && $2 ~ /^lib.*-dev$/ && $2 != "libc6-dev" {print $2}' tools/packages.txt)
made_of="$packages $(cksum <tools/cross_arm64.sh)"
[ "$(cat "$to/made_of" 2>/dev/null)" = "$made_of" ] && exit 0
command -v apt-get >/dev/null || { echo "sysroot: needs Debian's apt-get" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
# What packages depend on but neither the linker nor the tests look at.
cat >"$work/status" <<'END'
Package: not-needed
Status: install ok installed
Architecture: all
Version: 1
Maintainer: none
Description: stands for packages that are left out
Provides: libc-dev, libc6-dev (= 99), libgcc-12-dev (= 99), libstdc++-dev,
 libstdc++-12-dev (= 99), libboost-dev (= 99), libmsgpack-cxx-dev (= 99), libicu-dev (= 99),
 libxml2-dev (= 99), libkrb5-dev (= 99), libbsd-dev (= 99), adduser (= 99), debconf (= 99),
 libgomp1 (= 99)

END
cat >"$work/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "$work/state";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
END
export APT_CONFIG="$work/apt.conf"
echo "sysroot: collecting Debian's arm64 libraries in build-arm64-sysroot" >&2
apt-get update -qq >&2
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --download-only $packages >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
rm -rf "$to"
mkdir "$to"
for deb in "$work"/cache/archives/*.deb; do
    dpkg-deb --extract "$deb" "$to"
done
rm -rf "$to/usr/share" "$to/usr/bin" "$to/var" "$to/etc"

# What pkg-config wants for linking libzmq statically, which no one does here.
mkdir "$to/unused"
for name in krb5-gssapi libbsd libxml-2.0; do
    printf 'Name: %s\nDescription: left out\nVersion: 99\n' $name >"$to/unused/$name.pc"
done

libraries=$to/usr/lib/aarch64-linux-gnu
cat >"$to/cross.ini" <<END
[binaries]
c = 'aarch64-linux-gnu-gcc'
ar = 'aarch64-linux-gnu-gcc-ar'
strip = 'aarch64-linux-gnu-strip'
pkgconfig = 'pkg-config'
exe_wrapper = ['qemu-aarch64', '-L', '$to']

[properties]
sys_root = '$to'
pkg_config_libdir = ['$libraries/pkgconfig', '$to/unused']

[built-in options]
c_link_args = ['-L$libraries', '-Wl,-rpath-link,$libraries', '-Wl,-rpath-link,$to/lib/aarch64-linux-gnu']

[project options]
gateway = 'disabled' # nginx's headers are this machine's

[host_machine]
system = 'linux'
cpu_family = 'aarch64'
cpu = 'aarch64'
endian = 'little'
END
echo "$made_of" >"$to/made_of" # last: all is there
