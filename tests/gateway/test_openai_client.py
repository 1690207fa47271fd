"""Starts the whole stack in each mode and runs the official OpenAI client's tests against it
(tests/js/gateway/openai_gateway.mjs)."""
import os
import subprocess

import gateway_harness as h
from gateway_harness import Engine
from test_real_engines import SMALL, cluster

SCRIPT = os.path.join(h.ROOT, "tests", "js", "gateway", "openai_gateway.mjs")


def run(handoff):
    with Engine(*SMALL) as alone, cluster(handoff) as (gw, _, _):
        r = subprocess.run([h.NODE, "--test", SCRIPT], capture_output=True, text=True, timeout=600,
                           check=False, env={**os.environ, "GATEWAY": f"http://127.0.0.1:{gw.port}",
                                             "DIRECT": f"http://127.0.0.1:{alone.port}"})
        assert r.returncode == 0, r.stdout[-8000:] + r.stderr[-2000:]


def test_sequential():
    run("sequential")


def test_parallel():
    run("parallel")


if __name__ == "__main__":
    h.main(globals())
