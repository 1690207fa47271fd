#!/usr/bin/python3
"""Two `starling serve` processes share prompts as a gateway would have them do it, in both modes:
text, token ids and log-probabilities are those of one engine alone."""
import concurrent.futures
import json
import secrets
import sys

from server_process import Server, wait_for

WORDS = ["courage", "river", "music", "a metaphor", "an engine", "patience"]
PARAMS = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
          "remote_block_ids": None, "remote_host": None, "remote_port": None}


def chat(i):
    turns = [{"role": "user", "content": f"What does {WORDS[i % len(WORDS)]} mean?"}]
    turns += [{"role": "assistant", "content": "It is a kind of word. " * (10 * i)},
              {"role": "user", "content": f"And {WORDS[(i + 1) % len(WORDS)]}?"}] if i % 2 else []
    body = {"messages": turns, "max_tokens": 30, "seed": i, "logprobs": True, "top_logprobs": 3,
            "return_token_ids": True}
    return {**body, "temperature": 0.8 if i % 3 else 0}


def ask(server, body, path="/v1/chat/completions", request_id="r"):
    status, headers, data = server.request("POST", path, body, {"X-Request-Id": request_id})
    assert headers["X-Request-Id"] == request_id, headers
    return status, json.loads(data)


def answer(reply):
    """All of a reply but its id, its time and how much of the prompt was cached."""
    status, body = reply
    assert status == 200, body
    return body["choices"], body["usage"]["completion_tokens"]


def prefill_body(body, **params):
    return {**body, "max_tokens": 1, "max_completion_tokens": 1, "min_tokens": 1,
            "kv_transfer_params": {**PARAMS, **params}}


def pull(p, d, body):
    status, first = ask(p, prefill_body(body), request_id="pull")
    assert status == 200, first
    params = first["kv_transfer_params"]
    assert params["do_remote_prefill"] and not params["do_remote_decode"], params
    assert params["remote_num_tokens"] == first["usage"]["prompt_tokens"]
    assert len(params["remote_block_ids"]) == (params["remote_num_tokens"] + 15) // 16
    return ask(d, {**body, "kv_transfer_params": params}, request_id="pull")


def push(pool, p, d, body):
    info = p.json("GET", "/starling/engine")[1]
    name = secrets.token_hex(16)
    params = {"do_remote_prefill": True, "do_remote_decode": False, "transfer_id": name,
              "remote_host": info["kv_transfer_host"], "remote_port": info["kv_transfer_port"],
              "remote_engine_id": info["engine_id"]}
    first = pool.submit(ask, p, prefill_body(body, transfer_id=name))
    second = pool.submit(ask, d, {**body, "kv_transfer_params": params})
    assert first.result()[0] == 200, first.result()
    return second.result()


def same_answers(one, p, d):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for i in range(6):
            want = answer(ask(one, chat(i)))
            assert answer(pull(p, d, {**chat(i), "cache_salt": "pull"})) == want, i
            assert answer(push(pool, p, d, {**chat(i), "cache_salt": "push"})) == want, i
            # What both have cached by now changes nothing.
            assert answer(push(pool, p, d, {**chat(i), "cache_salt": "push"})) == want, i
        # Many at once.
        jobs = [pool.submit(pull, p, d, {**chat(i), "cache_salt": f"many{i}"}) for i in range(8)]
        for i, job in enumerate(jobs):
            assert answer(job.result()) == answer(ask(one, chat(i))), i
    assert d.metric("starling:kv_fetches_total") >= 18
    assert d.metric("starling:kv_fetch_failures_total") == 0
    assert d.metric("starling:kv_transfer_received_bytes_total") > 0
    assert p.metric("starling:kv_offers_total") == 26


def ids_instead_of_messages(one, p, d):
    """A gateway tokenizes once; completions share as chats do; streams fetch, too."""
    reply = ask(one, chat(3))
    ids = reply[1]["prompt_token_ids"]
    body = {k: v for k, v in chat(3).items() if k != "messages"}
    body = {**body, "prompt_token_ids": ids, "cache_salt": "ids"}
    assert answer(pull(p, d, body)) == answer(reply)
    body = {"prompt": ids, "max_tokens": 9, "temperature": 0, "logprobs": 2, "cache_salt": "comp"}
    want = answer(ask(one, body, "/v1/completions"))
    _, first = ask(p, {**prefill_body(body), "max_completion_tokens": None}, "/v1/completions")
    params = first["kv_transfer_params"]
    got = ask(d, {**body, "kv_transfer_params": params}, "/v1/completions")
    assert answer(got) == want
    _, first = ask(p, prefill_body({**chat(1), "cache_salt": "stream"}))
    s, data = d.stream({**chat(1), "cache_salt": "stream",
                        "kv_transfer_params": first["kv_transfer_params"]})
    while b"[DONE]" not in data:
        data += s.recv(65536)
    s.close()
    assert b'"error"' not in data


def failures(p, d):
    """A prompt that cannot be fetched is computed; requests that make no sense are refused."""
    body = {**chat(2), "cache_salt": "fail"}
    params = {"do_remote_prefill": True, "do_remote_decode": False, "remote_host": "127.0.0.1",
              "remote_block_ids": [1, 2, 3], "remote_request_id": "0" * 32,
              "remote_port": p.json("GET", "/starling/engine")[1]["kv_transfer_port"]}
    before = d.metric("starling:kv_fetch_failures_total")
    assert answer(ask(d, {**body, "kv_transfer_params": params})) == answer(ask(d, chat(2)))
    assert d.metric("starling:kv_fetch_failures_total") == before + 1
    for wrong, words in [({**prefill_body(body), "n": 2}, "n = 2"),
                         ({**prefill_body(body), "stream": True}, "stream"),
                         ({**body, "kv_transfer_params": {**params, "remote_port": 0}}, "65535")]:
        status, reply = ask(d, wrong)
        assert status == 400 and words in reply["error"]["message"], reply


def engine_info(one, p, d):
    for server, role in [(one, "both"), (p, "prefill"), (d, "decode")]:
        status, info = server.json("GET", "/starling/engine")
        assert status == 200 and info["role"] == role, info
        assert len(info["engine_id"]) == 32 and info["models"] == ["lexicon"], info
        assert (info["kv_transfer_port"] > 0) == (role != "both"), info
        assert (info["events_port"] > 0) == (role == "prefill") == (info["replay_port"] > 0), info
        assert info["block_size"] == 16 and info["max_model_len"] == 2048, info
        assert not info["draining"], info


def main():
    memory = ["--num-kv-blocks", "1024"]
    with Server(*memory) as one, Server("--role", "decode", *memory) as d, \
            Server("--role", "prefill", "--enable-kv-events", *memory) as p:
        engine_info(one, p, d)
        same_answers(one, p, d)
        ids_instead_of_messages(one, p, d)
        failures(p, d)
        status, reply = ask(one, prefill_body(chat(0)))
        assert status == 400 and "shares no KV" in reply["error"]["message"], reply
        # Nothing is left behind on either side.
        wait_for(lambda: p.idle() and d.idle(), 40, "blocks to come back")
    print("ok")


if __name__ == "__main__":
    sys.exit(main())
