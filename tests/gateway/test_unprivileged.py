"""Nothing of the gateway needs root: test_flow again as an ordinary user, when tests run as root."""
import os
import pwd
import subprocess
import sys
import tempfile

import gateway_harness as h

USER = "nobody"


def test_as_ordinary_user():
    if os.getuid() != 0:
        print("     (the tests run as an ordinary user anyway)")
        return
    user = pwd.getpwnam(USER)
    drop = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
            "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    # What lies in a home of root's cannot be run by anybody else: that is no fault of the gateway.
    for path in (h.STARLING, h.MODULE, h.LEXICON, os.path.join(h.HERE, "test_flow.py")):
        if subprocess.run([*drop, "test", "-r", path], check=False).returncode:
            print(f"     ({USER} may not read {path}: not tested)")
            sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, user.pw_uid, user.pw_gid)
        env = {**os.environ, "TMPDIR": folder, "HOME": folder, "PYTHONDONTWRITEBYTECODE": "1",
               "STARLING": h.STARLING, "STARLING_MODULE": h.MODULE}
        done = subprocess.run([*drop, sys.executable, os.path.join(h.HERE, "test_flow.py")],
                              env=env, cwd=folder, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "tests passed" in done.stdout and "failed" not in done.stdout, done.stdout


if __name__ == "__main__":
    h.main(globals())
