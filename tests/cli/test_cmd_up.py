#!/usr/bin/python3
"""`starling up`: the whole stack starts, answers, and ends together, whoever ends first.

    test_cmd_up.py PATH_OF_STARLING PATH_OF_MODULE
"""
import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "gateway"))
from gateway_harness import free_port

STARLING, MODULE = map(os.path.abspath, sys.argv[1:])
failures = 0


def check(name, ok, detail=""):
    global failures
    failures += not ok
    print(f'{"ok" if ok else "FAIL"}: {name} {"" if ok else detail}', flush=True)


def up(*args, **kw):
    return subprocess.run([STARLING, "up", "--module", MODULE, *args], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60, **kw)


def descendants(pid):
    """Processes below pid: their ids."""
    parents = {}
    for name in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(name, encoding="utf-8", errors="replace") as f:
            stat = f.read()
            parents[int(stat.split(" ", 1)[0])] = int(stat.rsplit(")", 1)[1].split()[1])
    found = [pid]
    for p in found:
        found += [c for c, parent in parents.items() if parent == p and c not in found]
    return found[1:]


def gone(pids, seconds=20):
    end = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{p}") for p in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Stack:
    def __init__(self, *args):
        self.port = free_port()
        self.tmp = tempfile.mkdtemp(prefix="starling-up-")
        os.chmod(self.tmp, 0o777)  # root becomes nobody
        env = {**os.environ, "TMPDIR": self.tmp}
        env.pop("XDG_RUNTIME_DIR", None)
        self.process = subprocess.Popen(
            [STARLING, "up", "--module", MODULE, "--host", "127.0.0.1", "--port", str(self.port),
             *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=env)
        self.said = ""
        while "curl" not in self.said:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError("it did not start: " + self.process.stderr.read())
            self.said += line
        self.children = descendants(self.process.pid)

    def engine(self, role):  # or nginx' master
        for pid in self.children:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as f:
                line = f.read().split("\0")
            if "serve" in line and role in line or role == "gateway" and "master" in line[0]:
                return pid
        raise AssertionError(f"no {role} engine among {self.children}")

    def get(self, path, body=None, headers=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode() if body else None,
            {"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=60) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def end(self, sig=None):
        if sig:
            self.process.send_signal(sig)
        code = self.process.wait(60)
        left = os.listdir(self.tmp)
        shutil.rmtree(self.tmp)
        return code, self.process.stderr.read(), left, gone(self.children)


CHAT = {"model": "lexicon", "max_tokens": 4,
        "messages": [{"role": "user", "content": "What does river mean?"}]}


def test_options():
    r = up("--dry-run", "--served-model-name", "m", "--served-model-name", 'a "b"', "--prefill", "2",
           "--decode", "3", "--handoff", "parallel", "--api-key", "K", "--port", "9999",
           "--host", "::1", "--workers", "5")
    for text in ('model "m" "tokenizer=', '"alias=a \\"b\\""', "handoff parallel;", 'api_key "K";',
                 "listen [::1]:9999;", "worker_processes 5;", "prefill1.sock", "decode2.sock"):
        check(f"--dry-run: {text}", r.returncode == 0 and text in r.stdout, r)
    r = up("--dry-run", "--prefill", "0")
    check("no prefill: one pool", "role both" in r.stdout and "pool prefill" not in r.stdout, r)
    for args, text in [(["--handoff", "late"], "--handoff late: expected sequential or parallel"),
                       (["--nginx", "/no/nginx"], "--nginx /no/nginx: No such file"),
                       (["--module", "/no/module.so"], "--module /no/module.so: No such file"),
                       (["--api-key", "a\nb", "--dry-run"], "a line break"),
                       (["--host", "nowhere.invalid"], "--host nowhere.invalid:"),
                       (["/no/such/model"], "/no/such/model")]:
        r = up(*args)
        check(f"refused: {' '.join(args)!r}", r.returncode != 0 and text in r.stderr, r)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        r = up("--host", "127.0.0.1", "--port", str(s.getsockname()[1]))
        check("a port that is taken", r.returncode == 1 and "cannot be listened on" in r.stderr, r)
    r = up("--engine-option=--nonsense", "--once", "x")
    check("an engine that does not start is named",
          r.returncode == 1 and "engine 0" in r.stderr and "exit code 2" in r.stderr
          and "unknown option '--nonsense'" in r.stderr, r)


def test_life(mode):
    s = Stack("--handoff", mode, "--api-key", "K")
    key = {"Authorization": "Bearer K"}
    status, text = s.get("/v1/chat/completions", CHAT)
    check(f"{mode}: no key: 401", status == 401, text)
    status, text = s.get("/v1/chat/completions", CHAT, key)
    check(f"{mode}: an answer", status == 200 and "river" in text, text)
    status, text = s.get("/starling/status")
    engines = json.loads(text)["clusters"][0]["engines"]
    check(f"{mode}: two engines are up", sorted((e["role"], e["health"]) for e in engines)
          == [("decode", "up"), ("prefill", "up")], text)
    check(f"{mode}: /health", s.get("/health")[0] == 200)
    users = {os.stat(f"/proc/{pid}").st_uid for pid in s.children}
    code, said, left, dead = s.end(signal.SIGTERM)
    # Where user nobody cannot read this checkout it says so and goes on as root.
    check(f"{mode}: root only when it must be",
          (0 in users) == (os.getuid() == 0 and "run as root" in said), (users, said))
    check(f"{mode}: SIGTERM ends all", code == 0 and not left and dead
          and "error" not in said and "emerg" not in said,
          (code, said, left, dead))


def test_deaths():
    s = Stack()
    os.kill(s.engine("prefill"), signal.SIGKILL)
    code, said, left, dead = s.end()
    check("an engine that dies ends all and is named", code == 1 and not left and dead
          and "prefill engine 0" in said and "signal 9" in said, (code, said, left, dead))
    s = Stack("--prefill", "0")
    os.kill(s.engine("gateway"), signal.SIGKILL)
    code, said, left, dead = s.end()
    check("a gateway that dies ends all, its workers, too", code == 1 and not left and dead
          and "gateway" in said and "signal 9" in said, (code, said, left, dead))
    s = Stack("--prefill", "0")
    s.process.kill()
    check("children do not outlive the parent", gone(s.children), s.children)
    s.end()


def test_once():
    r = up("--once", "What does river mean?", "--max-tokens", "4", "--temperature", "0")
    check("--once", r.returncode == 0 and "river" in r.stdout and not r.stderr, r)


test_options()
test_once()
test_life("sequential")
test_life("parallel")
test_deaths()
sys.exit(failures > 0)
