"""Bad input, bad clients: each gets a clear error, the server stays up, others are unharmed."""
import json
import os
import random
import select
import signal
import socket
import string
import subprocess
import tempfile
import threading
import time
import unittest

from server_process import CHAT, ENDLESS, PATIENCE, STARLING, Server, events, read_all, wait_for

V1_CHAT, V1_COMP = "/v1/chat/completions", "/v1/completions"


def error_of(data):
    e = json.loads(data)["error"]
    assert set(e) == {"message", "type", "param", "code"}, e
    return e


class Requests(unittest.TestCase):
    """One server for all: if any of these kills or wedges it, the later ones fail."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-body-size", "256K").__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)

    def tearDown(self):
        status, body = self.server.json("POST", V1_CHAT, {**CHAT, "max_tokens": 2})
        self.assertEqual((status, body["usage"]["completion_tokens"]), (200, 2))

    def refused(self, path, body, status, words, param=None):
        got, _, data = self.server.request("POST", path, body)
        e = error_of(data)
        self.assertEqual(got, status, e)
        self.assertIn(words, e["message"])
        if param:
            self.assertEqual(e["param"], param)

    def test_bad_json(self):
        self.refused(V1_CHAT, "{", 400, "not valid JSON")
        self.refused(V1_CHAT, "", 400, "empty")
        self.refused(V1_CHAT, "[]", 400, "not a JSON object")
        self.refused(V1_CHAT, b'{"messages": "\xff\xfe"}', 400, "not valid JSON")
        self.refused(V1_CHAT, '{"messages": "\\ud800"}', 400, "not valid JSON")
        self.refused(V1_CHAT, '{"a":' + "[" * 10000 + "]" * 10000 + "}", 400, "depth")
        self.refused(V1_CHAT, '{"n": 1, "n": 2}', 400, "duplicate")

    def test_impossible_sampling(self):
        for field, value in [("temperature", -0.1), ("temperature", "1"), ("top_p", 0),
                             ("top_p", 1.01), ("top_k", -7), ("min_p", -1), ("min_p", 1.5),
                             ("repetition_penalty", 0), ("presence_penalty", 2.1),
                             ("frequency_penalty", -2.1), ("n", 0), ("n", 129), ("n", 2.5),
                             ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1e20),
                             ("stop", [""]), ("stop", ["a"] * 17), ("stop", 3),
                             ("logit_bias", {"4096": 1}), ("logit_bias", {"x": 1}),
                             ("logit_bias", {"1": 101}), ("stop_token_ids", [-1]),
                             ("stop_token_ids", [4096]), ("seed", "x"), ("seed", 0.5),
                             ("top_logprobs", 5), ("response_format", {"type": "json_object"}),
                             ("stream_options", {"include_usage": True}), ("tools", {}),
                             ("stream", 1), ("priority", 1e12), ("best_of", 0)]:
            with self.subTest(field=field, value=value):
                kind = V1_COMP if field == "best_of" else V1_CHAT
                body = {"prompt": "x"} if field == "best_of" else dict(CHAT)
                self.refused(kind, {**body, field: value}, 400, field, field)

    def test_prompts(self):
        self.refused(V1_COMP, {"prompt": [4096]}, 400, "4096", "prompt")
        self.refused(V1_COMP, {"prompt": [-1]}, 400, "-1", "prompt")
        self.refused(V1_COMP, {"prompt": [2 ** 40]}, 400, "token id", "prompt")
        self.refused(V1_COMP, {"prompt": []}, 400, "non-empty", "prompt")
        self.refused(V1_COMP, {"prompt": ""}, 400, "empty", "prompt")
        self.refused(V1_COMP, {"prompt": [1] * 2048}, 400, "2048 tokens", "prompt")
        self.refused(V1_COMP, {"prompt": "word " * 5000}, 400, "context", "prompt")
        self.refused(V1_COMP, {"prompt": [[1], "x", {}]}, 400, "prompt[2]", "prompt")
        self.refused(V1_CHAT, {"messages": [{"role": "user", "content": "word " * 5000}]}, 400,
                     "context", "messages")
        self.refused(V1_CHAT, {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "image_url", "messages")
        self.refused(V1_CHAT, {**CHAT, "model": "gpt-4"}, 404, "gpt-4", "model")
        status, body = self.server.json("POST", V1_COMP, {"prompt": [1] * 2047, "max_tokens": 50})
        self.assertEqual((status, body["usage"]["completion_tokens"]), (200, 1))
        self.assertEqual(body["choices"][0]["finish_reason"], "length")

    def test_body_over_the_limit(self):
        self.refused(V1_CHAT, b"x" * (256 * 1024 + 1), 413, "larger")
        got = self.server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                              b"Content-Length: 99999999999999999999999\r\n\r\n")
        self.assertTrue(got.startswith(b"HTTP/1.1 413 "), got)
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        got = self.server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                              b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 5 + b"0\r\n\r\n")
        self.assertTrue(got.startswith(b"HTTP/1.1 413 "), got[:100])

    def test_malformed_http(self):
        for data, status in [
                (b"nonsense\r\n\r\n", 400), (b"GET /health\r\n\r\n", 400),
                (b"GET /health HTTP/2.0\r\n\r\n", 505), (b"GET /health HTTP/1.1\r\n\r\n", 400),
                (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
                (b"GET /health HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
                (b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n", 400),
                (b"GET /health HTTP/1.1\nHost: a\n\n\r\n\r\n", 400),
                (b"GET health HTTP/1.1\r\nHost: a\r\n\r\n", 400),
                (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
                (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
                (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                 400),
                (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
                 b"Transfer-Encoding: chunked\r\n\r\n", 400),
                (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
                (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
                (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417),
                (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70000 + b"\r\n\r\n", 431),
                (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431)]:
            with self.subTest(data=data[:60]):
                got = self.server.raw(data)
                self.assertTrue(got.startswith(b"HTTP/1.1 %d " % status), got[:200])
                error_of(got.partition(b"\r\n\r\n")[2])

    def test_routes(self):
        self.assertEqual(self.server.json("GET", "/nothing")[0], 404)
        status, headers, data = self.server.request("GET", V1_CHAT)
        self.assertEqual((status, headers["Allow"]), (405, "POST"))
        error_of(data)
        self.assertEqual(self.server.request("HEAD", "/v1/models")[::2], (200, b""))
        self.assertEqual(self.server.request("GET", "/health")[0], 200)
        self.assertEqual(self.server.json("GET", "/version?x=1")[0], 200)
        self.assertEqual(self.server.json("GET", "/v1/models/lexi%63on")[1]["id"], "lexicon")

    def test_keep_alive_pipelining_chunks_and_continue(self):
        one = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
        body = json.dumps({"prompt": "hi", "max_tokens": 1, "stream": False}).encode()
        post = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"5;x=y\r\n" + body[:5] + b"\r\n%x\r\n" % (len(body) - 5) + body[5:]
                + b"\r\n0\r\nTrailer: 1\r\n\r\n")
        last = b"GET /version HTTP/1.0\r\n\r\n"
        got = self.server.raw(one + post + one + last)
        self.assertEqual(got.count(b"HTTP/1.1 200 OK"), 4, got)
        with self.server.connect() as s:
            s.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n"
                      b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
            self.assertEqual(s.recv(1000), b"HTTP/1.1 100 Continue\r\n\r\n")
            s.sendall(b'{"prompt":"hi"}')
            self.assertIn(b"200 OK", read_all(s))
        # HTTP/1.0 has no chunks: the stream ends with the connection.
        body = json.dumps({**CHAT, "stream": True, "max_tokens": 3}).encode()
        got = self.server.raw(b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n"
                              % (V1_CHAT.encode(), len(body)) + body)
        self.assertNotIn(b"chunked", got)
        self.assertTrue(got.endswith(b"data: [DONE]\n\n"), got[-100:])

    def test_a_request_arriving_byte_by_byte(self):
        body = b'{"prompt":"hello"}'
        data = (b"POST /tokenize HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body)
        with self.server.connect() as s:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for i in range(len(data)):
                s.sendall(data[i:i + 1])
            self.assertIn(b'"count":3', read_all(s))

    def test_half_headers_from_a_thousand(self):
        sockets = []
        try:
            for i in range(1000):
                s = self.server.connect()
                s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Half: ")
                sockets.append(s)
            self.assertGreaterEqual(self.server.metric("starling:http_connections"), 1000)
            self.assertEqual(self.server.json("POST", V1_CHAT, {**CHAT, "max_tokens": 3})[0], 200)
        finally:
            for s in sockets:
                s.close()
        wait_for(lambda: self.server.metric("starling:http_connections") < 5)

    def wait_running(self, n, ended):
        """Until n run. This process may have been away until they were done: then `ended` requests
        have ended in all."""
        wait_for(lambda: self.server.metric("vllm:num_requests_running") == n
                 or self.server.metric("vllm:request_success_total") >= ended)

    def test_clients_that_leave(self):
        aborted = self.server.metric("vllm:request_success_total")
        s, _ = self.server.stream(ENDLESS)
        self.wait_running(1, aborted + 1)
        s.close()
        wait_for(self.server.idle, 30, "a stream's client left")
        data = json.dumps({**ENDLESS, "n": 3}).encode()
        s = self.server.connect()
        s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                  % (V1_CHAT.encode(), len(data)) + data)
        self.wait_running(3, aborted + 4)
        s.close()
        wait_for(self.server.idle, 30, "a client without stream left")
        self.assertEqual(self.server.metric("vllm:request_success_total"), aborted + 4)

    def test_clients_that_leave_with_more_pipelined_than_is_read(self):
        data = json.dumps({**ENDLESS, "n": 16}).encode()
        data = (b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                % (V1_CHAT.encode(), len(data)) + data)
        for leave in (socket.socket.close, lambda s: s.shutdown(socket.SHUT_WR)):
            ended = self.server.metric("vllm:request_success_total")
            with self.server.connect() as s:
                s.sendall(data + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
                self.wait_running(16, ended + 16)
                started = self.server.metric("vllm:generation_tokens_total")
                leave(s)
                wait_for(self.server.idle, 20, "a client left whose bytes were not all read")
                made = self.server.metric("vllm:generation_tokens_total") - started
                self.assertLess(made, 16 * 1000)

    def test_pipelined_bytes_wait_without_work(self):
        """Requests behind one that is being answered must not keep the I/O thread busy."""
        pid = self.server.process.pid

        def ticks(path):
            with open(f"/proc/{pid}/{path}") as f:
                return sum(map(int, f.read().rpartition(")")[2].split()[11:13]))

        data = json.dumps({**ENDLESS, "n": 8 if PATIENCE == 1 else 2}).encode()
        with self.server.connect() as s:
            before, all_before = ticks(f"task/{pid}/stat"), ticks("stat")
            s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                      % (V1_CHAT.encode(), len(data)) + data
                      + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 3000
                      + b"GET /version HTTP/1.0\r\n\r\n")
            s.settimeout(500)  # with sanitizers on a busy machine
            self.assertEqual(read_all(s).count(b"HTTP/1.1 200 OK"), 3002)
            made, all_made = ticks(f"task/{pid}/stat") - before, ticks("stat") - all_before
            self.assertLess(made, max(20, all_made * 0.2))

    def test_tokenize_round_trip(self):
        text = "Größe 你好 \U0001f600 \u0000 end"
        status, t = self.server.json("POST", "/tokenize", {"prompt": text})
        self.assertEqual((status, t["count"]), (200, len(t["tokens"])))
        self.assertEqual(self.server.json("POST", "/detokenize", {"tokens": t["tokens"]}),
                         (200, {"prompt": text}))
        self.refused("/detokenize", {"tokens": [4096]}, 400, "4096", "tokens")
        chat = self.server.json("POST", "/tokenize", CHAT)[1]
        usage = self.server.json("POST", V1_CHAT, {**CHAT, "max_tokens": 1})[1]["usage"]
        self.assertEqual(chat["count"], usage["prompt_tokens"])

    def test_metrics_are_well_formed(self):
        text = self.server.request("GET", "/metrics")[2].decode()
        types, seen = {}, set()
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                name, kind = line.split()[2:]
                self.assertNotIn(name, types)
                types[name] = kind
            elif not line.startswith("#"):
                key, value = line.rsplit(" ", 1)
                float(value)
                self.assertNotIn(key, seen)
                seen.add(key)
                base = key.partition("{")[0]
                for suffix in ("_bucket", "_sum", "_count"):
                    if types.get(base.removesuffix(suffix)) == "histogram":
                        base = base.removesuffix(suffix)
                self.assertIn(base, types)
        for name in ("vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
                     "vllm:e2e_request_latency_seconds", "vllm:iteration_tokens_total"):
            self.assertEqual(types[name], "histogram")


class Answers(unittest.TestCase):
    """Streams say exactly what whole answers say."""

    def test_stream_equals_whole(self):
        with Server() as server:
            for extra in ({}, {"stop": ["noun"]}, {"stop": [" (noun): a qual", "x"]},
                          {"stop": ["noun"], "include_stop_str_in_output": True},
                          {"stop": "courage", "min_tokens": 10}, {"max_tokens": 5},
                          {"temperature": 1.5, "seed": 7, "n": 3, "logprobs": True,
                           "top_logprobs": 2}, {"skip_special_tokens": False}):
                with self.subTest(extra=extra):
                    body = {**CHAT, **extra}
                    whole = server.json("POST", V1_CHAT, body)[1]
                    s, got = server.stream({**body, "stream_options": {"include_usage": True}})
                    while b"data: [DONE]" not in got:
                        got += s.recv(65536)
                    s.close()
                    self.compare(whole, events(got))

    def compare(self, whole, lines):
        self.assertEqual(lines[-1], b"[DONE]")
        chunks = [json.loads(line) for line in lines[:-1]]
        usage = chunks[-1]["usage"]
        self.assertEqual(chunks[-1]["choices"], [])
        for key in ("prompt_tokens", "completion_tokens"):
            self.assertEqual(usage[key], whole["usage"][key])
        for choice in whole["choices"]:
            text, logprobs, reason = "", [], None
            for c in (c for k in chunks for c in k["choices"] if c["index"] == choice["index"]):
                text += c["delta"].get("content") or ""
                logprobs += (c["logprobs"] or {}).get("content", [])
                reason = c["finish_reason"] or reason
            self.assertEqual(text, choice["message"]["content"])
            self.assertEqual(reason, choice["finish_reason"])
            self.assertEqual(logprobs, (choice["logprobs"] or {}).get("content", []))


class Keys(unittest.TestCase):
    def test_api_keys(self):
        with Server("--api-key", "one,two", env={"STARLING_API_KEY": "three"}) as server:
            for key, status in [(None, 401), ("", 401), ("on", 401), ("onee", 401), ("one", 200),
                                ("two", 200), ("three", 200), ("one,two", 401)]:
                headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                for method, path in [("GET", "/v1/models"), ("POST", V1_CHAT),
                                     ("POST", "/tokenize")]:
                    body = {**CHAT, "max_tokens": 1} if method == "POST" else None
                    if path == "/tokenize":
                        body = {"prompt": "x"}
                    got, _, data = server.request(method, path, body, headers)
                    self.assertEqual(got, status, (key, path))
                    if got == 401:
                        self.assertEqual(error_of(data)["type"], "authentication_error")
            for path in ("/health", "/metrics", "/version", "/ping"):
                self.assertEqual(server.request("GET", path)[0], 200)


class Limits(unittest.TestCase):
    def test_connections_beyond_the_limit_make_room(self):
        with Server("--max-connections", "8") as server:
            slow = [server.connect() for _ in range(8)]
            for s in slow:
                s.sendall(b"GET /he")
            wait_for(lambda: self.answers(server), 10, "a place for a new connection")
            for s in slow:
                s.close()

    def answers(self, server):
        try:
            return server.request("GET", "/health")[0] == 200
        except OSError:
            return False

    def test_full_queue(self):
        with Server("--max-waiting", "2", "--max-num-seqs", "1") as server:
            open_sockets = [server.stream(ENDLESS)[0]]
            data = json.dumps(ENDLESS).encode()
            for _ in range(11):
                s = server.connect()
                s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                          % (V1_CHAT.encode(), len(data)) + data)
                open_sockets.append(s)
            # Two wait; most of the others are refused before those are done.
            refused, left = b"200", open_sockets[1:]
            while b"200" in refused[:15] and left:
                s = select.select(left, [], [], 60 * PATIENCE)[0][0]
                left.remove(s)
                refused = s.recv(65536)
            head, _, body = refused.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 429 "), refused)
            self.assertIn(b"Retry-After: 1", head)
            self.assertEqual(error_of(body)["type"], "rate_limit_error")
            for s in open_sockets:
                s.close()
            wait_for(server.idle)

    def test_large_prompts_do_not_hold_up_others(self):
        """Texts that take seconds to tokenize, from clients that do not even wait for it."""
        words = "".join(random.Random(1).choices(string.ascii_lowercase, k=1 << 20))
        words *= 12 if PATIENCE == 1 else 4
        prompt = json.dumps({"prompt": words}).encode()
        with Server() as server:
            status, body = server.json("POST", V1_COMP, prompt)
            self.assertEqual((status, body["error"]["code"]), (400, "context_length_exceeded"))
            self.assertIn("more than 8192 tokens", body["error"]["message"])
            self.assertTrue(any(self.comes_before_large_ones(server, prompt) for _ in range(5)))

    def comes_before_large_ones(self, server, prompt):
        """False also when this process was away until all were answered."""
        sockets = [server.connect() for _ in range(4)]
        for s in sockets:
            s.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                      % len(prompt) + prompt)
        for s in sockets[2:]:
            s.close()
        self.assertEqual(server.json("POST", V1_CHAT, {**CHAT, "max_tokens": 2})[0], 200)
        answered = select.select([sockets[1]], [], [], 0)[0]
        for s in sockets[:2]:
            s.close()
        return not answered

    def test_slow_reader_is_cut(self):
        # Logprobs make an answer of megabytes that this client does not read.
        body = {"prompt": "The", "max_tokens": 1500, "ignore_eos": True, "stream": True, "n": 16,
                "logprobs": 20}
        with Server() as server:
            data = json.dumps(body).encode()
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", server.port))
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                      % len(data) + data)
            wait_for(lambda: server.metric("vllm:num_requests_running") > 0)
            wait_for(lambda: "reads too slowly" in server.stderr(), 60)
            wait_for(server.idle)
            s.close()


class Lifecycle(unittest.TestCase):
    def test_port_in_use(self):
        with Server() as server:
            p = subprocess.run([STARLING, "serve", "--host", "127.0.0.1", "--port",
                                str(server.port)], capture_output=True, text=True, timeout=60)
            self.assertEqual(p.returncode, 1)
            self.assertIn("in use", p.stderr)

    def test_bad_options(self):
        for args in (["--port", "70000"], ["--kv-cache-dtype", "int4"], ["--log-level", "x"],
                     ["--nonsense"], ["a", "b"]):
            p = subprocess.run([STARLING, "serve", *args], capture_output=True, text=True,
                               timeout=60)
            self.assertEqual(p.returncode, 2, p.stderr)
        p = subprocess.run([STARLING, "serve", "/nowhere", "--port", "0"], capture_output=True,
                           text=True, timeout=60)
        self.assertEqual(p.returncode, 1)
        self.assertIn("/nowhere", p.stderr)

    def test_unix_socket(self):
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "s")
            for _ in range(2):
                with Server(uds=path) as server:
                    self.assertEqual(server.json("POST", V1_CHAT, {**CHAT, "max_tokens": 1})[0],
                                     200)
                self.assertFalse(os.path.exists(path))
                stale = socket.socket(socket.AF_UNIX)
                stale.bind(path)
                stale.close()

    def test_drain_lets_streams_finish(self):
        with Server("--drain-timeout", "600") as server:
            # Goes on for as long as the rest takes.
            s, got = server.stream({**ENDLESS, "max_tokens": 600, "n": 8 if PATIENCE == 1 else 1})
            idle = server.connect()
            kept = server.connect()
            kept.sendall(b"GET /heal")
            wait_for(lambda: server.metric("starling:http_connections") >= 4)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(idle.recv(1), b"")  # nothing to wait for
            kept.sendall(b"th HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertIn(b"503", read_all(kept))
            with self.assertRaises(OSError):
                server.connect()
            got += read_all(s)
            self.assertEqual(events(got)[-1], b"[DONE]")
            self.assertEqual(json.loads(events(got)[-2])["choices"][0]["finish_reason"], "length")
            self.assertEqual(server.process.wait(60), 0)
            for c in (s, idle, kept):
                c.close()

    def ended_with_error(self, server, s, got):
        got += read_all(s)
        s.close()
        self.assertEqual(events(got)[-1], b"[DONE]")
        self.assertIn("shutting down", error_of(events(got)[-2])["message"])
        self.assertEqual(server.process.wait(60), 0)

    def test_drain_deadline_ends_the_rest(self):
        with Server("--drain-timeout", "0") as server:
            s, got = server.stream({**ENDLESS, "n": 8})
            whole = []
            t = threading.Thread(
                target=lambda: whole.append(server.request("POST", V1_CHAT, {**ENDLESS, "n": 8})))
            t.start()
            wait_for(lambda: server.metric("vllm:num_requests_running") == 16)
            server.process.send_signal(signal.SIGTERM)
            self.ended_with_error(server, s, got)
            t.join()
            self.assertEqual(whole[0][0], 503)

    def test_second_signal_ends_at_once(self):
        with Server("--drain-timeout", "600") as server:
            s, got = server.stream({**ENDLESS, "n": 8})
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            server.process.send_signal(signal.SIGINT)
            self.ended_with_error(server, s, got)


if __name__ == "__main__":
    unittest.main(verbosity=2)
