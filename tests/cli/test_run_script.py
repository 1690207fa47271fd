#!/usr/bin/python3
"""./run where others would not run it: through a link, after an interrupted set-up, in a folder
whose name has spaces, in a tree that cannot be written. No compiler runs: the clone is given this
build's binary and module, and stand-ins for meson's results. Every answer comes through the gateway
and two engines.

    test_run_script.py PATH_OF_STARLING PATH_OF_MODULE
"""
import os
import shutil
import subprocess
import sys
import tempfile

STARLING, MODULE = map(os.path.abspath, sys.argv[1:])
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
failures = 0


def check(name, ok, detail=""):
    global failures
    failures += not ok
    print(f'{"ok" if ok else "FAIL"}: {name} {"" if ok else detail}')


def run(path, *args):
    return subprocess.run([path, "--once", *args], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60, cwd="/")


def answers(name, path):
    r = run(path, "What does river mean?", "--max-tokens", "4")
    check(name, r.returncode == 0 and "river" in r.stdout and not r.stderr, r)


with tempfile.TemporaryDirectory() as folder:
    tree = os.path.join(folder, "a tree")
    os.makedirs(os.path.join(tree, "build"))
    shutil.copytree(os.path.join(ROOT, "models"), os.path.join(tree, "models"))
    shutil.copytree(os.path.join(ROOT, "tools"), os.path.join(tree, "tools"))
    shutil.copy(os.path.join(ROOT, "run"), tree)
    shutil.copy(STARLING, os.path.join(tree, "build", "starling"))
    shutil.copy(MODULE, os.path.join(tree, "build", "ngx_http_starling_module.so"))
    script, ninja = os.path.join(tree, "run"), os.path.join(tree, "build", "build.ninja")

    with open(ninja, "w") as f:
        f.write("build starling: phony\nbuild ngx_http_starling_module.so: phony\n")
    answers("a folder with a space", script)
    link = os.path.join(folder, "link")
    os.symlink(script, link)
    answers("through a link", link)
    r = run(script)
    check("--once without a prompt", r.returncode == 2 and "usage" in r.stderr, r)

    os.remove(ninja)
    with open(os.path.join(tree, "meson.build"), "w") as f:
        f.write("project('stand-in')\n")
    # meson's own notes without build.ninja: what an interrupted set-up leaves.
    subprocess.run(["/usr/bin/meson", "setup", os.path.join(tree, "build"), tree], check=True,
                   stdout=subprocess.DEVNULL)
    os.remove(ninja)
    run(script, "x")
    check("an interrupted set-up is done again", os.path.exists(ninja))

    if os.getuid() != 0:  # root writes everywhere
        with open(ninja, "w") as f:
            f.write("build starling: phony\nbuild ngx_http_starling_module.so: phony\n")
        os.chmod(os.path.join(tree, "build"), 0o555)
        answers("a tree that cannot be written", script)
        os.chmod(os.path.join(tree, "build"), 0o755)
sys.exit(failures > 0)
