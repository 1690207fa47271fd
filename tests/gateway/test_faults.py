"""Processes die, restart, reload, stall and vanish, in the middle of everything: every client gets
its whole answer or a correct error, and all counters return to zero."""
import contextlib
import itertools
import os
import random
import signal
import socket
import struct
import threading
import time

import gateway_harness as h
from gateway_harness import CHAT, Gateway, StandIn, answer_text, chat_ids, tokenize, wait_for

IDS = chat_ids(CHAT["messages"])
WANT = answer_text(IDS, 24)
PROMPTS = [tokenize(f"Prompt {i}: " + "what is the way of it? " * (i % 17)) for i in range(24)]


@contextlib.contextmanager
def stack(kind="vllm", connector="nixl", n=2, more="", workers=2, **options):
    """n prefill and n decode stand-ins behind a gateway; every request is split."""
    with contextlib.ExitStack() as s:
        if kind == "vllm":
            ps = [s.enter_context(StandIn(kind, role="prefill", connector=connector, lease_ms=4000,
                                          **options)) for _ in range(n)]
            ds = [s.enter_context(StandIn(kind, role="decode", connector=connector, **options))
                  for _ in range(n)]
        else:
            ps = [s.enter_context(StandIn(kind, disaggregation_mode="prefill", **options))
                  for _ in range(n)]
            ds = [s.enter_context(StandIn(kind, disaggregation_mode="decode", **options))
                  for _ in range(n)]
        parallel = kind == "sglang" or connector == "mooncake"
        port = (lambda e: f" bootstrap_port={e.ports['bootstrap']}") if parallel else lambda e: ""
        gw = s.enter_context(Gateway(
            [("p", "prefill", kind, [e.address + port(e) for e in ps]),
             ("d", "decode", kind, [e.address for e in ds])],
            f"policy skip_prefill=0; handoff {'parallel' if parallel else 'sequential'};\n" + more,
            workers=workers))
        gw.ready()
        yield gw, ps, ds
        gw.check_idle(*[e for e in ps + ds if e.alive()], seconds=15)


class Load:
    """Clients that ask all the time; every answer is checked. Ends with the with block."""

    def __init__(self, gw, clients=16, n=12, may_fail=True):
        self.gw, self.n, self.may_fail = gw, n, may_fail
        self.stop = threading.Event()
        self.results = {"whole": 0, "error": 0, "connect": 0}
        self.errors, self.failure = [], None
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        for t in self.threads:
            t.join(120)
        if not exc[0] and self.failure:
            raise self.failure

    def _run(self, seed):
        r = random.Random(seed)
        while not self.stop.is_set() and not self.failure:
            prompt = r.choice(PROMPTS)
            try:
                s = self.gw.chat({"model": "lexicon", "prompt": prompt, "max_tokens": self.n},
                                 "/v1/completions")
                outcome = s.whole_or_error(answer_text(prompt, self.n))
                self.results[outcome] += 1
                if outcome == "error":
                    self.errors.append((s.status, s.error["message"]))
                    assert self.may_fail, s.error
                    time.sleep(0.01)
            except (ConnectionRefusedError, h.Broken) as e:
                # Only a killed worker's own clients are cut off.
                if not self.gw_dies:
                    self.failure = e
                self.results["connect"] += 1
            except BaseException as e:  # pylint: disable=broad-except
                self.failure = e

    gw_dies = False

    def more(self, n=20, what="whole", seconds=30):
        """Until n more answers of that kind came."""
        goal = self.results[what] + n
        wait_for(lambda: self.failure or self.results[what] >= goal, seconds, f"{n} more {what} answers")
        if self.failure:
            raise self.failure


KINDS = (("vllm", "nixl"), ("vllm", "mooncake"), ("sglang", ""))


def test_kill_engines():
    """kill -9 of each engine in turn under load, and its restart."""
    for kind, connector in KINDS:
        with stack(kind, connector, token_ms=3, first_token_ms=10, keep_alive_ms=5000) as (gw, ps, ds):
            with Load(gw) as load:
                for e in ps + ds:
                    load.more()
                    e.kill()
                    load.more()
                    e.restart()
                    if kind == "sglang" or connector == "mooncake":
                        wait_for(e.alive, 5)
                gw.ready()
                load.more(40)
            print(f"     {kind} {connector}: {load.results}")
            assert load.results["whole"] > 5 * load.results["error"], (load.results, load.errors[:10])


def test_kill_at_phases():
    """kill -9 of the one engine that a request is at, in each phase."""
    for kind, connector in KINDS:
        for role in ("prefill", "decode"):
            for phase in ("request", "head", "stream"):
                if role == "prefill" and phase == "stream":
                    continue
                with stack(kind, connector, 1, "queue timeout=3s;\nretries 1;", token_ms=5,
                           first_token_ms=50) as (gw, [p], [d]):
                    victim = p if role == "prefill" else d
                    if phase == "request":
                        victim.fault(kill_on_request=1)
                        s = gw.stream(CHAT)
                    elif phase == "head":
                        victim.fault(hold=1)
                        s = gw.stream(CHAT)
                        wait_for(lambda v=victim: v.state()["running"], what=f"{role} runs")
                        victim.kill()
                    else:
                        victim.fault(kill_after=5)
                        s = gw.stream(CHAT)
                    outcome = s.finish().whole_or_error(WANT)
                    # Without a prefill engine vLLM's decode engine does it all.
                    may_be_whole = role == "prefill" and kind == "vllm"
                    assert outcome == "error" or may_be_whole, (kind, role, phase)
                    victim.restart()
                    wait_for(lambda g=gw: g.chat(CHAT).error is None, 20, "works again")


def test_kill_with_spare():
    """Before the first token the client sees nothing of an engine's death."""
    for kind, connector in KINDS:
        for side in (0, 1):
            with stack(kind, connector, 2, token_ms=3) as (gw, ps, ds):
                victims = (ps, ds)[side]
                for v in victims:
                    v.fault(hold=1)
                streams = [gw.stream(CHAT) for _ in range(6)]
                wait_for(lambda v=victims: v[0].state()["running"] > 0, what="it runs")
                victims[0].kill()
                victims[1].fault()
                for s in streams:
                    outcome = s.finish().whole_or_error(WANT)
                    if side == 0:
                        assert outcome == "whole", (kind, connector, s.error)
                victims[0].restart()


def test_kill_workers():
    """kill -9 of nginx workers under load: their clients are cut off, nothing leaks, nobody waits
    for ever."""
    for kind, connector in KINDS:
        with stack(kind, connector, token_ms=3, first_token_ms=5, workers=3) as (gw, ps, ds):
            gw.expect_alerts = True
            with Load(gw, 24) as load:
                load.gw_dies = True
                for _ in range(6):
                    load.more(15)
                    pid = random.choice(gw.worker_pids())
                    os.kill(pid, signal.SIGKILL)
                    wait_for(lambda p=pid: p not in gw.worker_pids() and len(gw.worker_pids()) == 3, 10)
                load.more(30)
            assert load.results["error"] == 0, load.errors[:10]
            gw.check_idle(*ps, *ds)
            assert gw.metric("starling_workers_reaped_total") >= 6


def test_reload_under_load():
    """A reload is not noticed by anybody."""
    with stack(token_ms=3, first_token_ms=5) as (gw, ps, ds):
        with Load(gw, may_fail=False) as load:
            for _ in range(4):
                load.more(15)
                gw.reload()
            load.more(30)
        assert load.results["error"] == load.results["connect"] == 0


def test_reload_changes_engines():
    """Engines come and go with the configuration; who is in flight finishes."""
    with StandIn("vllm", token_ms=5) as a, StandIn("vllm", token_ms=5) as b:
        with Gateway([("all", "both", "vllm", [a.address])]) as gw:
            gw.ready()
            with Load(gw, 8, may_fail=False) as load:
                load.more(10)
                for engines in ([a, b], [b], [b, a], [a]):
                    gw.pools = [("all", "both", "vllm", [e.address for e in engines])]
                    gw.write_conf()
                    gw.reload()
                    gw.ready()
                    load.more(20)
                    assert {e["address"] for e in gw.cluster()["engines"]
                            if not e["leaving"]} >= {e.address for e in engines}
            gw.check_idle(a, b)


def test_reload_replaces_engines():
    """Who waits for an engine that a reload takes away is served by it all the same."""
    with StandIn("vllm", token_ms=5) as a, StandIn("vllm") as b, Gateway(
            [("all", "both", "vllm", [f"{a.address} max_requests=1"])], "queue timeout=60s;") as gw:
        gw.ready()
        a.fault(hold=1)
        streams = [gw.stream(CHAT) for _ in range(5)]
        wait_for(lambda: gw.cluster()["waiting"] == 4, 10, "four wait")
        gw.pools = [("all", "both", "vllm", [b.address])]
        gw.write_conf()
        started = time.monotonic()
        gw.reload()
        a.fault()
        for s in streams:
            s.finish().check_whole(WANT)
        assert time.monotonic() - started < 15 * h.PATIENCE
        assert a.state()["requests"] == 5 and b.state()["requests"] == 0
        gw.ready()
        gw.chat(CHAT).check_whole(WANT)
        assert b.state()["requests"] == 1
        gw.check_idle(a, b)


def test_stop_finishes():
    """SIGQUIT: streams in flight end whole."""
    with StandIn("vllm", token_ms=20) as v:
        with Gateway([("all", "both", "vllm", [v.address])]) as gw:
            gw.ready()
            streams = [gw.stream(CHAT) for _ in range(8)]
            for s in streams:
                s.next()
            gw.process.send_signal(signal.SIGQUIT)
            for s in streams:
                s.finish()
                s.check_whole(WANT)
            gw.process.wait(20)


def test_refusing_engines():
    """No engine at all: a bounded wait, then 503 with Retry-After; and back when one comes."""
    with stack(n=1, more="queue timeout=1s;\nbreaker failures=2 pause=100ms max_pause=500ms;") as (gw, [p], [d]):
        p.fault(refuse=True)  # decode does it all
        h.in_threads([lambda: gw.chat(CHAT).check_whole(WANT) for _ in range(10)])
        d.fault(refuse=True)
        started = time.monotonic()
        for s in h.in_threads([lambda: gw.chat(CHAT) for _ in range(10)]):
            s.check_error((502, 503, 500, 429))
        assert time.monotonic() - started < 8 * h.PATIENCE
        s = gw.chat(CHAT)
        s.check_error((502, 503))
        assert s.status == 502 or int(s.headers["retry-after"]) >= 1
        d.fault()
        p.fault()
        gw.ready(2)
        gw.chat(CHAT).check_whole(WANT)
        # An engine that comes back while a request waits for it serves that request.
        gw.more = gw.more.replace("queue timeout=1s", "queue timeout=60s")
        gw.write_conf()
        gw.reload()
        gw.ready(2)
        d.fault(refuse=True)
        wait_for(lambda: any(x["health"] != "up" for x in gw.cluster()["engines"]), 10)
        threading.Timer(0.3, lambda: d.fault()).start()
        gw.chat(CHAT).check_whole(WANT)


def test_load_opens_no_breaker():
    """429 and 503 are load: the engine stays in use."""
    with stack(n=1, more="retries 0;\nbreaker failures=2 pause=20s max_pause=30s;") as (gw, [p], _):
        for status in (429, 503):
            p.fault(status=status)
            for _ in range(6):
                s = gw.chat(CHAT)
                s.check_error((429, 503))
                assert int(s.headers["retry-after"]) >= 1, s.headers
            p.fault()
            gw.chat(CHAT).check_whole(WANT)


def new_prompts():
    """Prompts that no engine has seen: what was sent where before plays no part."""
    return map(lambda i: [i % 1000 + k for k in range(30)], itertools.count())


def test_breaker():
    """An engine that breaks again and again is left alone, and asked after."""
    with StandIn("vllm", token_ms=10) as good, StandIn("vllm", token_ms=10) as bad, Gateway(
            [("all", "both", "vllm", [good.address, bad.address])],
            "breaker failures=3 pause=300ms max_pause=1s;") as gw:
        gw.ready()
        bad.fault(status=500)
        prompts = new_prompts()

        def ask():
            prompt = next(prompts)
            gw.chat({"model": "lexicon", "prompt": prompt, "max_tokens": 3},
                    "/v1/completions").check_whole(answer_text(prompt, 3))

        def many():  # more at once than one engine should have, whichever was measured as faster
            h.in_threads([ask] * 8)
            return True
        started = time.monotonic()
        wait_for(lambda: many() and bad.state()["requests"] >= 3, 10, "the engine is in use")
        for _ in range(8):
            many()
        most = 20 + 2 * (time.monotonic() - started)  # it is asked again after each pause
        assert bad.state()["requests"] <= most, "the breaker never opened"
        bad.fault()
        gw.ready()
        before = bad.state()["requests"]
        wait_for(lambda: many() and bad.state()["requests"] > before + 2, 10,
                 "the engine is in use again")
        gw.check_idle(good, bad)


def test_breaker_pause_ends():
    """An engine is asked when its breaker's pause is over, whichever worker opened it, not at the
    next check: it has requests again soon."""
    with StandIn("vllm", token_ms=20) as good, StandIn("vllm", token_ms=20) as bad, Gateway(
            [("all", "both", "vllm", [good.address, bad.address])],
            "health interval=60s;\nbreaker failures=3 pause=400ms max_pause=1s;", workers=4) as gw:
        gw.ready()
        prompts = new_prompts()

        def ask():
            gw.chat({"model": "lexicon", "prompt": next(prompts), "max_tokens": 3},
                    "/v1/completions").check_whole()

        def many():  # more at once than one engine should have
            h.in_threads([ask] * 12)

        def state():
            return next(e for e in gw.cluster()["engines"] if e["address"] == bad.address)
        for _ in range(2):
            bad.fault(status=500)
            wait_for(lambda: many() or state()["health"] != "up", 10, "the breaker opens")
            bad.fault()
            before = bad.state()["requests"]
            wait_for(lambda: state()["health"] == "up", 4, "asked after the pause")
            wait_for(lambda n=before: many() or bad.state()["requests"] > n, 4, "it has requests")
        gw.check_idle(good, bad)


def test_no_connection_left():
    """A worker that has no connection left for an engine does not blame the engine."""
    with StandIn("vllm", token_ms=20) as v, Gateway(
            [("all", "both", "vllm", [v.address])],
            "retries 0; breaker failures=1 pause=60s max_pause=60s;\nhealth interval=50ms failures=1;",
            workers=1) as gw:
        gw.ready()
        conf, gw.expect_alerts = gw.conf, True
        gw.conf = lambda: conf().replace("worker_connections 8192", "worker_connections 40")
        gw.write_conf()
        gw.reload()
        gw.ready()

        def ask():
            with contextlib.suppress(h.Broken, OSError):  # nginx may not even take the connection
                s = gw.chat({**CHAT, "max_tokens": 20})
                return "whole" if s.error is None else s.check_error(503)
        assert "whole" in h.in_threads([ask] * 36)
        assert "connections are not enough" in gw.errors()
        gw.chat(CHAT).check_whole(WANT)
        assert "no connection" not in gw.errors().replace("no connection left", "")
        gw.check_idle(v)


def test_limits_and_queue():
    """Engines' limits hold; the rest waits in one bounded queue and then gets 429."""
    with StandIn("vllm", token_ms=10) as a, StandIn("vllm", token_ms=10) as b, Gateway(
            [("all", "both", "vllm", [f"{a.address} max_requests=3", f"{b.address} max_requests=3"])],
            "queue size=10 timeout=20s;", workers=3) as gw:
        gw.ready()
        answers = h.in_threads([lambda: gw.chat(CHAT) for _ in range(40)])
        whole = [s for s in answers if s.status == 200]
        for s in whole:
            s.check_whole(WANT)
        full = [s for s in answers if s.status == 429]
        assert len(whole) + len(full) == 40 and len(whole) >= 16, (len(whole), len(full))
        for s in full:
            s.check_error(429)
            assert int(s.headers["retry-after"]) >= 1
        for e in (a, b):
            assert e.state()["most_running"] <= 3, e.state()
        gw.check_idle(a, b)
    with StandIn("vllm", token_ms=200) as a, Gateway(
            [("all", "both", "vllm", [f"{a.address} max_requests=1"])],
            "queue size=10 timeout=1s;") as gw:
        gw.ready()
        first = gw.stream(CHAT)
        first.next()
        started = time.monotonic()
        s = gw.chat(CHAT)
        s.check_error(429)
        assert 0.9 < time.monotonic() - started < 3 * h.PATIENCE, "the deadline does not hold"
        # Who leaves while waiting leaves nothing in the queue.
        waiting = [gw.stream(CHAT) for _ in range(5)]
        wait_for(lambda: gw.cluster()["waiting"] > 0 or h.readable(waiting[0].socket, 0),
                 what="somebody waits, or has waited long enough")
        for w in waiting:
            w.close()
        first.finish()
        first.check_whole(WANT)
        gw.check_idle(a)


def test_slow_readers():
    """A client that reads slowly costs neither memory nor others' time."""
    with StandIn("vllm", natural=10**6) as v, Gateway(
            [("all", "both", "vllm", [v.address])], "send_timeout 60s;", workers=1) as gw:
        gw.ready()
        pid = gw.worker_pids()[0]
        n = 80000
        slow = [gw.stream({**CHAT, "max_tokens": n, "ignore_eos": True}, receive_buffer=4096)
                for _ in range(8)]
        for s in slow:
            s.next()
        time.sleep(1)
        before = rss(pid)
        for _ in range(5):
            gw.chat(CHAT)
        sent = [r.get("sent", 0) for r in v.requests()[:8]]
        time.sleep(1)
        grown = rss(pid) - before
        assert grown < 4 << 20, f"{grown >> 10} KiB more while clients do not read"
        assert max(sent) < n, f"the engine was never held back: {sent}"
        s = slow.pop()
        s.finish()
        s.check_whole(answer_text(IDS, n))
        for s in slow:
            s.reset()
        gw.check_idle(v)


def test_send_timeout():
    """A client that never reads is given up after send_timeout."""
    with StandIn("vllm", natural=10**6) as v, Gateway(
            [("all", "both", "vllm", [v.address])], "send_timeout 1s;") as gw:
        gw.ready()
        s = gw.stream({**CHAT, "max_tokens": 100000, "ignore_eos": True}, receive_buffer=4096)
        s.next()
        gw.check_idle(v, seconds=20)
        s.close()


def rss(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_half_open():
    """Clients that shut down their sending side, or vanish with RST, at any time."""
    with stack(token_ms=5, first_token_ms=30) as (gw, ps, ds):
        s = gw.stream(CHAT)
        s.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(h.Broken):  # nginx may take this for a client that left
            s.finish()
        random.seed(3)
        for _ in range(60):
            s = gw.stream(CHAT)
            time.sleep(random.random() * 0.12)
            random.choice((s.close, s.reset))()
        gw.check_idle(*ps, *ds)
        wait_for(lambda: all(p.state()["leases_held"] == 0 for p in ps), 5, "leases end")
        gw.chat(CHAT).check_whole(WANT)


def test_keepalive_race():
    """Engines that close kept connections at the worst time: nobody notices."""
    with stack(keep_alive_ms=50) as (gw, ps, ds):
        for i in range(60):
            gw.chat(CHAT).check_whole(WANT)
            time.sleep(0.045 + (i % 10) * 0.001)
        for _ in range(20):
            for e in ps + ds:
                e.order(drop_connections=True)
            gw.chat(CHAT).check_whole(WANT)


def test_black_hole():
    """An engine that accepts and never answers its connect: connect_timeout holds."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        fill = []
        for _ in range(3):  # fills its backlog, so that the next connect hangs
            s = socket.socket()
            s.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                s.connect(hole.getsockname())
            fill.append(s)
        with StandIn("vllm") as v, Gateway(
                [("all", "both", "vllm", [v.address, f"127.0.0.1:{hole.getsockname()[1]}"])],
                "connect_timeout 300ms;") as gw:
            gw.ready(1)
            for _ in range(4):
                gw.chat(CHAT).check_whole(WANT)
            gw.check_idle(v)
        for s in fill:
            s.close()


def test_leaving_storm():
    """Hundreds of clients that come and leave at once."""
    with stack(token_ms=2, first_token_ms=10, workers=3) as (gw, ps, ds):
        def one(i):
            r = random.Random(i)
            for _ in range(6):
                s = gw.stream({"model": "lexicon", "prompt": r.choice(PROMPTS), "max_tokens": 30},
                              "/v1/completions")
                time.sleep(r.random() * 0.08)
                if r.random() < 0.5:
                    s.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.close()
        h.in_threads([lambda i=i: one(i) for i in range(40)])
        gw.check_idle(*ps, *ds, seconds=15)


if __name__ == "__main__":
    h.main(globals())
