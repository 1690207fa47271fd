"""The gateway in front of vLLM stand-ins: whole requests, NixlConnector (sequential) and
MooncakeConnector (parallel). The stand-ins refuse and keep whatever the protocol does not
prescribe; every answer is checked token by token."""
import contextlib
import json

import gateway_harness as h
from gateway_harness import Gateway, StandIn, answer_text, chat_ids, tokenize, wait_for

MESSAGES = [{"role": "user", "content": "What does courage mean?"}]
LONG = [{"role": "user", "content": "What does courage mean? " * 40}]
SPLIT = "policy skip_prefill=0;\n"


@contextlib.contextmanager
def whole(n=1, more="", **options):
    """n engines that do all of it."""
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(StandIn("vllm", **options)) for _ in range(n)]
        gw = stack.enter_context(Gateway(
            [("all", "both", "vllm", [e.address for e in engines])], more))
        gw.ready()
        yield gw, engines
        gw.check_idle(*engines)


@contextlib.contextmanager
def pair(connector="nixl", n_prefill=1, n_decode=1, more="", prefill=None, decode=None, **options):
    """Prefill and decode engines, every request split."""
    with contextlib.ExitStack() as stack:
        def engines(n, role, own):
            return [stack.enter_context(StandIn("vllm", role=role, connector=connector,
                                                **{**options, **(own or {})})) for _ in range(n)]
        ps, ds = engines(n_prefill, "prefill", prefill), engines(n_decode, "decode", decode)
        gw = stack.enter_context(Gateway(
            [("p", "prefill", "vllm", [
                e.address + (f" bootstrap_port={e.ports['bootstrap']}" if connector == "mooncake"
                             else "") for e in ps]),
             ("d", "decode", "vllm", [e.address for e in ds])],
            SPLIT + f"handoff {'parallel' if connector == 'mooncake' else 'sequential'};\n" + more))
        gw.ready()
        yield gw, ps, ds
        gw.check_idle(*ps, *ds)


def check_answers(gw, natural):
    """Chats and completions, streams and not: the right text, ends and counts."""
    ids, long_ids = chat_ids(MESSAGES), chat_ids(LONG)
    for messages, want in ((MESSAGES, ids), (LONG, long_ids)):
        body = {"model": "lexicon", "messages": messages}
        s = gw.chat(body)
        s.check_whole(answer_text(want, natural))
        assert s.reason == "stop" and s.usage is None, (s.reason, s.usage)
        assert s.events[0]["object"] == "chat.completion.chunk", s.events[0]
        assert s.events[0]["choices"][0]["delta"].get("role") == "assistant", s.events[0]
        assert len({e["id"] for e in s.events}) == 1 and s.events[0]["id"].startswith("chatcmpl-")
        s = gw.chat({**body, "max_tokens": 5, "stream_options": {"include_usage": True}})
        s.check_whole(answer_text(want, 5))
        assert s.reason in ("length", "stop")
        assert s.usage["prompt_tokens"] == len(want) and s.usage["completion_tokens"] == 5, s.usage
        assert s.events[-1]["choices"] == [] and "usage" in s.events[-1], s.events[-1]
        status, one = gw.json("POST", "/v1/chat/completions", {**body, "max_completion_tokens": 6})
        assert status == 200, one
        assert one["object"] == "chat.completion", one
        assert one["choices"][0]["message"]["content"] == answer_text(want, 6), one
        assert one["choices"][0]["message"]["role"] == "assistant", one
        assert one["usage"]["prompt_tokens"] == len(want), one
        assert one["usage"]["total_tokens"] == len(want) + 6, one
    prompt = "It is \"good\" to be\tbrave \\ and ünïcödé 😀"
    want = tokenize(prompt)
    s = gw.chat({"model": "lexicon", "prompt": prompt, "max_tokens": 9}, "/v1/completions")
    s.check_whole(answer_text(want, 9))
    assert s.events[0]["object"] == "text_completion"
    status, one = gw.json("POST", "/v1/completions", {"model": "lexicon", "prompt": want})
    assert status == 200 and one["choices"][0]["text"] == answer_text(want, 16), one
    assert "kv_transfer_params" not in one or one["kv_transfer_params"] is None, one


def test_whole():
    with whole(natural=30) as (gw, [v]):
        check_answers(gw, 30)
        log = v.requests()
        assert all(r["leg"] == "whole" and r["is_ids"] for r in log), "text went to the engine"
        assert all(r["path"] == "/v1/completions" for r in log)
        assert v.state()["connections"] <= 8, v.state()  # two workers, health checks among them


def test_nixl():
    with pair(natural=30) as (gw, [p], [d]):
        check_answers(gw, 30)
        # null stands for a field that is not given: replaced, and not there twice.
        gw.chat({"model": "lexicon", "messages": MESSAGES, "kv_transfer_params": None,
                 "stream_options": None, "max_tokens": None}).check_whole()
        ps, ds = p.requests(), d.requests()
        assert len(ps) == len(ds) and all(r["leg"] == "prefill" for r in ps)
        assert all(r["leg"] == "decode" and r["fetch"] == "ok" for r in ds)
        assert [r["request_id"] for r in ps] == [r["request_id"] for r in ds]
        assert len({r["request_id"] for r in ps}) == len(ps)
        assert [r["ids"] for r in ps] == [r["ids"] for r in ds]
        assert p.state()["leases_expired"] == 0 and p.state()["leases_held"] == 0


def test_mooncake():
    with pair("mooncake", natural=30, first_token_ms=30) as (gw, [p], [d]):
        check_answers(gw, 30)
        ps, ds = p.requests(), d.requests()
        assert len(ps) == len(ds) and all(r["fetch"] == "ok" for r in ds)
        ids = [json.loads(r["body"])["kv_transfer_params"]["transfer_id"] for r in ps]
        assert len(set(ids)) == len(ids)


def test_many_at_once():
    """Hundreds of streams over several engines of each kind: no answer is mixed up."""
    prompts = [f"Number {i}: " + "why is that so? " * (i % 13) for i in range(150)]
    ids = [tokenize(p) for p in prompts[:20]] * 8
    for connector in ("nixl", "mooncake"):
        with pair(connector, 3, 3, natural=40, token_ms=2, first_token_ms=30, split_events=1) as (gw, ps, ds):
            def ask(i):
                s = gw.chat({"model": "lexicon", "prompt": ids[i], "max_tokens": 10 + i % 20},
                            "/v1/completions")
                s.check_whole(answer_text(ids[i], 10 + i % 20))
            h.in_threads([lambda i=i: ask(i) for i in range(150)])
            # One that a busy machine makes slow gets fewer than its third of them.
            used = [e.state()["requests"] for e in ps + ds]
            assert min(used) >= 5, f"the load is not spread: {used}"


def test_text_only():
    """What only the engine can parse goes as text, and comes back as it is."""
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {
        "type": "object", "properties": {"max_tokens": {"type": "integer"}}}}}]
    for split in (False, True):
        with (pair(reasoning=1) if split else whole(reasoning=1)) as got:
            gw, engines = got[0], [e for part in got[1:] for e in part]
            body = {"model": "lexicon", "messages": MESSAGES, "tools": tools}
            status, one = gw.json("POST", "/v1/chat/completions", body)
            assert status == 200, one
            call = one["choices"][0]["message"]["tool_calls"][0]
            want = h.hash_ids(h.chat_text_ids(MESSAGES))
            assert call["function"] == {"name": "look_up", "arguments": f'{{"x": "{want}"}}'}, call
            assert one["choices"][0]["finish_reason"] == "tool_calls"
            assert one["choices"][0]["message"]["reasoning_content"] == f"thinking of {want}"
            s = gw.chat(body)
            arguments = "".join(
                c["function"].get("arguments", "") for e in s.events for ch in e["choices"]
                for c in ch["delta"].get("tool_calls", []))
            assert arguments == f'{{"x": "{want}"}}' and s.reason == "tool_calls", s.events
            log = engines[-1].requests()[-1]
            assert log["path"] == "/v1/chat/completions" and json.loads(log["body"])["tools"] == tools


def test_several_choices():
    """n > 1 and several prompts cannot be split: a decode engine does them alone."""
    with pair() as (gw, [p], [d]):
        ids = tokenize("Why?")
        status, one = gw.json("POST", "/v1/completions",
                              {"model": "lexicon", "prompt": ids, "n": 2, "max_tokens": 3})
        assert status == 200 and [c["text"] for c in one["choices"]] == [answer_text(ids, 3)] * 2, one
        status, one = gw.json("POST", "/v1/completions",
                              {"model": "lexicon", "prompt": ["a", "b"], "max_tokens": 3})
        assert status == 200 and len(one["choices"]) == 2, one
        assert p.state()["requests"] == 0 and d.state()["whole_legs"] == 2


def test_skip_prefill():
    with pair(more="") as (gw, [p], _):
        gw.more = gw.more.replace("skip_prefill=0", "skip_prefill=64")
        gw.write_conf()
        gw.reload()
        gw.ready()
        gw.chat({"model": "lexicon", "messages": MESSAGES}).check_whole()
        assert p.state()["requests"] == 0, "a short prompt was split"
        gw.chat({"model": "lexicon", "messages": LONG}).check_whole()
        assert p.state()["requests"] == 1, "a long prompt was not"


def test_engine_errors():
    """An engine's refusal reaches the client as it is, in OpenAI's shape, whichever of vLLM's it
    had; for streams and not."""
    for old in (0, 1):
        with whole(old_errors=old, max_model_len=100) as (gw, [v]):
            v.fault(status=400, times=1)
            s = gw.chat({"model": "lexicon", "messages": MESSAGES})
            s.check_error(400)
            assert "told to refuse" in s.error["message"], s.error
            assert v.state()["requests"] == 1, "a 400 was tried again"
            ask = {"model": "lexicon", "prompt": list(range(1, 150))}
            want = {"message": "This model's maximum context length is 100 tokens.",
                    "type": "BadRequestError", "param": "prompt", "code": 400}
            s = gw.chat(ask, "/v1/completions")
            s.check_error(400)
            assert s.error == want, s.error
            status, body = gw.json("POST", "/v1/completions", ask)
            assert (status, body) == (400, {"error": want}), body


def test_error_events():
    """A stream or answer of status 200 that begins with an error: the client's mistake is told
    with its status and tried nowhere else; others are tried again."""
    want = {"message": "no such thing", "type": "BadRequestError", "param": "x", "code": 400}
    ask = {"model": "lexicon", "messages": MESSAGES}
    for stream in (True, False):
        with whole() as (gw, [v]):
            v.fault(error_first=want, times=4)
            for _ in range(4):
                status, body = gw.json("POST", "/v1/chat/completions", {**ask, "stream": stream})
                assert (status, body) == (400, {"error": want}), body
            assert v.state()["requests"] == 4, "a mistake was tried again"
            assert gw.cluster()["engines"][0]["health"] == "up"
            gw.chat(ask).check_whole()
            v.fault(error_first={**want, "code": 500}, times=1)
            status, _, data = gw.request("POST", "/v1/chat/completions", {**ask, "stream": stream})
            assert status == 200 and b"choices" in data and b"error" not in data, (status, data)
            assert v.state()["requests"] == 7, "it was not tried again"


def test_not_split():
    """What cannot be computed in two places goes to the decode engine alone."""
    with pair("nixl") as (gw, [p], [d]):
        for more in ({"n": 2}, {"use_beam_search": True}, {"prompt_logprobs": 1}):
            gw.chat({"model": "lexicon", "messages": LONG, **more}).check_whole()
            assert p.state()["requests"] == 0, more
            assert d.requests()[-1]["leg"] == "whole"
        gw.chat({"model": "lexicon", "messages": LONG, "use_beam_search": False}).check_whole()
        assert p.state()["requests"] == 1


def test_key_for_engine():
    with StandIn("vllm", api_key="engine-key") as v:
        with Gateway([("all", "both", "vllm", [f"{v.address} api_key=engine-key"])]) as gw:
            gw.ready()
            gw.chat({"model": "lexicon", "messages": MESSAGES},
                    headers={"Authorization": "Bearer client-key"}).check_whole()
            assert "client-key" not in json.dumps(v.requests()[-1]["headers"])
            gw.check_idle(v)


def test_retry():
    """Before the first token another engine takes over; the client sees nothing of it."""
    want = answer_text(chat_ids(MESSAGES), 24)
    for fault in ({"status": 500}, {"status": 503}, {"close_before_head": 1}, {"garbage_head": 1},
                  {"half_head": 1}, {"refuse": True}):
        with whole(2, "breaker failures=100;") as (gw, engines):
            engines[0].fault(**fault)
            for _ in range(6):
                gw.chat({"model": "lexicon", "messages": MESSAGES}).check_whole(want)
            engines[0].fault()
            if "refuse" not in fault:
                assert engines[1].state()["requests"] >= 6


def test_retry_of_legs():
    want = answer_text(chat_ids(MESSAGES), 24)
    for connector in ("nixl", "mooncake"):
        for side in ("p", "d"):
            for fault in ({"status": 500}, {"close_before_head": 1}, {"garbage_head": 1}):
                # Pairs that were half done leave a lease until it ends.
                with pair(connector, 2, 2, "breaker failures=100;", lease_ms=3000) as (gw, ps, ds):
                    bad = (ps if side == "p" else ds)[0]
                    bad.fault(**fault)
                    def tried(gw=gw, bad=bad):
                        gw.chat({"model": "lexicon", "messages": MESSAGES}).check_whole(want)
                        return bad.state()["requests"] > 0
                    wait_for(tried, 5, "the bad engine is tried")
                    gw.check_idle(*ps, *ds)
                    wait_for(lambda ps=ps: all(e.state()["leases_held"] == 0 for e in ps), 5,
                             "leases end")


def test_prefill_without_params():
    """A prefill engine that hands nothing out: an error or another way, never a decode of garbage."""
    with pair(n_prefill=2) as (gw, ps, _):
        ps[0].fault(no_kv_params=1)
        for _ in range(4):
            gw.chat({"model": "lexicon", "messages": MESSAGES}).whole_or_error(
                answer_text(chat_ids(MESSAGES), 24))


def test_kv_load_failure():
    """The decode engine cannot fetch what prefill handed out: prefill is done again."""
    with pair(lease_ms=400) as (gw, [p], [d]):
        d.fault(status=500, only="decode", times=1)
        s = gw.chat({"model": "lexicon", "messages": MESSAGES})
        s.whole_or_error(answer_text(chat_ids(MESSAGES), 24))
        wait_for(lambda: p.state()["leases_held"] == 0, 5)


def test_client_leaves():
    """At any phase: both engines are free again at once."""
    for connector in ("nixl", "mooncake"):
        with pair(connector, lease_ms=1500, token_ms=50) as (gw, [p], [d]):
            p.fault(hold=1)
            s = gw.stream({"model": "lexicon", "messages": MESSAGES})
            wait_for(lambda p=p: p.state()["running"] == 1, what="prefill runs")
            s.close()
            p.fault()
            gw.check_idle(p, d)
            d.fault(hang_after=3)
            s = gw.stream({"model": "lexicon", "messages": MESSAGES})
            s.next()
            s.next()
            assert d.state()["running"] == 1
            s.reset()
            gw.check_idle(p, d)
            assert d.state()["aborted"] >= 1
            wait_for(lambda p=p: p.state()["leases_held"] == 0, 5)


def test_metrics_are_read():
    """Load that other gateways put on an engine is seen in its metrics and avoided."""
    with whole(2) as (gw, engines):
        engines[0].order(options={"metrics_waiting": 50, "metrics_running": 256, "metrics_usage": 0.97})
        wait_for(lambda: any(e["reported"]["waiting"] == 50 for e in gw.cluster()["engines"]), 5,
                 "the metrics are known")
        for _ in range(6):
            gw.chat({"model": "lexicon", "messages": MESSAGES}).check_whole()
        assert engines[0].state()["requests"] == 0, "a full engine was chosen"


if __name__ == "__main__":
    h.main(globals())
