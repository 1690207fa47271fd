#!/usr/bin/python3
"""Rules about the sources that a compiler does not check.

layers    a library includes only headers of libraries below it (ARCHITECTURE.md)
headers   every header compiles alone and has an include guard
names     file names are unique in the repository's sources
format    clang-format has nothing to change
roles     a C file opens with a comment that says its role
programs  setting up a build looks for no program that ./run does not install
"""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What each library may include besides itself and include/starling/.
BELOW = {"base": []}
BELOW["kernels"] = ["base"]
BELOW["text"] = ["base"]
BELOW["cache"] = ["base"]
BELOW["route"] = ["base"]
BELOW["events"] = ["cache", "base"]
BELOW["transfer"] = ["cache", "base"]
BELOW["cluster"] = ["route", "events", "base"]
BELOW["model"] = ["cache", "kernels", "base"]
BELOW["engine"] = ["model", "events", "transfer", "cache", "kernels", "base"]
BELOW["api"] = ["engine", "model", "cache", "text", "base"]
BELOW["gateway"] = ["cluster", "route", "events", "api", "text", "base"]
BELOW["server"] = ["api", "engine", "model", "cache", "text", "base"]
BELOW["cli"] = ["server", "api", "engine", "model", "cache", "text", "kernels", "base"]


def sources():
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.c", "*.h"], cwd=ROOT,
                         capture_output=True, text=True, check=True).stdout.split()
    return [f for f in out if os.path.exists(f"{ROOT}/{f}")]


def layers(files):
    for f in files:
        m = re.match(r"src/(\w+)/", f)
        if not m:
            continue
        lib = m[1]
        if lib not in BELOW:
            yield f"{f}: src/{lib} has no place in the layers of tests/check_source.py"
            continue
        for line in open(f"{ROOT}/{f}"):
            inc = re.match(r'\s*#\s*include "(\w+)/', line)
            if inc and inc[1] not in [lib, "starling", *BELOW[lib]]:
                yield f"{f}: src/{lib} must not include {inc[1]}/"


def headers(files):
    for f in files:
        if not f.endswith(".h"):
            continue
        if not re.search(r"#ifndef \w+_H\w*\n#define \w+_H\w*\n", open(f"{ROOT}/{f}").read()):
            yield f"{f}: no include guard"
        # Some need an instruction set, the module's nginx's.
        if not f.startswith(("include/", "src/")) or re.search(r"/avx|/neon/|/gateway/", f):
            continue
        r = subprocess.run(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-fsyntax-only", "-Wall",
                            "-Wextra", "-Werror", "-Iinclude", "-Isrc", "-x", "c", f], cwd=ROOT,
                           capture_output=True, text=True)
        if r.returncode:
            yield f"{f}: does not compile alone\n{r.stderr}"


def names(files):
    seen = {}
    for f in files:
        base = os.path.basename(f)
        if base in seen:
            yield f"{f}: {seen[base]} has the same file name"
        seen[base] = f


def roles(files):
    for f in files:
        if not open(f"{ROOT}/{f}").read(2) == "/*":
            yield f"{f}: opens without a comment that says its role"


def format_(files):
    files = [f for f in files if not f.startswith("src/gateway/")]  # nginx style
    r = subprocess.run(["clang-format", "--dry-run", "-Werror", *files], cwd=ROOT,
                       capture_output=True, text=True)
    if r.returncode:
        yield "clang-format -i would change:\n" + "\n".join(
            sorted({line.split(":")[0] for line in r.stderr.splitlines() if ": error:" in line}))


# What tests alone need is found when they run, by env: ./run installs only what builds need.
PROGRAMS = {"/usr/bin/python3", "env", "configure_nginx.sh"}


def programs(_):
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*meson.build"], cwd=ROOT,
                         capture_output=True, text=True, check=True).stdout.split()
    for f in out:
        for name in re.findall(r"find_program\('([^']*)'", open(f"{ROOT}/{f}").read()):
            if name not in PROGRAMS:
                yield f"{f}: looks for {name}, which a machine that only builds need not have"


def main():
    files = sources()
    bad = [e for check in (layers, headers, names, roles, programs, format_)
           for e in check(files)]
    print("\n".join(bad) or f"{len(files)} files checked")
    sys.exit(1 if bad or not files else 0)


main()
