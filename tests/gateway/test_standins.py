"""The stand-ins themselves: they keep to the protocol, and any deviation fails a test. What a test
of the gateway says rests on this."""
import json
import subprocess
import threading

import gateway_harness as h
from gateway_harness import StandIn, answer_text, http_request, wait_for

PREFILL_KV = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
              "remote_block_ids": None, "remote_host": None, "remote_port": None}
PREFILL = {"stream": False, "max_tokens": 1, "min_tokens": 1, "max_completion_tokens": 1}
IDS = list(range(100, 140))
ID = {"x-request-id": "r-1"}


def post(standin, body, path="/v1/completions", headers=None):
    status, _, data = http_request(standin.port, "POST", path, body, headers)
    return status, data.decode()


def violates(standin, body, path="/v1/completions", headers=None, status=400):
    """The body is answered with an error and kept as a violation."""
    got, text = post(standin, body, path, headers)
    assert got == status, (got, text)
    assert standin.state()["violations"], f"no violation: {body}"
    standin.order(clear_violations=True)


def test_answers():
    with StandIn("vllm", natural=8) as v, StandIn("sglang", natural=8) as g:
        for s in (v, g):
            status, text = post(s, {"model": "lexicon", "prompt": IDS, "max_tokens": 7})
            body = json.loads(text)
            assert status == 200 and body["choices"][0]["text"] == answer_text(IDS, 7), body
            assert body["usage"]["completion_tokens"] == 7
            st = h.Stream(s.port, {"model": "lexicon", "prompt": IDS, "max_tokens": 50,
                                   "stream_options": {"include_usage": True}}, "/v1/completions")
            st.finish().check_whole(answer_text(IDS, 8))
            assert st.reason == "stop" and st.usage["prompt_tokens"] == 40
            messages = [{"role": "user", "content": "hé"}]
            st = h.Stream(s.port, {"model": "lexicon", "messages": messages})
            st.finish().check_whole(answer_text(h.chat_text_ids(messages), 8))
            tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
            _, text = post(s, {"messages": messages, "tools": tools}, "/v1/chat/completions")
            assert json.loads(text)["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
            assert post(s, {"model": "no", "prompt": IDS})[0] == 404
            assert post(s, {"prompt": [1, -1]})[0] == 400
            assert http_request(s.port, "GET", "/health")[0] == 200
            assert b"num_r" in http_request(s.port, "GET", "/metrics")[2]


def test_nixl():
    with StandIn("vllm", role="prefill") as p, StandIn("vllm", role="decode") as d:
        leg = {"prompt": IDS, **PREFILL, "kv_transfer_params": PREFILL_KV}
        status, text = post(p, leg, headers=ID)
        assert status == 200
        kv = text[text.index('"kv_transfer_params":') + 21:-1]
        decode = '{"prompt":%s,"max_tokens":5,"kv_transfer_params":%s}' % (json.dumps(IDS), kv)
        status, text = post(d, decode, headers=ID)
        assert status == 200 and json.loads(text)["choices"][0]["text"] == answer_text(IDS, 5), text
        assert p.state()["leases_held"] == 0 and p.state()["leases_fetched"] == 1
        # A second time, and not verbatim.
        assert post(d, decode, headers=ID)[0] == 500
        assert "twice" in p.state()["violations"][0]
        p.order(clear_violations=True)
        text = post(p, leg, headers=ID)[1]
        kv = json.dumps(json.loads(text)["kv_transfer_params"])
        assert post(d, '{"prompt":[1],"kv_transfer_params":%s}' % kv, headers=ID)[0] == 500
        assert "changed" in p.state()["violations"][0]
        p.order(clear_violations=True, options={"lease_ms": 100})
        assert post(p, leg, headers=ID)[0] == 200
        wait_for(lambda: p.state()["leases_expired"] == 1, what="the lease's end")
        # Deviations of the prefill leg.
        for change in ({"stream": True}, {"max_tokens": 2}, {"min_tokens": 0},
                       {"stream_options": {}}, {"max_completion_tokens": 7}, {"bootstrap_room": 1},
                       {"kv_transfer_params": {**PREFILL_KV, "x": 1}},
                       {"kv_transfer_params": {**PREFILL_KV, "remote_port": 0}},
                       {"kv_transfer_params": {k: v for k, v in PREFILL_KV.items()
                                               if k != "remote_host"}}):
            violates(p, {**leg, **change}, headers=ID)
        violates(p, leg)  # without an id
        violates(p, {"prompt": IDS}, headers=ID)
        violates(d, leg, headers=ID)
        violates(p, '{"prompt":[1],"prompt":[2]}')
        chat = {**leg, "messages": [{"role": "user", "content": "a"}]}
        del chat["prompt"], chat["max_completion_tokens"]
        violates(p, chat, "/v1/chat/completions", headers=ID)


def test_mooncake():
    with StandIn("vllm", role="prefill", connector="mooncake") as p, \
            StandIn("vllm", role="decode", connector="mooncake") as d:
        port = p.ports["bootstrap"]
        engine = json.loads(http_request(port, "GET", "/query")[2])["0"]["engine_id"]
        xfer = "xfer-01234567-89ab-cdef-0123-456789abcdef"
        first = {"prompt": IDS, **PREFILL, "kv_transfer_params": {
            "do_remote_decode": True, "do_remote_prefill": False, "transfer_id": xfer}}
        second = {"prompt": IDS, "max_tokens": 3, "kv_transfer_params": {
            "do_remote_prefill": True, "do_remote_decode": False, "transfer_id": xfer,
            "remote_bootstrap_addr": f"http://127.0.0.1:{port}", "remote_engine_id": engine}}
        result = []
        waiting = threading.Thread(target=lambda: result.append(post(d, second, headers=ID)))
        waiting.start()  # decode first: it waits for prefill
        wait_for(lambda: d.state()["running"] == 1)
        assert post(p, first, headers=ID)[0] == 200
        waiting.join()
        assert json.loads(result[0][1])["choices"][0]["text"] == answer_text(IDS, 3), result
        violates(p, {**first, "kv_transfer_params": PREFILL_KV}, headers=ID)
        bad = dict(second["kv_transfer_params"])
        del bad["remote_engine_id"]
        violates(d, {**second, "kv_transfer_params": bad}, headers=ID)


def test_bootstrap():
    with StandIn("sglang", disaggregation_mode="prefill") as p, \
            StandIn("sglang", disaggregation_mode="decode") as d:
        room = 2**63 - 1
        leg = {"prompt": IDS, "max_tokens": 4, "bootstrap_host": "127.0.0.1",
               "bootstrap_port": p.ports["bootstrap"], "bootstrap_room": room}
        first, second = h.in_threads([lambda: post(p, leg), lambda: post(d, leg)])
        assert first[0] == 200 and json.loads(first[1])["usage"]["completion_tokens"] == 1
        assert json.loads(second[1])["choices"][0]["text"] == answer_text(IDS, 4), second
        # A partner that never comes: the leg hangs until its client leaves.
        for alone in (p, d):
            s = h.Stream(alone.port, leg, "/v1/completions")
            wait_for(lambda a=alone: a.state()["running"] == 1)
            assert not h.readable(s.socket, 0.3)
            s.close()
            wait_for(lambda a=alone: a.state()["aborted"] == 1)
        wait_for(lambda: p.state()["rooms_open"] == 0)
        # Bodies that differ.
        pair = h.in_threads([lambda: post(p, leg), lambda: post(d, {**leg, "max_tokens": 5})])
        assert [s for s, _ in pair] == [400, 400], pair
        for s in (p, d):
            assert s.state()["violations"] and s.order(clear_violations=True) == {}
        for change in ({"bootstrap_room": "7"}, {"bootstrap_room": 1.5}, {"bootstrap_room": 2**63},
                       {"bootstrap_room": -1}, {"bootstrap_host": "::1"}, {"bootstrap_port": "1"},
                       {"kv_transfer_params": {}}):
            violates(p, {**leg, **change})
        violates(p, {"prompt": IDS})


def test_events():
    """Both encodings, integer and byte hashes, a gap and its replay; decoded in Node."""
    for encoding, hashes in (("map", "bytes"), ("array", "int"), ("array", "signed")):
        with StandIn("vllm", events_port=0, encoding=encoding, hashes=hashes, topic="kv@x",
                     blocks_per_event=2) as v:
            orders = [{"take": list(range(80))}, {"gap": 1}, {"take": list(range(112))},
                      {"clear_cache": True}]
            out = subprocess.run(
                [h.NODE, f"{h.HERE}/standins/events_check.mjs", str(v.ports["events"]),
                 str(v.ports["replay"]), "4", "3", str(v.ports["control"]),
                 *map(json.dumps, orders)], capture_output=True, text=True, timeout=30 * h.PATIENCE, check=True)
            got = json.loads(out.stdout)
            # Two blocks a batch: 0, 1, 2; batch 3 is lost; 4 clears.
            assert [b[:2] for b in got["live"]] == [["kv@x", 0], ["kv@x", 1], ["kv@x", 2],
                                                    ["kv@x", 4]], got
            assert [b[0] for b in got["replayed"]] == [3, 4], got
            events = [b[2][1][0] for b in got["live"][:3]] + [got["replayed"][0][1][1][0]]
            if encoding == "array":
                events = [dict(zip(("type", "block_hashes", "parent_block_hash", "token_ids",
                                    "block_size"), e)) for e in events]
            assert [e["type"] for e in events] == ["BlockStored"] * 4
            assert sum((e["token_ids"] for e in events), []) == list(range(112))
            assert events[0]["parent_block_hash"] is None
            for before, after in zip(events, events[1:]):
                assert after["parent_block_hash"] == before["block_hashes"][-1]
            size = {"bytes": lambda x: len(x) == 64, "int": lambda x: 0 <= int(x) < 2**64,
                    "signed": lambda x: -2**63 <= int(x) < 2**63}[hashes]
            assert all(size(x) for e in events for x in e["block_hashes"]), events


def test_faults():
    body = {"prompt": IDS, "max_tokens": 10}
    with StandIn("vllm") as v:
        def stream():
            return h.Stream(v.port, body, "/v1/completions")
        for fault in ({"cut_after": 3}, {"half_event": 3}, {"half_event_clean": 3},
                      {"garbage_head": 1}, {"long_length": 1}, {"close_before_head": 1},
                      {"half_head": 1}, {"bad_chunk": 1}):
            v.fault(**fault, times=1)
            try:
                stream().finish()
            except AssertionError:
                continue
            raise AssertionError(f"{fault} did no harm")
        v.fault(status=503, times=1)
        assert stream().finish().status == 503
        stream().finish().check_whole(answer_text(IDS, 10))  # over after once
        v.fault(hang_head=1)
        s = stream()
        wait_for(lambda: v.state()["running"] == 1)
        s.close()
        wait_for(lambda: v.state()["aborted"] == 1)
        v.fault(refuse=True)
        try:
            stream()
            raise AssertionError("not refused")
        except ConnectionRefusedError:
            pass
        v.fault(token_ms=20)
        s = stream()
        s.next()
        s.close()
        wait_for(lambda: v.state()["aborted"] == 2 and v.idle())
        v.restart()
        stream().finish().check_whole(answer_text(IDS, 10))


if __name__ == "__main__":
    h.main(globals())
