"""Starts `starling serve` for a test and talks to it: used by every test in this folder.

The binary's path comes from the environment (STARLING, default build/starling)."""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STARLING = os.environ.get("STARLING", os.path.join(ROOT, "build", "starling"))
PATIENCE = 4 if os.environ.get("SANITIZED") else 1  # how much longer things may take
CHAT = {"messages": [{"role": "user", "content": "What does courage mean?"}]}
# A prompt that the lexicon answers without end: with ignore_eos it runs to max_tokens.
ENDLESS = {**CHAT, "ignore_eos": True, "max_tokens": 1900}


def wait_for(condition, seconds=30, what="condition"):
    """Polls until condition() is true; sanitizer builds and loaded machines need the patience."""
    seconds *= PATIENCE
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.01)


class Server:
    """A server process on a free port. Use as a context manager."""

    def __init__(self, *args, uds=None, env=None):
        self.args, self.uds, self.env = args, uds, env

    def __enter__(self):
        address = ["--uds", self.uds] if self.uds else ["--host", "127.0.0.1", "--port", "0"]
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [STARLING, "serve", *address, *self.args], stdout=subprocess.PIPE, stderr=self.log,
            text=True, env={**os.environ, "STARLING_API_KEY": "", **(self.env or {})})
        self.port = None
        for line in self.process.stdout:
            found = re.match(r"serving on (?:http://\S+:(\d+)|unix:)", line)
            if found:
                self.port = int(found.group(1) or 0)
                break
        if self.port is None:
            raise AssertionError(f"the server did not start: {self.stderr()}")
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60 * PATIENCE)  # a text being tokenized is finished first
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()
            if exc[0]:
                sys.stderr.write(self.stderr()[-4000:])
            code = self.process.returncode
            text = self.stderr()
            self.log.close()
        assert "Sanitizer" not in text and "runtime error" not in text, text[-4000:]
        assert code == 0, f"the server's exit code is {code}: {text[-2000:]}"

    def stderr(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def connect(self, timeout=60):
        if self.uds:
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(timeout)
            s.connect(self.uds)
        else:
            s = socket.create_connection(("127.0.0.1", self.port), timeout)
        return s

    def request(self, method, path, body=None, headers=None):
        """One request on a new connection: (status, headers, bytes)."""
        c = http.client.HTTPConnection("127.0.0.1", self.port or 80, timeout=60 * PATIENCE)
        c.sock = self.connect(60)
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        c.request(method, path, body, headers or {})
        r = c.getresponse()
        data = r.read()
        c.close()
        return r.status, r.headers, data

    def json(self, method, path, body=None, headers=None):
        status, _, data = self.request(method, path, body, headers)
        return status, json.loads(data)

    def raw(self, data, timeout=60):
        """Sends bytes and reads until the server closes."""
        with self.connect(timeout) as s:
            s.sendall(data)
            return read_all(s)

    def metric(self, name):
        """The sum over all labels of a metric."""
        text = self.request("GET", "/metrics")[2].decode()
        values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        assert values, f"no metric {name}"
        return sum(map(float, values))

    def idle(self):
        return (self.metric("vllm:num_requests_running") == 0
                and self.metric("vllm:num_requests_waiting") == 0
                and self.metric("vllm:kv_cache_usage_perc") == 0)

    def stream(self, body, path="/v1/chat/completions"):
        """Starts a stream; returns the socket after its first event has arrived."""
        data = json.dumps({**body, "stream": True}).encode()
        s = self.connect()
        s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                  % (path.encode(), len(data), data))
        got = b""
        while b"data: " not in got:
            more = s.recv(65536)
            assert more, got
            got += more
        return s, got


def read_all(s):
    got = b""
    while True:
        try:
            more = s.recv(65536)
        except ConnectionResetError:
            return got
        if not more:
            return got
        got += more


def events(stream):
    """The data of server-sent events within raw chunked bytes."""
    return re.findall(rb"data: (.*)\n\n", stream)
