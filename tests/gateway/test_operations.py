"""What operators rely on: KV memory that runs full turns requests away instead of timing them out,
the status pages are closed to other machines, phases are seen from outside, large zones."""
import contextlib
import json
import os
import socket
import tempfile

import gateway_harness as h
from gateway_harness import CHAT, Gateway, StandIn, answer_text, chat_ids, http_request, wait_for

WANT = answer_text(chat_ids(CHAT["messages"]), 24)
PHASES = ("tokenized", "matched", "prefill_waiting", "prefill_scheduled", "prefill_running",
          "decode_waiting", "decode_scheduled", "decode_running", "done")


def test_kv_saturation():
    """No KV memory left: requests wait their time and get 429; the one that still waits when there
    is room again is answered."""
    with StandIn("vllm") as v, Gateway(
            [("all", "both", "vllm", [v.address])], "queue timeout=500ms;") as gw:
        v.order(options={"metrics_usage": 0.97, "metrics_running": 9})
        gw.ready()
        wait_for(lambda: gw.cluster()["engines"][0]["reported"]["kv_usage"] > 0.96, 5, "the usage is known")
        for _ in range(3):
            s = gw.chat(CHAT)
            s.check_error(429)
            assert int(s.headers["retry-after"]) >= 1, s.headers
        assert v.state()["requests"] == 0, "a full engine was asked"
        assert gw.metric("starling_rejected_deadline_total") == 3
        gw.more = "queue timeout=20s;"
        gw.write_conf()
        gw.reload()
        s = gw.stream(CHAT)
        wait_for(lambda: gw.cluster()["waiting"] == 1, 5, "it waits")
        v.order(options={"metrics_usage": 0.5})
        s.finish()
        s.check_whole(WANT)
        gw.check_idle(v)


def own_address():
    """An address of this machine that is not the loopback's; None: it has none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.0.2.1", 9))  # nothing is sent
        address = s.getsockname()[0]
        return None if address.startswith("127.") else address
    return None


def get_from(address, port, path):
    """GET by way of that address: its connections come from there, too."""
    with socket.create_connection((address, port), 10) as s:
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while more := s.recv(65536):
            got += more
    head, body = got.split(b"\r\n\r\n", 1)
    return int(head.split()[1]), body


def test_closed_to_others():
    address = own_address()
    if not address:
        print("     (this machine has the loopback alone: not tested)")
        return
    port = h.free_port()
    with StandIn("vllm") as v, Gateway(
            [("all", "both", "vllm", [v.address])],
            server=f"listen {port}; location = /open/health {{ starling_status public; }}") as gw:
        gw.ready()
        for page in ("status", "metrics", "health", "nothing"):
            status, body = get_from(address, port, f"/starling/{page}")
            assert status == 403 and v.address.encode() not in body, (page, status, body)
            assert json.loads(body)["error"]["message"], body
        assert get_from(address, port, "/open/health")[0] == 200
        assert get_from(address, port, "/v1/models")[0] == 200
        assert http_request(port, "GET", "/starling/status")[0] == 200


def test_phases():
    """Requests in flight are shown with their phase; each phase has a histogram."""
    with StandIn("vllm", role="prefill", connector="nixl", first_token_ms=1000) as p, \
            StandIn("vllm", role="decode", connector="nixl", token_ms=2000) as d, \
            Gateway([("p", "prefill", "vllm", [p.address]), ("d", "decode", "vllm", [d.address])],
                    "policy skip_prefill=0;") as gw:
        gw.ready()

        def phase():
            requests = gw.cluster()["requests"]
            return requests[0]["phase"] if requests else None
        p.fault(hold=1)
        s = gw.stream(CHAT)
        wait_for(lambda: phase() == "prefill_running", 5, "prefill is seen")
        one = gw.cluster()["requests"][0]
        assert one["prefill"] == p.address and one["decode"] is None and one["model"] == "lexicon", one
        assert one["stream"] is True and one["prompt_tokens"] == len(chat_ids(CHAT["messages"])), one
        p.fault()
        wait_for(lambda: phase() == "decode_running", 5, "decode is seen")
        one = gw.cluster()["requests"][0]
        assert one["decode"] == d.address and one["age_ms"] >= one["phase_ms"], one
        d.fault(token_ms=0)
        s.finish()
        s.check_whole(WANT)
        gw.check_idle(p, d)
        for name in PHASES:
            assert gw.metric(f'starling_phase_seconds_count{{cluster="main",phase="{name}"}}') == 1, name
        running = gw.metric('starling_phase_seconds_sum{cluster="main",phase="decode_waiting"}')
        assert 0.9 < running < 3 * h.PATIENCE, f"prefill took 1 s, the histogram says {running}"


@contextlib.contextmanager
def tokenizer(change):
    """The lexicon's tokenizer folder with another tokenizer_config.json and tokenizer.json."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        parts = {}
        for name in ("config", "generation_config", "tokenizer", "tokenizer_config"):
            with open(f"{h.LEXICON}/{name}.json", encoding="utf-8") as f:
                parts[name] = json.load(f)
        change(parts)
        for name, part in parts.items():
            with open(f"{folder}/{name}.json", "w", encoding="utf-8") as f:
                json.dump(part, f)
        yield folder


def ask_text(v, folder):
    """A chat that goes as text; completions go as ids. Returns the chat's answer."""
    with Gateway([("all", "both", "vllm", [v.address])],
                 models=[f"lexicon tokenizer={folder}"]) as gw:
        gw.ready()
        status, one = gw.json("POST", "/v1/chat/completions", CHAT)
        assert status == 200, one
        sent = v.requests()[-1]
        assert sent["path"] == "/v1/chat/completions", sent
        assert json.loads(sent["body"])["messages"] == CHAT["messages"], sent
        gw.chat({"model": "lexicon", "prompt": "Why?"}, "/v1/completions").check_whole()
        assert v.requests()[-1]["is_ids"]
        gw.check_idle(v)
    return one["choices"][0]["message"]


def test_reasoning_goes_as_text():
    """A vocabulary with marks around reasoning: vLLM's chat endpoint splits it off."""
    def change(parts):
        parts["tokenizer"]["added_tokens"] += [
            {"id": 4096 + i, "content": mark, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": False}
            for i, mark in enumerate(("<think>", "</think>"))]
    with StandIn("vllm", reasoning=1) as v, tokenizer(change) as folder:
        message = ask_text(v, folder)
        assert message["reasoning_content"].startswith("thinking of "), message


def test_without_template():
    """A tokenizer without a chat template: its chats are the engine's to render."""
    with StandIn("vllm") as v, tokenizer(
            lambda parts: parts["tokenizer_config"].pop("chat_template")) as folder:
        assert ask_text(v, folder)["content"]


def test_large_zone():
    """A zone larger than the index can be is taken."""
    with StandIn("vllm") as v:
        gw = Gateway([("all", "both", "vllm", [v.address])])
        conf = gw.conf
        gw.conf = lambda: conf().replace("zone 32m;", "zone 3g;")
        with gw:
            gw.ready()
            assert gw.cluster()["index"]["capacity"] == 2**24 - 2
            gw.chat(CHAT).check_whole(WANT)


if __name__ == "__main__":
    h.main(globals())
