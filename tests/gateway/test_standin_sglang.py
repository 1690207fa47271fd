"""The gateway in front of SGLang stand-ins: whole requests, and prefill and decode engines that
meet in a bootstrap room."""
import contextlib
import json
import socket
import time

import gateway_harness as h
from gateway_harness import Gateway, StandIn, answer_text, chat_ids, wait_for
from test_standin_vllm import LONG, MESSAGES, check_answers

ASK = {"model": "lexicon", "messages": MESSAGES}


@contextlib.contextmanager
def pair(n_prefill=1, n_decode=1, more="", host="127.0.0.1", **options):
    """SGLang's engines take split requests only: nothing may skip prefill."""
    with contextlib.ExitStack() as stack:
        ps = [stack.enter_context(StandIn("sglang", disaggregation_mode="prefill", host=host,
                                          **options)) for _ in range(n_prefill)]
        ds = [stack.enter_context(StandIn("sglang", disaggregation_mode="decode", host=host,
                                          **options)) for _ in range(n_decode)]
        at = f"[{host}]" if ":" in host else host
        gw = stack.enter_context(Gateway(
            [("p", "prefill", "sglang",
              [f"{at}:{e.port} bootstrap_port={e.ports['bootstrap']}" for e in ps]),
             ("d", "decode", "sglang", [f"{at}:{e.port}" for e in ds])],
            "handoff parallel;\n" + more))
        gw.ready()
        yield gw, ps, ds
        gw.check_idle(*ps, *ds)


def test_whole():
    with StandIn("sglang", natural=30) as g, \
            Gateway([("all", "both", "sglang", [g.address])]) as gw:
        gw.ready()
        check_answers(gw, 30)
        assert all(r["is_ids"] for r in g.requests()), "text went to the engine"
        gw.check_idle(g)


def test_bootstrap():
    """Short prompts, too, go to both: an SGLang decode engine cannot work alone."""
    with pair(natural=30) as (gw, [p], [d]):
        check_answers(gw, 30)
        ps, ds = p.requests(), d.requests()
        assert len(ps) == len(ds) and all(r["meeting"] == "met" for r in ps + ds)
        assert [r["body"] for r in ps] == [r["body"] for r in ds]
        rooms = [r["room"] for r in ps]
        assert len(set(rooms)) == len(rooms) and len({len(r) for r in rooms}) > 0
        assert max(map(int, rooms)) > 2**53, "rooms use little of their range"


def test_several_prompts():
    """A batch goes to both engines, each of its prompts into a room of its own."""
    prompts = ["What is a river?", "What is a stone?", "What is a cloud? " * 8]
    for batch in (prompts, [h.tokenize(p) for p in prompts]):
        with pair() as (gw, [p], [d]):
            ask = {"model": "lexicon", "prompt": batch, "max_tokens": 5}
            want = [answer_text(h.text_ids(b) if isinstance(b, str) else b, 5) for b in batch]
            status, body = gw.json("POST", "/v1/completions", ask)
            assert status == 200 and [c["text"] for c in body["choices"]] == want, body
            s = gw.chat(ask, "/v1/completions")
            s.check_whole(want[0])
            for i, text in enumerate(want):
                got = "".join(c["text"] for e in s.events for c in e["choices"] if c["index"] == i)
                assert got == text, got
            rooms = [r["rooms"] for r in p.requests()]
            assert [len(r) for r in rooms] == [3, 3] and len(set(sum(rooms, []))) == 6, rooms
            assert rooms == [r["rooms"] for r in d.requests()]


def test_several_choices():
    """SGLang's pairs hang on n > 1: refused at once, by name, where no engine works alone."""
    refused = [{"n": 2}, {"use_beam_search": True}]
    with pair() as (gw, [p], [d]):
        for more in refused:
            for stream in (False, True):
                start = time.monotonic()
                status, body = gw.json("POST", "/v1/chat/completions",
                                       {**ASK, "stream": stream, **more})
                assert status == 400 and body["error"]["param"] == list(more)[0], body
                assert time.monotonic() - start < 2 * h.PATIENCE, "it waited"
        status, body = gw.json("POST", "/v1/completions",
                               {"model": "lexicon", "prompt": "x", "best_of": 3})
        assert status == 400 and body["error"]["param"] == "best_of", body
        assert p.state()["requests"] == d.state()["requests"] == 0
        gw.chat({**ASK, "n": 1}).check_whole()
    with StandIn("sglang") as g, Gateway([("all", "both", "sglang", [g.address])]) as gw:
        gw.ready()
        assert len(gw.json("POST", "/v1/chat/completions", {**ASK, "n": 2})[1]["choices"]) == 2


def test_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
    except OSError:
        print("     (no IPv6 on this machine: not tested)")
        return
    with pair(host="::1") as (gw, [p], _):
        gw.chat(ASK).check_whole(answer_text(chat_ids(MESSAGES), 24))
        assert json.loads(p.requests()[-1]["body"])["bootstrap_host"] == "[::1]"


def test_half_failed():
    """One leg fails: the other is ended, and both are tried again elsewhere."""
    want = answer_text(chat_ids(LONG), 24)
    ask = {"model": "lexicon", "messages": LONG}
    for side in ("p", "d"):
        for fault in ({"status": 500}, {"close_before_head": 1}, {"garbage_head": 1}, {"refuse": True}):
            with pair(2, 2, "breaker failures=100;") as (gw, ps, ds):
                bad = (ps if side == "p" else ds)[0]
                bad.fault(**fault)
                for _ in range(4):
                    gw.chat(ask).check_whole(want)
                gw.check_idle(*ps, *ds)
                bad.fault()


def test_no_other():
    """One leg fails and there is no other engine: an error, and nothing left hanging."""
    with pair(more="queue timeout=2s;") as (gw, [p], [d]):
        for bad in (p, d):
            bad.fault(status=500)
            gw.chat(ASK).check_error((500, 502, 503))
            gw.check_idle(p, d)
            bad.fault()
            wait_for(lambda: gw.chat(ASK).error is None, 10, "healthy again")


def test_failed_in_stream():
    """Decode dies within the stream: an error event, and prefill is let go."""
    with pair(token_ms=5) as (gw, [p], [d]):
        for fault in ({"cut_after": 4}, {"half_event": 4}, {"half_event_clean": 4}):
            d.fault(**fault, times=1)
            s = gw.chat(ASK)
            assert s.whole_or_error(answer_text(chat_ids(MESSAGES), 24)) == "error", fault
            gw.check_idle(p, d)
            wait_for(lambda: gw.chat(ASK).error is None, 10, "healthy again")


def test_client_leaves():
    with pair(token_ms=20) as (gw, [p], [d]):
        for events in (0, 3):
            p.fault(hold=1)
            s = gw.stream(ASK)
            wait_for(lambda: p.state()["running"] and d.state()["running"], what="both legs run")
            if events:
                p.fault()
            for _ in range(events):
                s.next()
            s.close()
            gw.check_idle(p, d)


def test_many_at_once():
    with pair(2, 3, natural=40, token_ms=2, first_token_ms=5, split_events=1) as (gw, ps, ds):
        ids = [[(i * 7 + k) % 1500 + 5 for k in range(10 + i)] for i in range(100)]

        def ask(i):
            s = gw.chat({"model": "lexicon", "prompt": ids[i], "max_tokens": 5 + i % 30},
                        "/v1/completions")
            s.check_whole(answer_text(ids[i], 5 + i % 30))
        h.in_threads([lambda i=i: ask(i) for i in range(100)])


if __name__ == "__main__":
    h.main(globals())
