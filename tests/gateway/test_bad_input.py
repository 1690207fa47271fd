"""Clients and engines that send what they should not: a clear error in OpenAI's shape, nothing
leaked, and other requests unharmed."""
import contextlib
import json
import random
import socket
import threading
import time

import gateway_harness as h
from gateway_harness import (CHAT, Gateway, StandIn, answer_text, chat_ids, raw_exchange,
                             wait_for)

WANT = answer_text(chat_ids(CHAT["messages"]), 24)


@contextlib.contextmanager
def gateway(more="", **options):
    """One engine, and the check that everything else goes on as before."""
    with StandIn("vllm", **options) as v, \
            Gateway([("all", "both", "vllm", [v.address])], more) as gw:
        gw.ready()
        yield gw, v
        v.fault()
        wait_for(lambda: gw.chat(CHAT).error is None, 15, "the engine is in use again")
        gw.chat(CHAT).check_whole(WANT)
        gw.check_idle(v)


def refused(gw, body, status=400, path="/v1/chat/completions", headers=None):
    """The body meets an error in OpenAI's shape; returns its message."""
    got, answer = gw.json("POST", path, body, headers)
    assert got == status, (got, answer, body[:200] if isinstance(body, (bytes, str)) else body)
    error = answer["error"]
    assert {"message", "type", "param", "code"} <= set(error) and error["message"], answer
    return error["message"]


def test_malformed():
    with gateway() as (gw, v):
        user = '{"model":"lexicon","messages":[{"role":"user","content":"a"}]'
        for body in ("", " ", "{", "[]", "null", '"x"', "{]", user, user + ",}", user + "} x",
                     user + ',"max_tokens":01}', user + ',"max_tokens":}', user + ",'a':1}",
                     user + ',"a":"\\ud800"}', user + ',"a":"\x01"}', user + ',"a":"\\x"}',
                     user + ',"a":NaN}', user + ',"a":+1}', "\ufeff" + user + "}"):
            message = refused(gw, body.encode())
            assert len(message) > 10, message
        refused(gw, user.encode() + b',"a":"\xff"}')      # not UTF-8
        refused(gw, user.encode() + b',"a":"\xed\xa0\x80"}')  # a surrogate
        refused(gw, user.encode() + b',"a":"\xc0\xaf"}')  # an overlong slash
        assert v.state()["requests"] == 0, "a malformed body reached the engine"


def test_deep():
    with gateway() as (gw, v):
        for opener, closer in (("[", "]"), ('{"a":', "}")):
            deep = opener * 10000 + "1" + closer * 10000
            refused(gw, b'{"model":"lexicon","messages":[{"role":"user","content":"a"}],"x":%s}'
                    % deep.encode())
            refused(gw, deep.encode())
            refused(gw, (opener * 10000).encode())
        assert v.state()["requests"] == 0


def test_keys_within_text():
    """Names of fields inside strings and nested objects are text; the body's own stay."""
    with gateway() as (gw, v):
        text = ('"max_tokens": 1, \\"stream\\": true, "kv_transfer_params": {}, "prompt": [1], '
                '{"model": "x", "messages": []} \\u0022max_tokens\\u0022: 2')
        messages = [{"role": "user", "content": text}]
        s = gw.chat({"messages": messages, "metadata": {"max_tokens": 1, "stream": False, "n": 7},
                     "model": "lexicon", "max_tokens": 11})
        s.check_whole(answer_text(chat_ids(messages), 11))
        sent = json.loads(v.requests()[-1]["body"])
        assert sent["max_tokens"] == 11 and sent["stream"] is True, sent
        # Keys with escapes are the same keys.
        body = json.dumps({"model": "lexicon", "messages": messages}).replace(
            '"model"', '"\\u006dodel"')[:-1] + ', "max_\\u0074okens": 7}'
        status, one = gw.json("POST", "/v1/chat/completions", body)
        assert status == 200, one
        assert one["choices"][0]["message"]["content"] == answer_text(chat_ids(messages), 7)


def test_duplicate_keys():
    with gateway() as (gw, v):
        messages = '"messages":[{"role":"user","content":"a"}]'
        for body in ('{"model":"lexicon","model":"lexicon",%s}', '{"model":"lexicon",%s,"stream":true,'
                     '"stream":false}', '{"max_tokens":1,%s,"model":"lexicon","max_tokens":2}',
                     '{"max_tokens":1,%s,"model":"lexicon","max_\\u0074okens":2}'):
            assert "twice" in (m := refused(gw, (body % messages).encode())) or "duplicate" in m, m
        assert v.state()["requests"] == 0


def test_gateway_fields():
    """Fields that only a gateway may set."""
    with gateway() as (gw, v):
        for name, value in (("kv_transfer_params", {"do_remote_prefill": True}),
                            ("bootstrap_host", "10.0.0.1"),
                            ("bootstrap_port", 8998), ("bootstrap_room", 1),
                            ("bootstrap_room", [1]), ("prompt_token_ids", [1, 2])):
            for path, body in (("/v1/chat/completions", CHAT),
                               ("/v1/completions", {"model": "lexicon", "prompt": "a"})):
                assert name in refused(gw, {**body, name: value}, path=path)
        assert v.state()["requests"] == 0
        # Spelt out as null it says nothing, and no engine sees it.
        gw.chat({**CHAT, "kv_transfer_params": None, "bootstrap_room": None}).check_whole()
        assert "null" not in v.requests()[-1]["body"], v.requests()[-1]["body"]


def test_values():
    with gateway() as (gw, v):
        for change in ({"messages": []}, {"messages": "x"}, {"messages": [1]}, {"messages": [{}]},
                       {"messages": [{"role": 1, "content": "a"}]}, {"stream": 1}, {"stream": "true"},
                       {"max_tokens": -1}, {"max_tokens": "5"}, {"max_tokens": 1.5},
                       {"max_tokens": 10**30}, {"model": 5}, {"n": 0}, {"n": "2"},
                       {"stream_options": 3}):
            refused(gw, {**CHAT, **change})
        assert "messages" in refused(gw, {"model": "lexicon"})
        assert "prompt" in refused(gw, {"model": "lexicon"}, path="/v1/completions")
        for prompt in (5, {}, [], [1, "a"], [-1], [2**40], [[1], [-1]], None):
            refused(gw, {"model": "lexicon", "prompt": prompt}, path="/v1/completions")
        # Longer than the model takes.
        refused(gw, {"model": "lexicon", "messages": [{"role": "user", "content": "word " * 30000}]})


def test_model():
    with gateway() as (gw, _):
        message = refused(gw, {**CHAT, "model": "gpt-9"}, 404)
        assert "gpt-9" in message
        message = refused(gw, {**CHAT, "model": "x" * 5000 + "\"\n"}, 404)
        status, models = gw.json("GET", "/v1/models")
        assert status == 200 and [m["id"] for m in models["data"]] == ["lexicon"], models
        refused(gw, CHAT, 404, path="/v1/nothing")
        status, answer = gw.json("GET", "/v1/chat/completions")
        assert status in (404, 405) and "error" in answer, (status, answer)


def test_size():
    with gateway("max_body 2m;") as (gw, v):
        message = refused(gw, {**CHAT, "user": "x" * (3 << 20)}, 413)
        assert "2" in message, message
        # Said to be large, never sent: refused at once.
        got = raw_exchange(gw.port, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                           b"Content-Length: 67108864\r\nConnection: close\r\n\r\n{", 10)
        assert b" 413 " in got and b'"error"' in got, got[:500]
        # 64 MB in chunks, without a length.
        with socket.create_connection(("127.0.0.1", gw.port), 30) as s:
            got = b""
            with contextlib.suppress(ConnectionError):
                s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                          b"Transfer-Encoding: chunked\r\n\r\n")
                for _ in range(64):
                    s.sendall(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
                s.sendall(b"0\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while more := s.recv(65536):
                    got += more
                    if b'"error"' in got:
                        break
        assert not got or b" 413 " in got, got[:500]
        # Just below the limit.
        s = gw.chat({**CHAT, "user": "x" * ((2 << 20) - 500)})
        s.check_whole(WANT)
        assert v.state()["requests"] == 1
    with gateway("max_body 80m;") as (gw, v):
        s = gw.chat({**CHAT, "user": "é\\\"" * (6 << 20)})
        s.check_whole(WANT)


def test_conditions():
    """Conditions meant for documents change nothing about an answer."""
    with gateway() as (gw, _):
        for name, value in (("If-None-Match", "*"), ("If-Match", '"x"'), ("Range", "bytes=0-3"),
                            ("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")):
            gw.chat(CHAT, headers={name: value}).check_whole(WANT)
            status, answer = gw.json("POST", "/v1/chat/completions", CHAT, headers={name: value})
            assert status == 200 and answer["choices"], (name, status, answer)
            assert gw.request("GET", "/starling/status", headers={name: value})[0] == 200


def test_cut_bodies():
    """Bodies that end early, come slowly, or never."""
    with gateway() as (gw, v):
        whole = json.dumps({**CHAT, "stream": True}).encode()
        head = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(whole))
        random.seed(5)
        for _ in range(40):
            data = head + whole
            raw_exchange(gw.port, data[:random.randrange(len(data))], 10, shut=True)
        assert v.state()["requests"] == 0
        got = raw_exchange(gw.port, head.replace(b"POST", b"P\x00ST") + whole, 10)
        assert b" 400 " in got
        with socket.create_connection(("127.0.0.1", gw.port), 30) as s:  # a byte at a time
            for i in range(0, len(head + whole)):
                s.sendall((head + whole)[i:i + 1])
            got = b""
            while more := s.recv(65536):
                got += more
        assert got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), got[-200:]
        # Many that never send the rest do not keep others from being served.
        held = [socket.create_connection(("127.0.0.1", gw.port)) for _ in range(200)]
        for s in held:
            s.sendall(head + whole[:20])
        gw.chat(CHAT).check_whole(WANT)
        for s in held:
            s.close()


def test_pipelined():
    """Two requests in one packet; two lengths."""
    with gateway() as (gw, _):
        body = json.dumps({**CHAT, "max_tokens": 3}).encode()
        head = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n" % len(body))
        got = raw_exchange(gw.port, head + b"\r\n" + body + head + b"Connection: close\r\n\r\n" + body)
        assert got.count(b"HTTP/1.1 200") == 2, got
        got = raw_exchange(gw.port, head + b"Content-Length: 3\r\n\r\n" + body, 10)
        assert b" 400 " in got, got


# Each is met with an error; afterwards the engine is in use again.
ENGINE_FAULTS = (
    {"garbage_head": 1}, {"half_head": 1}, {"close_before_head": 1}, {"long_length": 1},
    {"two_lengths": 1}, {"bad_chunk": 1}, {"endless_head": 1}, {"body": "not json"}, {"body": ""},
    {"body": "[1,2"}, {"body": '{"choices": 5}'}, {"body": "[]"}, {"status": 500}, {"status": 418},
)
STREAM_FAULTS = (
    {"cut_after": 3}, {"half_event": 3}, {"half_event_clean": 3}, {"garbage_event": 3},
    {"error_event": 3}, {"no_done": 1}, {"huge_event": 3}, {"cut_after": 0},
)


def test_engine_garbage():
    with gateway("retries 0;\nbreaker failures=100;\nread_timeout 5s;\nfirst_token_timeout 5s;") as (gw, v):
        for fault in ENGINE_FAULTS:
            for stream in (False, True):
                v.fault(**fault)
                if stream:
                    s = gw.chat(CHAT, timeout=20)
                    s.check_error()
                else:
                    status, answer = gw.json("POST", "/v1/chat/completions", CHAT, timeout=20)
                    assert status >= 400 and answer["error"]["message"], (fault, status, answer)
                v.fault()
                wait_for(lambda: gw.chat(CHAT).error is None, 15, f"in use again after {fault}")
        for fault in STREAM_FAULTS:
            v.fault(**fault)
            s = gw.chat(CHAT, timeout=20)
            outcome = s.whole_or_error(WANT)
            assert outcome == ("whole" if "no_done" in fault else "error") or "no_done" in fault, \
                (fault, outcome)
            v.fault()
            wait_for(lambda: gw.chat(CHAT).error is None, 15, f"in use again after {fault}")


def test_engine_hangs():
    with gateway("retries 0;\nbreaker failures=100;\nread_timeout 1s;\nfirst_token_timeout 1s;") as (gw, v):
        for fault in ({"hang_head": 1}, {"hang_after": 3}):
            v.fault(**fault)
            started = time.monotonic()
            s = gw.chat(CHAT, timeout=20)
            s.check_error()
            assert time.monotonic() - started < 5 * h.PATIENCE
            v.fault()
            wait_for(v.idle, 5, "the leg is closed")
            wait_for(lambda: gw.chat(CHAT).error is None, 15, f"in use again after {fault}")


def test_answer_timeout():
    """An answer that is no stream comes when all of it is generated: it has a bound of its own."""
    more = "retries 0;\nbreaker failures=100;\nfirst_token_timeout 4s;\nanswer_timeout {};"
    for bound, want in ("300s", 200), ("1s", 504):
        with gateway(more.format(bound), token_ms=200) as (gw, v):  # 4.8 s for all of it
            status, body = gw.json("POST", "/v1/chat/completions", CHAT)
            assert status == want, (bound, status, body)
            v.order(options={"token_ms": 1})
            gw.chat(CHAT).check_whole()
            wait_for(v.idle, 5, "the leg is closed")


class RawEngine:
    """Health checks are answered; a request gets what answer(socket) writes."""

    def __init__(self, answer):
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, contextlib.suppress(OSError):
            while head := client.recv(65536):
                if not head.startswith(b"GET"):
                    return self.answer(client)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.listener.close()


def forever(head, piece, pause=0):
    def answer(client):
        client.sendall(head)
        while True:
            client.sendall(piece)
            time.sleep(pause)
    return answer


def test_endless_answers():
    """An engine that never stops sending nothing of use, each piece in time."""
    whole = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nConnection: close\r\n\r\n"
    stream = whole % (b"200 OK", b"text/event-stream")
    for head, piece, pause, status in (
            (stream, b": still here\n\n", 0.1, 504), (stream, b"\n\n", 0.1, 504),
            (stream, b": still here\n\n" * 1000, 0, 504), (stream + b"data: ", b"x" * 65536, 0, 502),
            (whole % (b"200 OK", b"application/json"), b"x" * 65536, 0, 502),
            (whole % (b"500 Sorry", b"text/plain"), b"x" * 65536, 0, 502),
            (whole % (b"400 Sorry", b"text/plain"), b"x" * 65536, 0, 502)):
        with RawEngine(forever(head, piece, pause)) as e, \
                Gateway([("all", "both", "vllm", [e.address])],
                        f"retries 0;\nfirst_token_timeout {1 if status == 504 else 60}s;\n"
                        "read_timeout 1s;") as gw:
            gw.ready()
            s = gw.chat(CHAT, timeout=10)
            s.check_error(status)
            gw.check_idle()


def test_body_memory():
    """Many large bodies whose ends never come: those that are too many are refused."""
    with gateway("max_body 8m;\nbody_memory 20m;") as (gw, v):
        gw.workers = 1
        gw.write_conf()
        gw.reload()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 7000000\r\n\r\n"
        held = [socket.create_connection(("127.0.0.1", gw.port), 20 * h.PATIENCE) for _ in range(5)]
        for s in held:
            with contextlib.suppress(ConnectionError):
                s.sendall(head + b" " * 6000000)
        wait_for(lambda: sum(h.readable(s, 0) for s in held) >= 2, 10, "two are refused")
        time.sleep(0.5)
        refused = [s for s in held if h.readable(s, 0)]
        assert len(refused) in (2, 3), refused  # three when all grow side by side
        for s in refused:
            got = s.recv(65536)
            assert b" 503 " in got and b"Retry-After" in got and b'"error"' in got, got
        for s in held:
            s.close()
        wait_for(lambda: gw.request("POST", "/v1/chat/completions",
                                    {**CHAT, "user": "x" * 7000000})[0] == 200, 5, "room again")


def test_comments_and_pieces():
    """Keep-alive comments and events in pieces are no fault."""
    with gateway(split_events=1) as (gw, v):
        v.fault(comments=1)
        gw.chat(CHAT).check_whole(WANT)


def test_bad_events():
    """KV events with wrong arity, hostile lengths and garbage: counted, ignored, never fatal."""
    with StandIn("vllm", events_port=0) as v:
        line = (f"{v.address} events=tcp://127.0.0.1:{v.ports['events']} "
                f"replay=tcp://127.0.0.1:{v.ports['replay']}")
        with Gateway([("all", "both", "vllm", [line])], workers=1) as gw:
            gw.ready()
            wait_for(lambda: (v.order(events=[["AllBlocksCleared"]]) == {}
                              and gw.metric("starling_event_batches_total") > 0), 10, "events arrive")
            hostile = [
                "c1", "00", "", "90", "91", "ff" * 50, "93cb0000000000000000dfffffffff",
                "92cb0000000000000000ddffffffff", "92cb0000000000000000dcffff",
                "92cb000000000000000091" + "91" * 5000, "82a2747300a66576656e7473dfffffffff",
                "92cb00000000000000009196ab426c6f636b53746f726564ddffffffffc090c0c0c0",
                "92cb0000000000000000c6ffffffff", "92cb00000000000000009181a474797065dbffffffff",
            ]
            for payload in hostile:
                v.order(payload=payload)
            v.order(frames=["", "00", "90"])
            v.order(frames=["6b", "0000000000000001"])
            v.order(frames=["00"] * 20)
            v.order(events=[
                ["BlockStored"], ["BlockStored", [1]], ["BlockStored", "x", None, [1], 16],
                ["BlockStored", [1, 2], None, list(range(16)), 16, None, "GPU", None],
                ["BlockStored", [1], None, list(range(16)), -16], ["BlockStored", [1], None, [2**40], 1],
                ["BlockStored", [1], None, [1], 0], ["BlockRemoved"], ["BlockRemoved", 5], [], 7,
                ["WhatIsThis", 1, 2], {"type": "BlockStored"}, {"type": 5}, {"no": "type"},
                {"type": "BlockStored", "block_hashes": {}, "token_ids": [], "block_size": 1 << 40},
            ])
            random.seed(11)
            for _ in range(50):
                v.order(payload=random.randbytes(random.randrange(200)).hex())
            # After all that a proper event is understood.
            prompt = list(range(10, 74))
            v.order(clear_cache=True)
            v.order(take=prompt)
            def matched():
                gw.chat({"model": "lexicon", "prompt": prompt, "max_tokens": 1}, "/v1/completions")
                return gw.metric("starling_matched_tokens_total") > 0
            wait_for(matched, 10, "a proper event is understood")
            assert gw.metric("starling_events_skipped_total") > 5
            gw.check_idle(v)


def test_status_is_closed():
    """/starling/ is for this machine only; requests from elsewhere never see it."""
    with gateway(more="api_key secret;") as (gw, _):
        refused(gw, CHAT, 401)
        refused(gw, CHAT, 401, headers={"Authorization": "Bearer secre"})
        refused(gw, CHAT, 401, headers={"Authorization": "Basic secret"})
        s = gw.chat(CHAT, headers={"Authorization": "Bearer secret"})
        s.check_whole(WANT)
        for path in ("status", "metrics", "health"):
            assert gw.request("GET", f"/starling/{path}")[0] == 200
            # A proxy on this machine asks for somebody elsewhere.
            for name in ("X-Forwarded-For", "x-forwarded-for", "Forwarded", "X-Real-IP"):
                status, _, body = gw.request("GET", f"/starling/{path}", headers={name: "127.0.0.1"})
                assert status == 403 and b'"error"' in body, (path, name, status, body)
        gw.more = ""
        gw.write_conf()
        gw.reload()


def test_rate():
    with gateway(more="rate requests=1 burst=3;") as (gw, _):
        def ask():
            return gw.request("POST", "/v1/chat/completions", CHAT)
        started = time.monotonic()
        got = h.in_threads([ask] * 20)
        took = time.monotonic() - started
        statuses = [s for s, _, _ in got]
        assert 3 <= statuses.count(200) <= 4 + took, (statuses, took)
        status, headers, body = next(g for g in got if g[0] != 200)
        assert status == 429 and int(headers["Retry-After"]) >= 1, (status, headers)
        assert json.loads(body)["error"]["message"]
        wait_for(lambda: ask()[0] == 200, 5, "the bucket fills")
        gw.more = ""
        gw.write_conf()
        gw.reload()


if __name__ == "__main__":
    h.main(globals())
