#!/usr/bin/python3
"""What the gateway costs, each figure against something measured in the same run.

  cpu       CPU time of the nginx workers per streamed request (200 tokens in, 100 out), against
            plain nginx proxy_pass of the same stream: medians of alternating rounds
  long      prompts of 100,000 tokens: CPU time per request, and the longest that another request
            had to wait meanwhile
  streams   2,000 streams at once: errors, and memory before, during and after
  ttft      time to the first token with the lexicon: one engine alone against gateway + prefill +
            decode, in both modes

usage: gateway_bench.py [cpu] [long] [streams] [ttft] [--rounds N] [--build FOLDER]
"""
import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("what", nargs="*", help="cpu, long, streams, ttft (all of them)")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--build", default=os.path.join(ROOT, "build"))
args = parser.parse_args()
os.environ.setdefault("STARLING", os.path.join(args.build, "starling"))
sys.path.insert(0, os.path.join(ROOT, "tests", "gateway"))
import gateway_harness as h  # noqa: E402


class Sim(h.Process):
    """The simulated engine."""

    def __init__(self, *options):
        self.options, self.port = options, h.free_port()

    def start(self):
        self.process = subprocess.Popen([h.SIM_ENGINE, "--port", str(self.port), *map(str, self.options)],
                                        stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().startswith("serving")

    def __exit__(self, *exc):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"


class Plain(h.Gateway):
    """nginx as it is, with one location that passes everything on, unbuffered."""

    def __init__(self, to):
        super().__init__([], workers=1)
        self.to = to

    def conf(self):
        user = "user nobody nogroup;" if os.getuid() == 0 else ""
        return f"""
{user}
daemon off;
worker_processes 1;
pid {self.dir}/nginx.pid;
error_log {self.dir}/error.log error;
events {{ worker_connections 8192; }}
http {{
    access_log {self.dir}/access.log;
    client_body_temp_path {self.dir}/body;
    proxy_temp_path {self.dir}/proxy;
    fastcgi_temp_path {self.dir}/fastcgi;
    uwsgi_temp_path {self.dir}/uwsgi;
    scgi_temp_path {self.dir}/scgi;
    client_max_body_size 64m;
    client_body_buffer_size 64k;
    upstream engines {{ server {self.to}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{self.port};
        location / {{
            proxy_pass http://engines;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


def cpu_ns(gw):
    """CPU time of all workers' threads."""
    total = 0
    for pid in gw.worker_pids():
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as f:
                total += int(f.read().split()[0])
    return total


def load(gw, *options):
    r = subprocess.run([h.STARLING, "load", "--url", f"http://127.0.0.1:{gw.port}", "--model", "lexicon",
                        "--json", *map(str, options)], capture_output=True, text=True, check=False)
    assert r.returncode in (0, 1) and r.stdout, r.stderr
    return json.loads(r.stdout)


def gateway(pools, more="", **kw):
    return h.Gateway(pools, f"{more}\nkeepalive 256;", health_ms=1000, **kw,
                     models=[f"lexicon tokenizer={h.LEXICON} max_len=1000000"])


def report(name, values, unit):
    low, mid, high = min(values), statistics.median(values), max(values)
    print(f"  {name:<44} {mid:9.3f} {unit}   [{low:.3f} .. {high:.3f}]", flush=True)
    return mid


def cpu():
    print("CPU time of the nginx worker per request: 200 tokens in, 100 out, 32 streams at once")
    options = ["--prompt-tokens", 200, "--max-tokens", 100, "--concurrency", 32, "--requests", 800]
    with Sim("--interval-us", 2000) as both, Sim("--interval-us", 2000, "--role", "prefill") as p, \
            Sim("--interval-us", 2000, "--role", "decode") as d, contextlib.ExitStack() as stack:
        runs = {
            "plain nginx proxy_pass": Plain(both.address),
            "gateway, one pool": gateway([("all", "both", "starling", [both.address])], workers=1),
            "gateway, prefill + decode, sequential": gateway(
                [("p", "prefill", "starling", [p.address]), ("d", "decode", "starling", [d.address])],
                "policy skip_prefill=0; handoff sequential;", workers=1),
            "gateway, prefill + decode, parallel": gateway(
                [("p", "prefill", "starling", [p.address]), ("d", "decode", "starling", [d.address])],
                "policy skip_prefill=0; handoff parallel;", workers=1),
        }
        for name, gw in runs.items():
            stack.enter_context(gw)
            if name.startswith("gateway"):
                gw.ready()
            load(gw, *options, "--requests", 50)
        used = {name: [] for name in runs}
        for i in range(args.rounds):
            for name, gw in runs.items():
                before = cpu_ns(gw)
                got = load(gw, *options, "--seed", i + 1)
                used[name].append((cpu_ns(gw) - before) / 1e6 / got["ok"])
                assert got["failed"] == 0, got
        base = report("plain nginx proxy_pass", used["plain nginx proxy_pass"], "ms")
        for name, values in used.items():
            if name.startswith("gateway"):
                print(f"    {report(name, values, 'ms') / base:.2f} times plain nginx")


class Prober(threading.Thread):
    """Asks for /starling/health all the time and keeps how long it took."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.times, self.over = port, [], False

    def run(self):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.over:
            started = time.perf_counter()
            c.request("GET", "/starling/health")
            c.getresponse().read()
            self.times.append((time.perf_counter() - started) * 1e3)
            time.sleep(0.0005)
        c.close()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.over = True
        self.join()


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def long():
    print("prompts of 100,000 tokens, one after the other; /starling/health asked meanwhile")
    with Sim("--interval-us", 1000) as sim, gateway([("all", "both", "starling", [sim.address])],
                                                    "max_body 64m;", workers=1) as gw, \
            Plain(sim.address) as plain:
        gw.ready()
        options = ["--max-tokens", 2, "--concurrency", 1, "--requests", 10]
        used = {"gateway": [], "plain nginx": []}
        waits = []
        for i in range(args.rounds):
            for name, to in (("gateway", gw), ("plain nginx", plain)):
                before = cpu_ns(to)
                got = load(to, *options, "--prompt-tokens", 100000, "--seed", 100 + i)
                used[name].append((cpu_ns(to) - before) / 1e6 / max(1, got["ok"]))
                assert got["failed"] == 0, got
            with Prober(gw.port) as probe:
                load(gw, *options, "--prompt-tokens", 100000, "--seed", 1000 + i)
            with Prober(gw.port) as quiet:
                time.sleep(1)
            waits.append((probe.times, quiet.times))
        for name, values in used.items():
            report(f"CPU time per request, {name}", values, "ms")
        for name, k in (("under long prompts", 0), ("without load", 1)):
            all_ = [t for w in waits for t in w[k]]
            print(f"  another request {name:<21} p50 {quantile(all_, 0.5):.2f}  p99 {quantile(all_, 0.99):.2f}"
                  f"  p99.9 {quantile(all_, 0.999):.2f}  longest {max(all_):.2f} ms of {len(all_)}")


def memory(gw):
    total = 0
    for pid in gw.worker_pids():
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
            for line in f:
                if line.startswith(("Private_Clean", "Private_Dirty")):
                    total += int(line.split()[1]) << 10
    return total


def streams():
    print("2,000 streams at once on simulated engines, a token every 50 ms each, 2 workers")
    with Sim("--interval-us", 50000, "--role", "prefill") as p, Sim("--interval-us", 50000) as a, \
            Sim("--interval-us", 50000) as b, gateway(
                [("p", "prefill", "starling", [p.address]), ("d", "both", "starling", [a.address, b.address])],
                "token_cache 4m; policy skip_prefill=100; queue size=4096 timeout=60s;", workers=2) as gw:
        gw.ready()
        rows = []
        for i in range(args.rounds):
            before, peak, over = memory(gw), [0], threading.Event()

            def watch(peak=peak, over=over):
                while not over.wait(0.2):
                    peak[0] = max(peak[0], memory(gw))
            t = threading.Thread(target=watch)
            t.start()
            got = load(gw, "--concurrency", 2000, "--requests", 4000, "--max-tokens", 100, "--seed", i)
            over.set()
            t.join()
            gw.check_idle()
            time.sleep(2)  # idle workers give memory back after half a second
            rows.append((before, peak[0], memory(gw)))
            print(f"  round {i + 1}: {got['ok']} ok, {got['failed']} failed {got['failures'] or ''}; "
                  f"to first token p50 {got['ttft_ms']['p50']:.0f} p99 {got['ttft_ms']['p99']:.0f} ms; "
                  f"memory of the workers {before / 1e6:.1f} MB before, {peak[0] / 1e6:.1f} at most, "
                  f"{rows[-1][2] / 1e6:.1f} after")
        print(f"  growth from round 1 to the last: {(rows[-1][2] - rows[0][2]) / 1e6:+.1f} MB; "
              f"{(rows[0][1] - rows[0][0]) / 2000 / 1e3:.1f} KB a stream")


def ttft():
    print("time to the first token, lexicon, prompts of about 200 tokens never seen before")
    with h.Engine() as one, h.Engine(role="prefill") as p, h.Engine(role="decode") as d, \
            contextlib.ExitStack() as stack:
        ways = {"one engine, no gateway": one}
        for handoff in ("sequential", "parallel"):
            gw = stack.enter_context(gateway(
                [("p", "prefill", "starling", [p.address]), ("d", "decode", "starling", [d.address])],
                f"policy skip_prefill=0; handoff {handoff};", workers=1))
            gw.ready()
            ways[f"gateway + prefill + decode, {handoff}"] = gw
        times = {name: [] for name in ways}
        for i in range(8 * args.rounds):
            for k, (name, to) in enumerate(ways.items()):
                got = load(to, "--requests", 1, "--concurrency", 1, "--prompt-tokens", 200, "--max-tokens", 4,
                           "--seed", i * 10 + k)
                assert got["ok"] == 1, got
                times[name].append(got["ttft_ms"]["p50"])
        base = None
        for name, values in times.items():
            mid = report(name, values[2:], "ms")
            base = base or mid
            if mid != base:
                print(f"    {mid - base:+.2f} ms")


if __name__ == "__main__":
    for what in args.what or ["cpu", "long", "streams", "ttft"]:
        {"cpu": cpu, "long": long, "streams": streams, "ttft": ttft}[what]()
