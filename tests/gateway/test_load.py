"""`starling load` against stand-ins: what it counts is what was sent, and failures are told apart."""
import json
import subprocess

import gateway_harness as h
from gateway_harness import STARLING, StandIn


def load(url, *args, code=0):
    r = subprocess.run([STARLING, "load", "--url", url, "--json", *map(str, args)],
                       capture_output=True, text=True, timeout=120, check=False)
    assert r.returncode == code, (r.returncode, r.stdout, r.stderr)
    return json.loads(r.stdout)


def test_counts():
    with StandIn("vllm", natural=1000, vocab=2000, token_ms=2, first_token_ms=20) as v:
        got = load(f"http://{v.address}", "--requests", 60, "--concurrency", 7, "--ids", 2000,
                   "--prompt-tokens", 64, "--shared-tokens", 32, "--max-tokens", 20, "--ignore-eos",
                   "--model", "lexicon")
        state = v.state()
        assert got["ok"] == 60 and got["failed"] == 0, got
        assert got["output_tokens"] == 60 * 20 and got["prompt_tokens"] == 60 * 64, got
        assert got["cached_tokens"] == 59 * 32, got  # two blocks of 16, after the first request
        assert state["requests"] == 60 and state["most_running"] == 7, state
        assert state["connections"] == 7, "connections are kept"
        assert 20 <= got["ttft_ms"]["p50"] <= got["ttft_ms"]["max"], got
        # The mean: tokens that a busy machine delays come several at once.
        assert got["itl_ms"]["mean"] >= 1 and got["total_ms"]["p50"] >= 38, got
        chat = load(f"http://{v.address}/", "--requests", 3, "--prompt-tokens", 10)
        assert chat["ok"] == 3 and v.requests()[-1]["path"] == "/v1/chat/completions"
        paced = load(f"http://{v.address}", "--requests", 0, "--duration", 1, "--rate", 50,
                     "--max-tokens", 2)
        assert 5 < paced["ok"] < 100, paced


def test_failures():
    with StandIn("vllm", api_key="k") as v:
        url = f"http://{v.address}"
        args = ["--requests", 4, "--concurrency", 2]
        assert load(url, *args, code=1)["failures"] == {"401": 4}
        args += ["--api-key", "k"]
        for fault, name in (({"cut_after": 3}, "cut short"), ({"status": 503}, "503"),
                            ({"half_event": 2}, "cut short"), ({"garbage_head": 1}, "format"),
                            ({"garbage_event": 2}, "format"), ({"no_done": 1}, "format"),
                            ({"error_event": 2}, "error event"), ({"hang_after": 2}, "timeout")):
            v.fault(**fault)
            got = load(url, *args, "--timeout", 2 if name == "timeout" else 60, code=1)
            assert got["ok"] == 0 and got["failures"] == {name: 4} and got["first_error"], (fault, got)
        v.fault(close_before_head=1, times=1)
        got = load(url, *args, code=1)
        assert got["ok"] == 3 and got["failures"] == {"cut short": 1}, got
        v.fault(refuse=True)
        assert load(url, *args, code=1)["failures"] == {"connect": 4}
        v.fault()
        assert load(url, *args)["ok"] == 4


def test_usage():
    def complaint(*args):
        r = subprocess.run([STARLING, "load", *args], capture_output=True, text=True, check=False)
        assert r.returncode == 2 and not r.stdout, r
        return r.stderr
    assert "https" in complaint("--url", "https://x")
    assert "--duration" in complaint("--requests", "0")
    assert "--shared-tokens" in complaint("--shared-tokens", "300")
    assert "--concurrency" in complaint("--concurrency", "0")


if __name__ == "__main__":
    h.main(globals())
