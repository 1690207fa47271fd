"""Our own engines behind the gateway: whole, sequential and parallel give the same text and the same
log-probabilities, bit for bit, as one engine alone."""
import contextlib
import json
import random
import signal
import time

import gateway_harness as h
from gateway_harness import Engine, Gateway, wait_for

PROMPTS = [
    [{"role": "user", "content": "What does courage mean?"}],
    [{"role": "user", "content": "What is a river? " * 30}],
    [{"role": "user", "content": "Explain the word justice to a child."},
     {"role": "assistant", "content": "Justice is when people get what is right."},
     {"role": "user", "content": "And mercy? " * 12}],
]
ASKS = [{"model": "lexicon", "messages": m, "max_tokens": 24, "logprobs": True, "top_logprobs": 2,
         **extra} for m in PROMPTS for extra in ({}, {"temperature": 0.9, "seed": 5, "top_p": 0.9})]
SMALL = ["--threads", "1", "--kv-cache-memory", "64M", "--enable-kv-events"]


@contextlib.contextmanager
def cluster(handoff, prefill=1, decode=1, more="policy skip_prefill=0;", **kw):
    with contextlib.ExitStack() as stack:
        ps = [stack.enter_context(Engine(*SMALL, role="prefill")) for _ in range(prefill)]
        ds = [stack.enter_context(Engine(*SMALL, role="decode")) for _ in range(decode)]
        gw = stack.enter_context(Gateway(
            [("p", "prefill", "starling", [e.address for e in ps]),
             ("d", "decode", "starling", [e.address for e in ds])],
            f"handoff {handoff};\n{more}", **kw))
        gw.ready(seconds=30)
        yield gw, ps, ds
        gw.check_idle(*[e for e in ps + ds if e.alive()], seconds=20)


def answer(port, body):
    """What a request's answer says, without what differs from one to the next."""
    status, _, data = h.http_request(port, "POST", "/v1/chat/completions", body, timeout=120)
    one = json.loads(data)
    assert status == 200, one
    choice, usage = one["choices"][0], one["usage"]
    return {"text": choice["message"]["content"], "logprobs": choice.get("logprobs"),
            "reason": choice["finish_reason"], "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"]}


_alone = None


def alone():
    """One engine's answers, without a gateway."""
    global _alone
    if _alone is None:
        with Engine(*SMALL) as e:
            _alone = [answer(e.port, a) for a in ASKS]
    return _alone


def streamed(gw, body):
    s = gw.chat({k: v for k, v in body.items() if k not in ("logprobs", "top_logprobs")}, timeout=120)
    s.check_whole()
    return s


def check_same(gw):
    for _ in range(2):  # the second time from prefix caches
        for body, want in zip(ASKS, alone()):
            got = answer(gw.port, body)
            assert got == want, f"\n  {want}\n  {got}"
            assert streamed(gw, body).text == want["text"]


def test_one():
    with Engine(*SMALL) as e, Gateway([("all", "both", "starling", [e.address])]) as gw:
        gw.ready()
        check_same(gw)
        gw.check_idle(e)


def test_sequential():
    with cluster("sequential") as (gw, _, _):
        check_same(gw)


def test_parallel():
    with cluster("parallel") as (gw, _, _):
        check_same(gw)


def test_split_is_real():
    """The prefill engine computed the prompt, and the decode engine did not."""
    for handoff in ("sequential", "parallel"):
        with cluster(handoff) as (gw, [p], [d]):
            body = ASKS[2]
            answer(gw.port, body)
            tokens = alone()[2]["prompt_tokens"]
            assert p.metric("vllm:prompt_tokens_total") >= tokens
            status = gw.cluster()
            assert status["engines"], status
            assert p.metric("vllm:request_success_total") >= 1


def test_many():
    """Concurrent requests over two engines of each role: each gives its own bits."""
    for handoff in ("sequential", "parallel"):
        with cluster(handoff, 2, 2) as (gw, _, _):
            want = alone()

            def ask(i):
                k = i % len(ASKS)
                got = answer(gw.port, ASKS[k])
                assert got == want[k], f"{handoff}, ask {k}\n  {want[k]}\n  {got}"
            h.in_threads([lambda i=i: ask(i) for i in range(24)])


def settled(gw):
    """Until no more events come."""
    def still():
        before = gw.cluster()["index"]["holdings"]
        time.sleep(0.5)
        return gw.cluster()["index"]["holdings"] == before
    wait_for(still, 10, "the index follows")


def test_turns_match():
    """Later turns find earlier ones: the engines' events reach the gateway's index."""
    with cluster("sequential", more="policy skip_prefill=0;") as (gw, _, _):
        messages = [{"role": "user", "content": "What is a river? " * 20}]
        for turn in range(3):
            before = gw.metric("starling_matched_tokens_total")
            s = streamed(gw, {"model": "lexicon", "messages": messages, "max_tokens": 16})
            matched = gw.metric("starling_matched_tokens_total") - before
            assert turn == 0 or matched >= 64, f"turn {turn}: {matched} tokens matched"
            # The first turn's blocks, of either engine, are what the later ones must find.
            wait_for(lambda: gw.cluster()["index"]["holdings"] >= 10, what="blocks are told of")
            messages += [{"role": "assistant", "content": s.text},
                         {"role": "user", "content": "And what then?"}]
            settled(gw)


def test_events_come_and_go():
    """An engine that publishes no events is matched by history; started anew with events, by those,
    and the other way round: as /starling/engine says."""
    quiet = [a for a in SMALL if a != "--enable-kv-events"]
    with Engine(*quiet) as e, Gateway([("all", "both", "starling", [e.address])]) as gw:
        gw.ready()

        def matched(text):
            before = gw.metric("starling_matched_tokens_total")
            streamed(gw, {"model": "lexicon", "max_tokens": 4,
                          "messages": [{"role": "user", "content": text * 20}]})
            return gw.metric("starling_matched_tokens_total") - before

        def publishes():
            return "starling_event_batches_total{" in gw.request(
                "GET", "/starling/metrics")[2].decode()
        wait_for(lambda: not publishes(), 10, "its health check says: no events")
        for args, text in ((quiet, "A quiet river. "), (SMALL, "A loud river. "),
                           (quiet, "A silent river. ")):
            if e.args != tuple(args) or not e.alive():
                e.args = tuple(args)
                e.restart()
                wait_for(lambda: publishes() == (args is SMALL), 20, "the engine is asked")
                gw.ready()
            assert matched(text) <= 32
            wait_for(lambda: matched(text) >= 64, 10, f"{text} is matched")


def test_kill():
    """kill -9 of each engine under load: whole answers with the right text, or errors."""
    want = alone()
    for handoff in ("sequential", "parallel"):
        with cluster(handoff, 2, 2) as (gw, ps, ds):
            random.seed(1)

            def ask(i):
                k = i % len(ASKS)
                time.sleep(random.random() * 2)
                s = gw.chat({x: v for x, v in ASKS[k].items() if "logprobs" not in x}, timeout=120)
                return s.whole_or_error(want[k]["text"])
            import threading
            timers = [threading.Timer(0.5 + i, e.restart) for i, e in enumerate((ps[0], ds[0]))]
            for t in timers:
                t.start()
            outcomes = h.in_threads([lambda i=i: ask(i) for i in range(24)])
            for t in timers:
                t.join()
            assert outcomes.count("whole") >= 12, outcomes
            gw.ready(seconds=30)
            gw.check_idle(*ps, *ds, seconds=20)


def test_client_leaves():
    """At any phase both engines free their blocks."""
    for handoff in ("sequential", "parallel"):
        with cluster(handoff) as (gw, [p], [d]):
            random.seed(2)
            for _ in range(25):
                s = gw.stream({**ASKS[2], "max_tokens": 200, "ignore_eos": True})
                time.sleep(random.random() * 0.25)
                random.choice((s.close, s.reset))()
            gw.check_idle(p, d, seconds=40)  # a lease may have to end
            assert answer(gw.port, ASKS[0]) == alone()[0]


def test_drain():
    """SIGTERM: an engine finishes what it has; the gateway sends nothing new there."""
    with cluster("sequential", 1, 2) as (gw, _, ds):
        def start():
            """A long stream and its engine; None when it ended before it was looked for."""
            s = gw.stream({"model": "lexicon", "messages": PROMPTS[0], "max_tokens": 1500,
                           "ignore_eos": True})
            s.next()
            at = [r["decode"] for r in gw.cluster()["requests"]]
            busy = next((d for d in ds if d.address in at), None)
            if busy and busy.metric("vllm:num_requests_running") == 1:
                return s, busy
            return s.finish().check_whole()
        s, busy = wait_for(start, what="a stream that runs")
        busy.process.send_signal(signal.SIGTERM)
        for _ in range(3):
            assert answer(gw.port, ASKS[0]) == alone()[0]
        s.finish().check_whole()
        wait_for(lambda: not busy.alive(), 20, "the engine ends")


if __name__ == "__main__":
    h.main(globals())
