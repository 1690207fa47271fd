"""One request's way through the gateway: names that travel with it, the small endpoints, keys,
HTTP/2, bodies in pieces, events at once, the log's variables, and a prefill that is not cut off."""
import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import time

import gateway_harness as h
from gateway_harness import CHAT, NODE, Gateway, StandIn, answer_text, chat_ids, free_port, wait_for

WANT = answer_text(chat_ids(CHAT["messages"]), 24)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextlib.contextmanager
def pair(connector="nixl", more="", **options):
    with StandIn("vllm", role="prefill", connector=connector, **options) as p, \
            StandIn("vllm", role="decode", connector=connector, **options) as d, \
            Gateway([("p", "prefill", "vllm", [p.address]), ("d", "decode", "vllm", [d.address])],
                    f"policy skip_prefill=0;\n{more}") as gw:
        gw.ready()
        yield gw, p, d
        gw.check_idle(p, d)


def test_names_travel():
    """x-request-id and traceparent: the client's, or new ones, the same on both legs."""
    with pair() as (gw, p, d):
        s = gw.chat(CHAT, headers={"X-Request-Id": "my-own.1", "traceparent": TRACE,
                                   "tracestate": "a=b", "Authorization": "Bearer secret"})
        s.check_whole(WANT)
        assert s.headers["x-request-id"] == "my-own.1", s.headers
        for e in (p, d):
            got = e.requests()[-1]["headers"]
            assert got["x-request-id"] == "my-own.1" and got["traceparent"] == TRACE, got
            assert got["tracestate"] == "a=b" and "authorization" not in got, got
        s = gw.chat(CHAT)
        made = s.headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made), made
        legs = [e.requests()[-1]["headers"] for e in (p, d)]
        assert [g["x-request-id"] for g in legs] == [made, made], legs
        assert legs[0]["traceparent"] == legs[1]["traceparent"], legs
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", legs[0]["traceparent"]), legs
        # What would be no header's value is not passed on.
        s = gw.chat(CHAT, headers={"X-Request-Id": "a b"})
        assert s.headers["x-request-id"] != "a b"
        # An error has one, too.
        _, headers, _ = gw.request("POST", "/v1/chat/completions", "{", {"X-Request-Id": "e1"})
        assert headers["x-request-id"] == "e1"


def test_small_endpoints():
    with StandIn("vllm") as v, Gateway(
            [("all", "both", "vllm", [v.address])],
            models=[f"lexicon tokenizer={h.LEXICON} alias=org/other"]) as gw:
        gw.ready()
        status, body = gw.json("GET", "/v1/models")
        assert status == 200 and [m["id"] for m in body["data"]] == ["lexicon", "org/other"], body
        for name in ("lexicon", "org/other"):
            status, body = gw.json("GET", f"/v1/models/{name}")
            assert status == 200 and body["object"] == "model", body
        status, body = gw.json("GET", "/v1/models/nobody")
        assert status == 404 and body["error"]["code"] == "model_not_found", body
        status, headers, data = gw.request("HEAD", "/v1/models")
        assert status == 200 and not data and int(headers["content-length"]) > 0
        for method, path, want in (("GET", "/v1/completions", 405), ("POST", "/v1/models", 405),
                                   ("POST", "/v1/embeddings", 404), ("GET", "/v1/", 404)):
            status, body = gw.json(method, path, "{}" if method == "POST" else None)
            assert status == want and body["error"]["message"], (method, path, status, body)
        gw.chat({**CHAT, "model": "org/other"}).check_whole(WANT)
        assert json.loads(gw.request("POST", "/v1/chat/completions", CHAT)[2])["choices"]


def test_keys():
    with StandIn("vllm") as v, Gateway([("all", "both", "vllm", [v.address])],
                                       "api_key one;\napi_key another-key;") as gw:
        gw.ready()
        for key in (None, "", "on", "one ", "onee", "another-keX"):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            for method, path, body in (("POST", "/v1/chat/completions", CHAT),
                                       ("GET", "/v1/models", None)):
                status, got, data = gw.request(method, path, body, headers)
                if key == "one ":  # blanks at the end of a header are none of its value
                    assert status == 200
                    continue
                assert status == 401 and json.loads(data)["error"]["code"] == "invalid_api_key"
                assert got["www-authenticate"] == "Bearer"
        for key in ("one", "another-key"):
            gw.chat(CHAT, headers={"Authorization": f"Bearer {key}"}).check_whole(WANT)


def test_http2():
    """Many streams on one connection, one of them given up in the middle."""
    port = free_port()
    script = """
      const http2 = require("http2");
      const c = http2.connect("http://127.0.0.1:" + process.argv[1]);
      const ask = (leave) => new Promise((done) => {
        const s = c.request({":method": "POST", ":path": "/v1/chat/completions"});
        let text = "", status;
        s.on("response", (head) => { status = head[":status"]; });
        s.on("data", (d) => { text += d; if (leave) s.close(http2.constants.NGHTTP2_CANCEL); });
        s.on("close", () => done([status, text]));
        s.end(process.argv[2]);
      });
      Promise.all([...Array(20).keys()].map((i) => ask(i == 7))).then((all) => {
        c.close();
        console.log(JSON.stringify(all));
      });"""
    with StandIn("vllm", token_ms=3) as v, Gateway(
            [("all", "both", "vllm", [v.address])],
            server=f"listen 127.0.0.1:{port} http2;") as gw:
        gw.ready()
        out = subprocess.run([NODE, "-e", script, str(port), json.dumps({**CHAT, "stream": True})],
                             capture_output=True, text=True, timeout=60 * h.PATIENCE, check=True)
        answers = json.loads(out.stdout)
        assert len(answers) == 20
        for i, (status, text) in enumerate(answers):
            assert status == 200, (status, text)
            if i != 7:
                assert text.endswith("data: [DONE]\n\n"), text[-200:]
                events = [json.loads(e[6:]) for e in text.split("\n\n")[:-2]]
                got = "".join(e["choices"][0]["delta"].get("content") or "" for e in events)
                assert got == WANT, got
        gw.check_idle(v)


def test_body_in_pieces():
    """Bodies in chunks and in slow pieces, small ones and those that go to the thread pool."""
    with StandIn("vllm") as v, Gateway([("all", "both", "vllm", [v.address])],
                                       "thread_body 1k;") as gw:
        gw.ready()
        for padding in (0, 300, 50000):
            body = json.dumps({**CHAT, "user": "u" * padding}).encode()
            for step in (len(body), 7 if padding < 1000 else 3001):
                with socket.create_connection(("127.0.0.1", gw.port), 20 * h.PATIENCE) as s:
                    s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                              b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
                    for i in range(0, len(body), step):
                        part = body[i:i + step]
                        s.sendall(b"%x\r\n%s\r\n" % (len(part), part))
                        if i % (step * 8) == 0:
                            time.sleep(0.002)
                    s.sendall(b"0\r\n\r\n")
                    got = b""
                    while more := s.recv(65536):
                        got += more
                head, data = got.split(b"\r\n\r\n", 1)
                assert b" 200 " in head.split(b"\r\n")[0], head
                assert json.loads(data)["choices"][0]["message"]["content"] == WANT
        assert gw.metric("starling_tokenize_threads_total") == 2
        assert gw.metric("starling_tokenize_inline_total") == 4
        gw.check_idle(v)


def test_events_at_once():
    """Each event is there when the engine sent it; no buffer keeps it back."""
    with StandIn("vllm") as v, Gateway([("all", "both", "vllm", [v.address])]) as gw:
        gw.ready()
        for n in (1, 4):
            v.fault(hang_after=n)  # and nothing comes that could push them out
            s = gw.stream({**CHAT, "max_tokens": 6, "ignore_eos": True})
            for _ in range(n):
                s.next()
            assert v.state()["running"] == 1
            s.close()
        assert s.headers["content-type"].startswith("text/event-stream"), s.headers
        assert s.headers["x-accel-buffering"] == "no" and s.headers["cache-control"] == "no-cache"
        gw.check_idle(v)


def test_log_variables():
    form = ("log_format phases '$status|$starling_model|$starling_prompt_tokens|"
            "$starling_generated_tokens|$starling_prefill|$starling_decode|"
            "$starling_phase_decode_running|$starling_phase_done';")
    with StandIn("vllm", role="prefill", connector="nixl") as p, \
            StandIn("vllm", role="decode", connector="nixl") as d:
        with tempfile.TemporaryDirectory() as folder:
            log = os.path.join(folder, "phases.log")
            with Gateway([("p", "prefill", "vllm", [p.address]),
                          ("d", "decode", "vllm", [d.address])], "policy skip_prefill=0;",
                         http=form, server=f"access_log {log} phases;") as gw:
                gw.ready()
                gw.chat({**CHAT, "max_tokens": 5}).check_whole()

                def line():
                    with contextlib.suppress(FileNotFoundError), open(log, encoding="utf-8") as f:
                        return [x for x in f.read().splitlines() if "|lexicon|" in x]
                    return []
                status, model, prompt, generated, prefill, decode, running, done = \
                    wait_for(line, 5, "the log's line")[0].split("|")
                assert (status, model) == ("200", "lexicon")
                assert int(prompt) == len(chat_ids(CHAT["messages"])), prompt
                assert int(generated) >= 5, generated
                assert (prefill, decode) == (p.address, d.address), (prefill, decode)
                assert float(running) >= 0 and float(done) >= 0


def test_prefill_is_not_cut_off():
    """The client leaves while a vLLM prefill runs: it ends by itself, its answer is dropped."""
    with pair(lease_ms=300) as (gw, p, d):
        p.fault(hold=1)
        s = gw.stream(CHAT)
        wait_for(lambda: p.state()["running"] == 1, what="prefill runs")
        s.reset()
        wait_for(lambda: gw.cluster()["in_flight"] == 0, what="it is noticed")
        assert p.state()["running"] == 1, p.state()
        p.fault()
        wait_for(lambda: p.state()["running"] == 0, what="prefill ended")
        assert p.state()["aborted"] == 0, p.state()
        assert d.state()["requests"] == 0, d.state()
        wait_for(lambda: p.state()["leases_held"] == 0, 5, "the lease ended")


if __name__ == "__main__":
    h.main(globals())
