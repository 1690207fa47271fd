"""Starts what a gateway test needs and talks to it: real nginx with the module, engines
(`starling serve`), stand-ins for vLLM and SGLang (Node), and clients made of raw sockets.

From the environment: STARLING (the binary), STARLING_MODULE (the module), SANITIZED (the build has
sanitizers), NGINX, NODE. Standard library only."""
import contextlib
import glob
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
STARLING = os.environ.get("STARLING", os.path.join(ROOT, "build", "starling"))
MODULE = os.environ.get("STARLING_MODULE", os.path.join(
    os.path.dirname(STARLING), "ngx_http_starling_module.so"))
SIM_ENGINE = os.path.join(os.path.dirname(STARLING), "bench", "gateway", "sim_engine")
NGINX = os.environ.get("NGINX", "/usr/sbin/nginx")
NODE = os.environ.get("NODE", "node")
SANITIZED = bool(os.environ.get("SANITIZED"))
PATIENCE = 15 if SANITIZED else 6  # how much longer things may take
LEXICON = os.path.join(ROOT, "models", "lexicon", "int8")
CHAT = {"model": "lexicon", "messages": [{"role": "user", "content": "What does courage mean?"}]}


def wait_for(condition, seconds=10, what="condition"):
    """Polls until condition() is true, and returns what it returned."""
    end = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds * PATIENCE} s")
        time.sleep(0.01)


class Ports:
    """Ports for this test process alone, below those that the system hands out: nobody else takes
    one between two uses, when what listened there is started again."""
    FIRST, EACH, SHARES = 20000, 400, 30

    def __init__(self):
        self.owner, self.next = None, 0

    def share(self):
        """Where this process's ports begin. A name in the abstract namespace says that it has them;
        it is gone with the process."""
        if not self.owner:
            for i in range(self.SHARES):
                owner = socket.socket(socket.AF_UNIX)
                try:
                    owner.bind(f"\0starling-test-ports-{i}")
                except OSError:
                    owner.close()
                    continue
                self.owner, self.first = owner, self.FIRST + i * self.EACH
                break
            else:
                raise AssertionError(f"{self.SHARES} test processes use all ports")
        return self.first

    def take(self, n):
        """n free ones in a row, not soon handed out again."""
        first = self.share()
        for _ in range(self.EACH):
            if self.next + n > self.EACH:
                self.next = 0
            start = first + self.next
            self.next += n
            if all(self.free(port) for port in range(start, start + n)):
                return start
        raise AssertionError(f"no {n} free ports from {first} to {first + self.EACH - 1}")

    @staticmethod
    def free(port):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True


PORTS = Ports()


def free_port():
    return PORTS.take(1)


def free_ports(n):
    """n ports in a row that are free now."""
    return PORTS.take(n)


# ---- the text that stand-ins answer with (standins/common.mjs has the same) ----

ENDINGS = ["", "é", '"\\', "\n\n", "😀", "data: [DONE]\n\n", "\x01\t"]


def hash_ids(ids):
    h = 0x811C9DC5
    for b in struct.pack(f"<{len(ids)}i", *ids):
        h = (h ^ b) * 0x01000193 & 0xFFFFFFFF
    return f"{h:08x}"


def answer_text(ids, n):
    """The n tokens that a stand-in generates after these ids."""
    h = hash_ids(ids)
    return "".join(f" {h}.{i}{ENDINGS[i % len(ENDINGS)]}" for i in range(n))


def text_ids(text):
    """What a stand-in takes for the ids of a prompt that came as text."""
    return list(text.encode())


def chat_text_ids(messages):
    return text_ids("".join(
        f"{m['role']}\n"
        + (m["content"] if isinstance(m.get("content"), str)
           else json.dumps(m.get("content"), separators=(",", ":"), ensure_ascii=False)) + "\n"
        for m in messages))


# ---- the lexicon's ids, as our own command line gives them ----

def _command(*args, text=None):
    r = subprocess.run([STARLING, *args], input=text, capture_output=True, text=True,
                       env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    assert r.returncode == 0, r.stderr
    return r.stdout


def tokenize(text):
    """The lexicon's ids of a completion's prompt."""
    return json.loads(_command("tokenize", "--add-special", "--jsonl",
                               text=json.dumps(text) + "\n"))


def chat_ids(messages):
    """The lexicon's ids of a chat's prompt."""
    prompt = _command("template", text=json.dumps(
        {"messages": messages, "add_generation_prompt": True}))
    return json.loads(_command("tokenize", "--jsonl", text=json.dumps(prompt) + "\n"))


# ---- processes ----

class Process:
    """A child whose output is kept; subclasses start it."""
    process = None

    def __enter__(self):
        self.start()
        return self

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """kill -9, as the machine might."""
        self.process.kill()
        self.process.wait()

    def stderr(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()


class StandIn(Process):
    """A vLLM or SGLang stand-in. Options as its command line has them, with underscores."""

    def __init__(self, kind, **options):
        self.kind, self.options = kind, options
        self.ports = {}
        # Ports of its own, which stay the same when it is started again.
        for name in ("port", "bootstrap_port") + (("side_port",) if kind == "vllm" else ()):
            if not options.get(name):
                options[name] = free_port()
        if options.get("events_port") == 0:
            options["events_port"] = free_ports(options.get("dp", 1))
            options["replay_port"] = free_ports(options.get("dp", 1))

    def start(self):
        self.log = tempfile.TemporaryFile(mode="w+")
        args = [NODE, os.path.join(HERE, "standins", f"{self.kind}.mjs")]
        for name, value in self.options.items():
            args += [f"--{name.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"{self.kind}.mjs did not start: {self.stderr()}")
        self.ports = json.loads(line)

    def restart(self):
        """kill -9, and the same again on the same ports, as a supervisor would."""
        if self.alive():
            self.kill()
        self.process.stdout.close()
        self.process.stdin.close()
        self.start()

    def __exit__(self, *exc):
        violations = self.state()["violations"] if self.alive() and not exc[0] else []
        if self.alive():
            self.process.stdin.close()
            try:
                self.process.wait(10 * PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process.stdout.close()
        if exc[0]:
            sys.stderr.write(f"--- {self.kind}.mjs {self.options}\n{self.stderr()[-2000:]}")
        self.log.close()
        assert not violations, "protocol violations:\n" + "\n".join(violations)

    @property
    def port(self):
        return self.ports["port"]

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def _control(self, method, path, body=None):
        c = http.client.HTTPConnection("127.0.0.1", self.ports["control"], timeout=20 * PATIENCE)
        c.request(method, path, None if body is None else json.dumps(body))
        r = c.getresponse()
        data = json.loads(r.read())
        c.close()
        assert r.status == 200, data
        return data

    def state(self):
        return self._control("GET", "/_control")

    def requests(self):
        """The last requests: path, headers, body, leg, ids, outcome, ..."""
        return self._control("GET", "/_control/requests")

    def order(self, **body):
        try:
            return self._control("POST", "/_control", body)
        except (ConnectionError, http.client.HTTPException):
            if body.get("kill"):
                return {}
            raise

    def fault(self, **faults):
        """Sets the faults (see standins/common.mjs); no argument: none. hold=1 keeps requests from
        going on until the next call: for states that a test must see however slow it is."""
        return self.order(faults=faults)

    def idle(self):
        s = self.state()
        return s["running"] == 0 and s.get("rooms_open", 0) == 0


class Engine(Process):
    """`starling serve` with the lexicon on a fixed port, so that it can come back there."""

    def __init__(self, *args, role="both", port=None):
        self.args, self.role = args, role
        self.port = port or free_port()

    def start(self):
        self.log = tempfile.TemporaryFile(mode="w+")
        role = ["--role", self.role] if self.role != "both" else []
        self.process = subprocess.Popen(
            [STARLING, "serve", "--host", "127.0.0.1", "--port", str(self.port), *role,
             *self.args], stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, "STARLING_API_KEY": ""})
        for line in self.process.stdout:
            if line.startswith("serving on "):
                break
        else:
            raise AssertionError(f"the engine did not start: {self.stderr()}")
        # Nobody reads on: what it prints later must not block it.
        self.drain = threading.Thread(target=lambda out: out.read(), args=(self.process.stdout,),
                                      daemon=True)
        self.drain.start()

    def restart(self):
        if self.alive():
            self.kill()
        self.start()

    def __exit__(self, *exc):
        killed = not self.alive()
        if not killed:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20 * PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                killed = False
        self.drain.join(5)
        self.process.stdout.close()
        text, code = self.stderr(), self.process.returncode
        self.log.close()
        if exc[0]:
            sys.stderr.write(f"--- engine {self.role}\n{text[-3000:]}")
            return
        assert "Sanitizer" not in text and "runtime error" not in text, text[-6000:]
        assert killed or code == 0, f"the engine's exit code is {code}: {text[-2000:]}"

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def request(self, method, path, body=None):
        return http_request(self.port, method, path, body)

    def json(self, method, path, body=None):
        status, _, data = self.request(method, path, body)
        return status, json.loads(data)

    def metric(self, name):
        text = self.request("GET", "/metrics")[2].decode()
        values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        assert values, f"no metric {name}"
        return sum(map(float, values))

    def idle(self):
        return (self.metric("vllm:num_requests_running") == 0
                and self.metric("vllm:num_requests_waiting") == 0
                and self.metric("vllm:kv_cache_usage_perc") == 0)


def asan_runtime():
    return subprocess.run(["clang", "-print-file-name=libclang_rt.asan-x86_64.so"],
                          capture_output=True, text=True, check=True).stdout.strip()


class Gateway(Process):
    """nginx with the module. pools: a list of (name, role, kind, [engine lines]); more: further
    lines of the cluster block; server: further lines of the server block."""

    def __init__(self, pools, more="", server="", models=None, workers=2, main="", http="",
                 listen=None, health_ms=200):
        self.pools, self.more, self.server = pools, more, server
        self.models = models or [f"lexicon tokenizer={LEXICON}"]
        self.workers, self.main, self.http = workers, main, http
        self.port = free_port()
        self.listen = listen
        self.health_ms = health_ms
        self.dir = None

    def conf(self):
        pools = "\n".join(
            f"pool {name} {{ role {role}; kind {kind};\n"
            + "\n".join(f"    engine {e};" for e in engines) + "\n}"
            for name, role, kind, engines in self.pools)
        models = "\n".join(f"model {m};" for m in self.models)
        health = "" if re.search(r"^\s*health\b", self.more, re.M) else \
            f"health interval={self.health_ms}ms;"
        user = "user nobody nogroup;" if os.getuid() == 0 else ""
        return f"""
load_module {MODULE};
{user}
daemon off;
worker_processes {self.workers};
worker_shutdown_timeout 20s;
pid {self.dir}/nginx.pid;
error_log {self.dir}/error.log info;
{self.main}
events {{ worker_connections 8192; }}
http {{
    access_log {self.dir}/access.log;
    client_body_temp_path {self.dir}/body;
    proxy_temp_path {self.dir}/proxy;
    fastcgi_temp_path {self.dir}/fastcgi;
    uwsgi_temp_path {self.dir}/uwsgi;
    scgi_temp_path {self.dir}/scgi;
    {self.http}
    starling_cluster main {{
        zone 32m;
        {models}
        {pools}
        {health}
        {self.more}
    }}
    server {{
        listen {self.listen or f"127.0.0.1:{self.port}"};
        {self.server}
        location /v1/       {{ starling main; }}
        location /starling/ {{ starling_status; }}
    }}
}}
"""

    def start(self):
        self.dir = tempfile.mkdtemp(prefix="starling-gw-")
        os.chmod(self.dir, 0o755)
        self.log = tempfile.TemporaryFile(mode="w+")
        self.write_conf()
        env = dict(os.environ)
        if SANITIZED:
            env["LD_PRELOAD"] = asan_runtime()
            env["ASAN_OPTIONS"] = (f"detect_leaks=1:abort_on_error=0:log_path={self.dir}/asan:"
                                   "allocator_may_return_null=1:exitcode=0")
            env["UBSAN_OPTIONS"] = f"print_stacktrace=1:log_path={self.dir}/ubsan"
            env["LSAN_OPTIONS"] = f"suppressions={HERE}/nginx.supp:print_suppressions=0"
            os.chmod(self.dir, 0o777)
        # Should the test be killed, nginx ends, too.
        self.process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", NGINX, "-p", self.dir, "-c", "nginx.conf", "-e", "stderr"],
                                        stdout=self.log, stderr=self.log, env=env)
        try:
            wait_for(self._answers, 20, "nginx answers")
        except AssertionError:
            self.process.kill()
            raise AssertionError(f"nginx did not start:\n{self.stderr()}\n{self.errors()}") from None

    def _answers(self):
        if not self.alive():
            raise AssertionError("nginx ended")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def write_conf(self):
        with open(f"{self.dir}/nginx.conf", "w", encoding="utf-8") as f:
            f.write(self.conf())

    def errors(self):
        with contextlib.suppress(FileNotFoundError), open(
                f"{self.dir}/error.log", encoding="utf-8", errors="replace") as f:
            return f.read()
        return ""

    def __exit__(self, *exc):
        code = None
        if self.alive():
            self.process.send_signal(signal.SIGQUIT if not exc[0] else signal.SIGTERM)
            try:
                code = self.process.wait(30 * PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                code = "did not end"
        else:
            code = self.process.returncode
        reports = ""
        for name in glob.glob(f"{self.dir}/asan*") + glob.glob(f"{self.dir}/ubsan*"):
            with open(name, encoding="utf-8", errors="replace") as f:
                reports += f.read()
        errors, text = self.errors(), self.stderr()
        if not exc[0]:
            shutil.rmtree(self.dir, ignore_errors=True)
        else:
            sys.stderr.write(f"--- gateway ({self.dir})\n{text[-2000:]}\n{errors[-6000:]}\n{reports[:6000]}")
            return
        self.log.close()
        assert not reports, reports[:10000]
        assert "Sanitizer" not in text and "runtime error" not in text, text[-6000:]
        expected = getattr(self, "expect_alerts", False)
        bad = [line for line in errors.splitlines() if re.search(r"\[(alert|emerg|crit)\]", line)
               and not (expected and re.search(r"exited on signal 9|unlock mutex|connections are not enough",
                                                  line))]
        assert not bad, "\n".join(bad[:20])
        assert code == 0, f"nginx' exit code is {code}"

    # -- nginx' processes --

    def worker_pids(self):
        """Of workers that are not shutting down."""
        out = []
        for status in glob.glob("/proc/[0-9]*/stat"):
            with contextlib.suppress(OSError):
                with open(status, encoding="utf-8", errors="replace") as f:
                    stat = f.read()
                pid, ppid = int(stat.split(" ", 1)[0]), int(stat.rsplit(")", 1)[1].split()[1])
                if ppid == self.process.pid:
                    with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as f:
                        if "worker process" in (title := f.read()) and "shutting" not in title:
                            out.append(pid)
        return sorted(out)

    def reload(self):
        """SIGHUP; returns when new workers run."""
        before = set(self.worker_pids())
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(now := set(self.worker_pids())) == self.workers and not now & before,
                 20, "new workers")

    # -- what it says of itself --

    def request(self, method, path, body=None, headers=None, timeout=60):
        return http_request(self.port, method, path, body, headers, timeout)

    def json(self, method, path, body=None, headers=None, timeout=60):
        status, _, data = self.request(method, path, body, headers, timeout)
        try:
            return status, json.loads(data)
        except ValueError:
            raise AssertionError(f"{method} {path}: status {status}, no JSON: {data[:500]}") from None

    def status(self):
        status, body = self.json("GET", "/starling/status")
        assert status == 200, body
        return body

    def cluster(self, name="main"):
        clusters = self.status()["clusters"]
        return next(c for c in clusters if c["name"] == name) if isinstance(clusters, list) \
            else clusters[name]

    def metrics(self, text=None):
        """{'name{labels}': value} of /starling/metrics."""
        text = text or self.request("GET", "/starling/metrics")[2].decode()
        return {m[1]: float(m[2]) for m in re.finditer(r"^([a-z_:]\S*(?:\{.*\})?) (\S+)$", text, re.M)}

    def metric(self, name):
        values = [v for k, v in self.metrics().items() if k == name or k.startswith(name + "{")]
        assert values, f"no metric {name}"
        return sum(values)

    def ready(self, n=None, seconds=20):
        """Waits until n engines (default: all of them) are up."""
        n = sum(len(p[3]) for p in self.pools) if n is None else n
        wait_for(lambda: sum(e["health"] == "up" and not e["leaving"]
                             for e in self.cluster()["engines"]) >= n, seconds, f"{n} engines up")

    def busy(self):
        """What is not zero though nothing runs, or an empty list."""
        c = self.cluster()
        out = [f"{k} = {c[k]}" for k in ("in_flight", "waiting") if c[k]]
        out += [f"request {r}" for r in c["requests"]]
        for e in c["engines"]:
            for k, v in e["load"].items():
                if v:
                    out.append(f"engine {e['address']}: {k} = {v}")
        return out

    def check_idle(self, *others, seconds=10):
        """All counters return to zero, here and at the engines."""
        end = time.monotonic() + seconds * PATIENCE
        while True:
            left = self.busy() + [f"{o.address} is not idle" for o in others
                                  if o.alive() and not o.idle()]
            if not left:
                return
            if time.monotonic() > end:
                raise AssertionError("counters do not return to zero: " + "; ".join(left[:20]))
            time.sleep(0.02)

    def stream(self, body, path="/v1/chat/completions", **kw):
        return Stream(self.port, body, path, **kw)

    def chat(self, body, path="/v1/chat/completions", **kw):
        """A streamed request to its end: a Stream that has ended."""
        s = Stream(self.port, body, path, **kw)
        s.finish()
        return s


# ---- clients ----

def http_request(port, method, path, body=None, headers=None, timeout=60):
    """One request on a new connection: (status, headers, bytes)."""
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout * PATIENCE)
    headers = dict(headers or {})
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    if isinstance(body, str):
        body = body.encode()
    try:
        c.request(method, path, body, headers)
        r = c.getresponse()
        return r.status, r.headers, r.read()
    finally:
        c.close()


class Broken(AssertionError):
    """An answer that no client should get: cut short, or not HTTP."""


class Stream:
    """A streamed request on a raw socket, read strictly: the head, chunks, whole events."""
    CHUNK = re.compile(rb"([0-9a-fA-F]+)\r\n")

    def __init__(self, port, body, path="/v1/chat/completions", headers=None, timeout=60,
                 receive_buffer=None, start=True):
        data = body if isinstance(body, bytes) else json.dumps({**body, "stream": True}).encode()
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout * PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        lines = "".join(f"{k}: {v}\r\n" for k, v in (headers or {}).items())
        self.raw = bytearray()   # not yet taken apart
        self.body = bytearray()  # of the answer, without its framing
        self.status = None
        self.headers = {}
        self.whole = False   # the answer's last chunk came
        self.at = 0          # events taken from body
        self.started = time.monotonic()
        self.first_event = None
        if start:
            self.socket.sendall(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{lines}"
                f"Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def close(self):
        self.socket.close()

    def reset(self):
        """Leaves at once, with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _more(self):
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError as e:
            raise Broken(f"reset after {self.body[-200:]!r}") from e
        if not data:
            raise Broken(f"closed before its end, status {self.status}: {(self.raw + self.body)[-300:]!r}")
        self.raw += data

    def _head(self):
        while b"\r\n\r\n" not in self.raw:
            self._more()
        head, self.raw = bytes(self.raw).split(b"\r\n\r\n", 1)
        self.raw = bytearray(self.raw)
        lines = head.decode("latin1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", lines[0])
        if not found:
            raise Broken(f"no status line: {lines[0]!r}")
        self.status = int(found[1])
        self.headers = {k.strip().lower(): v.strip() for k, v in (s.split(":", 1) for s in lines[1:])}
        self.left = int(self.headers["content-length"]) if "content-length" in self.headers else None

    def _take(self):
        """Moves what is framed from raw to body; True when anything moved."""
        if self.left is not None:
            part, self.raw = self.raw[:self.left], self.raw[self.left:]
            self.body += part
            self.left -= len(part)
            self.whole = self.left == 0
            return bool(part) or self.whole
        if self.headers.get("transfer-encoding") != "chunked":
            raise Broken(f"no framing: {self.headers}")
        at = 0
        while found := self.CHUNK.match(self.raw, at):
            start, n = found.end(), int(found[1], 16)
            if len(self.raw) < start + n + 2:
                break
            self.body += self.raw[start:start + n]
            if self.raw[start + n:start + n + 2] != b"\r\n":
                raise Broken("a chunk's end is missing")
            at = start + n + 2
            if n == 0:
                self.whole = True
                break
        found = None  # lets go of raw, which could not shrink otherwise
        del self.raw[:at]
        return at > 0

    def head(self):
        if self.status is None:
            self._head()
        return self.status

    def next(self):
        """The next event's data (bytes), or None at the answer's end."""
        self.head()
        while True:
            end = self.body.find(b"\n\n", self.at)
            if end >= 0:
                event = self.body[self.at:end]
                self.at = end + 2
                if event.startswith(b":"):
                    continue
                if not event.startswith(b"data: ") or b"\n" in event:
                    raise Broken(f"no event: {event!r}")
                self.first_event = self.first_event or time.monotonic()
                return event[6:]
            if self.whole:
                if self.body[self.at:]:
                    raise Broken(f"the answer ends within an event: {bytes(self.body[self.at:])!r}")
                return None
            if not self._take():
                self._more()

    def finish(self):
        """Reads to the end. Fills events (parsed), done, error, text, usage."""
        self.head()
        if self.status != 200:
            while not self.whole:
                if not self._take():
                    self._more()
            try:
                self.error = json.loads(self.body)["error"]
            except (ValueError, KeyError, TypeError) as e:
                raise Broken(f"status {self.status} without an error: {self.body[:300]!r}") from e
            self.done, self.events, self.text = False, [], ""
            self.close()
            return self
        datas = []
        while (data := self.next()) is not None:
            datas.append(data)
        self.close()
        self.done = datas[-1:] == [b"[DONE]"]
        if b"[DONE]" in datas[:-1]:
            raise Broken("[DONE] is not the last event")
        try:
            self.events = [json.loads(d) for d in datas if d != b"[DONE]"]
        except ValueError as e:
            raise Broken(f"an event is no JSON: {datas}") from e
        self.error = next((e["error"] for e in self.events if "error" in e), None)
        choices = [c for e in self.events for c in e.get("choices", []) if c["index"] == 0]
        self.text = "".join((c["delta"].get("content") or "") if "delta" in c else c["text"]
                            for c in choices)
        self.reason = next((c["finish_reason"] for c in choices if c.get("finish_reason")), None)
        self.usage = next((e["usage"] for e in self.events if e.get("usage")), None)
        return self

    def check_whole(self, text=None):
        """The whole answer came: with its end, and with nothing missing."""
        assert self.status == 200, (self.status, self.error)
        assert self.error is None, self.error
        assert self.done, "no [DONE]"
        assert self.reason, "no finish_reason"
        if text is not None:
            assert self.text == text, f"\n  {text!r}\n  {self.text!r}"

    def check_error(self, status=None):
        """A correct error came: in OpenAI's shape, before or within the stream."""
        assert self.error is not None, (self.status, self.text[-200:])
        assert isinstance(self.error, dict) and isinstance(self.error.get("message"), str) and \
            isinstance(self.error.get("type"), str), self.error
        assert {"message", "type", "param", "code"} <= set(self.error), self.error
        if status is not None:
            assert self.status in (status if isinstance(status, tuple) else (status,)), \
                (self.status, self.error)
        if self.status == 200:
            assert self.done, "the stream with an error has no [DONE]"

    def whole_or_error(self, text):
        """One or the other, and up to an error a beginning of the right text."""
        if self.status == 200 and self.error is None:
            self.check_whole(text)
            return "whole"
        self.check_error()
        assert text.startswith(self.text), f"\n  {text!r}\n  {self.text!r}"
        return "error"


def raw_exchange(port, data, timeout=30, shut=False):
    """Sends bytes and reads until the other side closes, or the time is over."""
    with socket.create_connection(("127.0.0.1", port), timeout * PATIENCE) as s:
        got = b""
        with contextlib.suppress(ConnectionError):
            s.sendall(data)
            if shut:
                s.shutdown(socket.SHUT_WR)
            while more := s.recv(65536):
                got += more
        return got


def in_threads(jobs):
    """Runs functions at once; returns their results, raises the first failure."""
    results = [None] * len(jobs)

    def work(i):
        try:
            results[i] = (True, jobs[i]())
        except BaseException as e:  # pylint: disable=broad-except
            e.add_note("".join(traceback.format_exc())) if hasattr(e, "add_note") else None
            results[i] = (False, e)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for ok, value in results:
        if not ok:
            raise value
    return [value for _, value in results]


# ---- running ----

def main(tests):
    """Runs the functions named test_* of a module's globals, or those named on the command line."""
    names = sys.argv[1:] or [n for n in tests if n.startswith("test_")]
    failed = []
    for name in names:
        started = time.monotonic()
        try:
            tests[name]()
        except Exception:  # pylint: disable=broad-except
            traceback.print_exc()
            failed.append(name)
        took = time.monotonic() - started
        print(f"{'FAIL' if name in failed else 'ok'}   {name}  {took:.1f} s", flush=True)
    print(f"{len(names) - len(failed)} of {len(names)} tests passed"
          + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed or not names else 0)


def readable(sock, seconds):
    return bool(select.select([sock], [], [], seconds)[0])
