"""Prefix matching from KV events: several events and turns, both encodings, gaps and replay,
restarts, several data-parallel ranks, and by history where an engine publishes nothing."""
import contextlib

import gateway_harness as h
from gateway_harness import Gateway, StandIn, wait_for

TURN = 112  # tokens; seven blocks


def tokens(seed, n):
    return [(seed * 7919 + i * 31) % 2900 + 3 for i in range(n)]


@contextlib.contextmanager
def cluster(n=3, more="", gateway=None, **options):
    options.setdefault("events_port", 0)
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(StandIn("vllm", seed=f"{i}", **options)) for i in range(n)]
        lines = [f"{e.address} events=tcp://127.0.0.1:{e.ports['events']} "
                 f"replay=tcp://127.0.0.1:{e.ports['replay']}" if options["events_port"] >= 0
                 else f"{e.address} events=off" for e in engines]
        gw = stack.enter_context(Gateway([("all", "both", "vllm", lines)], more, **(gateway or {})))
        gw.ready()
        if options["events_port"] >= 0:
            subscribed(gw, engines)
        yield gw, engines
        gw.check_idle(*engines)


def subscribed(gw, engines):
    """Until every engine's events arrive: a subscription takes a moment."""
    def all_seen():
        for e in engines:
            e.order(take=tokens(999, 16))
            e.order(clear_cache=True)
        return all(v > 0 for v in batches(gw).values()) and len(batches(gw)) == len(engines)
    wait_for(all_seen, 20, "events arrive")


def batches(gw):
    return {k: v for k, v in gw.metrics().items() if k.startswith("starling_event_batches_total{")}


def ask(gw, prompt, n=1):
    """Returns how many tokens the engine had, and how many the gateway thought it had. No stream:
    of those the gateway learns how fast an engine is, and may choose by that."""
    before = gw.metric("starling_matched_tokens_total")
    status, body = gw.json("POST", "/v1/completions", {"model": "lexicon", "prompt": prompt, "max_tokens": n})
    assert status == 200 and body["choices"][0]["text"] == h.answer_text(prompt, n), (status, body)
    return (body["usage"]["prompt_tokens_details"]["cached_tokens"],
            gw.metric("starling_matched_tokens_total") - before)


def settled(gw, engines):
    """Until the index knows what the engines hold."""
    wait_for(lambda: gw.cluster()["index"]["holdings"] == sum(sum(e.state()["blocks"]) for e in engines),
             10, "the index follows")


def conversations(gw, engines, n=12, turns=5):
    """Conversations that grow turn by turn: each turn finds all of the turns before it."""
    for turn in range(1, turns + 1):
        for c in range(n):
            held, matched = ask(gw, tokens(c, TURN * turn))
            if turn > 1:
                want = TURN * (turn - 1)
                assert held >= want and matched >= want, \
                    f"conversation {c}, turn {turn}: {held} held, {matched} matched, {want} expected"
            settled(gw, engines)


def test_turns_maps_bytes():
    with cluster(encoding="map", hashes="bytes") as (gw, engines):
        conversations(gw, engines)


def test_turns_arrays_int():
    with cluster(encoding="array", hashes="int", blocks_per_event=2, events_per_batch=3) as (gw, engines):
        conversations(gw, engines)


def test_turns_arrays_short():
    """The fewest fields that vLLM ever sent, signed hashes, and one block an event."""
    with cluster(encoding="array", arity=5, hashes="signed", blocks_per_event=1) as (gw, engines):
        conversations(gw, engines, 6, 4)


def test_turns_sglang_mediums():
    with StandIn("sglang", events_port=0, medium="CPU_TIER1") as g:
        line = f"{g.address} events=tcp://127.0.0.1:{g.ports['events']} replay=tcp://127.0.0.1:{g.ports['replay']}"
        with Gateway([("all", "both", "sglang", [line])]) as gw:
            gw.ready()
            subscribed(gw, [g])
            ask(gw, tokens(1, 64))
            wait_for(lambda: ask(gw, tokens(1, 64))[1] > 0, 10, "a block in host memory counts")
            gw.check_idle(g)


def test_other_block_size():
    with cluster(2, block_size=48, blocks_per_event=3) as (gw, engines):
        for c in range(4):
            ask(gw, tokens(c, 480))
        settled(gw, engines)
        for c in range(4):
            held, matched = ask(gw, tokens(c, 960))
            assert held == 480 and matched == 480, (held, matched)


def test_eviction():
    """What an engine drops is not matched any more."""
    with cluster(1, kv_blocks=20) as (gw, engines):
        ask(gw, tokens(1, 160))
        settled(gw, engines)
        assert ask(gw, tokens(1, 161))[1] == 160
        ask(gw, tokens(2, 320))  # takes all 20 blocks
        settled(gw, engines)
        assert ask(gw, tokens(1, 160)) == (0, 0)
        engines[0].order(clear_cache=True)
        settled(gw, engines)
        assert gw.cluster()["index"]["holdings"] == 0


def test_gap():
    """Batches lost on the way are replayed."""
    with cluster(1) as (gw, [e]):
        e.order(gap=3)
        ask(gw, tokens(1, 64 * 3))
        assert gw.cluster()["index"]["holdings"] == 0
        ask(gw, tokens(2, 64))  # its event shows the gap
        settled(gw, [e])
        assert ask(gw, tokens(1, 64 * 3 + 1))[1] == 192
        assert e.state()["replays"] == [max(1, e.state()["replays"][0])]
        assert gw.metric("starling_event_gaps_total") >= 1


def test_gap_beyond_replay():
    """What cannot be replayed any more: nothing wrong is matched, and new events count."""
    with cluster(1, replay_buffer=2) as (gw, [e]):
        ask(gw, tokens(1, 64))
        settled(gw, [e])
        e.order(gap=6)
        for c in range(2, 8):
            ask(gw, tokens(c, 64))
        e.order(clear_cache=True)  # shows the gap, and empties the engine
        ask(gw, tokens(9, 128))
        wait_for(lambda: ask(gw, tokens(9, 129))[1] == 128, 10, "new events count")
        assert ask(gw, tokens(1, 65))[1] == 0


def test_restart():
    """An engine that was started anew has nothing; its blocks are forgotten at its first event."""
    with cluster(2) as (gw, engines):
        for c in range(6):
            ask(gw, tokens(c, TURN))
        settled(gw, engines)
        before = engines[0].state()["blocks"][0]
        assert before > 0
        engines[0].order(events_restart=True)
        engines[0].order(take=tokens(77, 64))
        settled(gw, engines)
        # As a process: kill -9 and back on the same ports.
        engines[1].restart()
        wait_for(lambda: gw.chat({"model": "lexicon", "prompt": [5]}, "/v1/completions").error is None, 20)
        def follows():
            engines[1].order(take=tokens(78, 64))
            engines[1].order(clear_cache=True)
            engines[1].order(take=tokens(79, 64))
            return gw.cluster()["index"]["holdings"] == sum(sum(e.state()["blocks"]) for e in engines)
        wait_for(follows, 20, "the restarted engine's events are followed")


def test_late_gateway():
    """A gateway that comes later asks for what it missed."""
    with StandIn("vllm", events_port=0) as v:
        v.order(take=tokens(1, 320))
        line = f"{v.address} events=tcp://127.0.0.1:{v.ports['events']} replay=tcp://127.0.0.1:{v.ports['replay']}"
        with Gateway([("all", "both", "vllm", [line])]) as gw:
            gw.ready()
            def known():
                v.order(take=tokens(2, 16))
                return ask(gw, tokens(1, 321))[1] == 320
            wait_for(known, 15, "what was stored before is known")
            gw.check_idle(v)


def test_reload_keeps():
    """A reload keeps the index; the new workers go on with the events."""
    with cluster(2) as (gw, engines):
        for c in range(6):
            ask(gw, tokens(c, TURN))
        settled(gw, engines)
        held = gw.cluster()["index"]["holdings"]
        gw.reload()
        gw.ready()
        assert gw.cluster()["index"]["holdings"] == held > 0
        assert ask(gw, tokens(3, 2 * TURN))[1] == TURN
        settled(gw, engines)


def test_worker_dies():
    """The worker that follows the events is killed: another goes on, nothing is lost."""
    with cluster(2) as (gw, engines):
        gw.expect_alerts = True
        for c in range(6):
            ask(gw, tokens(c, TURN))
        settled(gw, engines)
        import os
        import signal
        for pid in gw.worker_pids():
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: len(gw.worker_pids()) == 2 and pid not in gw.worker_pids(), 10)
            ask(gw, tokens(20 + pid % 50, TURN))
            for c in range(100, 104):
                engines[c % 2].order(take=tokens(c * pid, 64))
            settled(gw, engines)
        assert ask(gw, tokens(3, 2 * TURN))[1] == TURN


def test_ranks():
    """Each data-parallel rank publishes for itself."""
    first, replay = h.free_ports(2), h.free_ports(2)
    with StandIn("vllm", events_port=first, replay_port=replay, dp=2) as v:
        line = f"{v.address} dp=2 events=tcp://127.0.0.1:{first} replay=tcp://127.0.0.1:{replay}"
        with Gateway([("all", "both", "vllm", [line])]) as gw:
            gw.ready()
            def seen():
                for r in (0, 1):
                    v.order(take=tokens(50 + r, 160), rank=r)
                return gw.cluster()["index"]["holdings"] == sum(v.state()["blocks"])
            wait_for(seen, 15, "both ranks' events arrive")
            for r in (0, 1):
                v.order(take=tokens(60 + r, 160), rank=r)
            settled(gw, [v])
            for r in (0, 1):
                held, matched = ask(gw, tokens(60 + r, 200))
                assert matched == 160 and held == 160, (r, held, matched)
            gw.check_idle(v)


def test_history():
    """Engines without events: where a conversation went before, it goes again."""
    with cluster(3, events_port=-1) as (gw, _):
        for turn in range(1, 5):
            for c in range(9):
                held, _ = ask(gw, tokens(c, TURN * turn))
                assert turn == 1 or held >= TURN * (turn - 1), f"conversation {c}, turn {turn}: {held}"


def test_hot_prefix():
    """All share a long prefix: it does not pile everything on one engine."""
    with cluster(3, more="policy skip_prefill=0;", first_token_ms=50, token_ms=5) as (gw, engines):
        shared = tokens(5, 480)
        ask(gw, shared)
        settled(gw, engines)
        h.in_threads([lambda i=i: gw.chat({"model": "lexicon", "prompt": shared + tokens(i, 20),
                                           "max_tokens": 20}, "/v1/completions").check_whole()
                      for i in range(90)])
        used = sorted(e.state()["requests"] for e in engines)
        assert used[0] >= 8, f"the holder of the prefix got nearly all: {used}"


def test_salt():
    """Another salt is another prefix."""
    with cluster(1, events_port=-1) as (gw, engines):
        prompt = tokens(1, 320)
        def matched(salt):
            before = gw.metric("starling_matched_tokens_total")
            gw.chat({"model": "lexicon", "prompt": prompt, "max_tokens": 1, "cache_salt": salt},
                    "/v1/completions").check_whole()
            return gw.metric("starling_matched_tokens_total") - before
        assert matched("a") == 0 and matched("a") > 0 and matched("b") == 0 and matched("b") > 0


if __name__ == "__main__":
    h.main(globals())
