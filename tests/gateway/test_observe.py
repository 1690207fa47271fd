"""What the gateway tells of requests: the access log's variables, the metrics' text, what is counted
once and what is counted at all, for one engine and for two, in sequence and at once."""
import contextlib
import os
import re
import tempfile

import gateway_harness as h
from gateway_harness import CHAT, Gateway, StandIn, chat_ids, wait_for

PHASES = ["tokenized", "matched", "prefill_waiting", "prefill_scheduled", "prefill_running",
          "decode_waiting", "decode_scheduled", "decode_running", "done"]
FIELDS = [f"phase_{p}" for p in PHASES] + [
    "prefill", "decode", "prompt_tokens", "matched_tokens", "generated_tokens", "model",
    "request_id", "handoff"]
FORM = ("log_format all '$request_uri|$status|$request_time|"
        + "|".join(f"$starling_{f}" for f in FIELDS) + "';")


@contextlib.contextmanager
def cluster(mode, **options):
    """mode: one, sequential or parallel. Yields the gateway, its prefill and its decode engine
    (one: the same) and a function that waits for n lines of its log."""
    connector = {"one": "nixl", "sequential": "nixl", "parallel": "mooncake"}[mode]
    with contextlib.ExitStack() as stack:
        roles = ["both"] if mode == "one" else ["prefill", "decode"]
        engines = [stack.enter_context(StandIn("vllm", role=r, connector=connector, **options))
                   for r in roles]
        lines = [e.address for e in engines]
        if mode == "parallel":
            lines[0] += f" bootstrap_port={engines[0].ports['bootstrap']}"
        log = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "requests.log")
        gw = stack.enter_context(Gateway(
            [(r, r, "vllm", [line]) for r, line in zip(roles, lines)],
            "policy skip_prefill=0;\n" + ("" if mode == "one" else f"handoff {mode};"),
            http=FORM, server=f"access_log {log} all;"))
        gw.ready()

        def read(n):
            def found():
                with contextlib.suppress(FileNotFoundError), open(log, encoding="utf-8") as f:
                    got = [x.split("|") for x in f.read().splitlines() if x.startswith("/v1/")]
                    return got if len(got) >= n else None
                return None
            names = ["uri", "status", "time", *FIELDS]
            return [dict(zip(names, x)) for x in wait_for(found, 5, f"{n} lines in the log")]
        yield gw, engines[0], engines[-1], read
        gw.check_idle(*engines)


def test_log_variables():
    """Each has a sensible value, and the phases' times add up to the request's."""
    for mode in ("one", "sequential", "parallel"):
        with cluster(mode, token_ms=4, first_token_ms=60) as (gw, p, d, read):
            for n in range(1, 10):
                gw.chat({**CHAT, "max_tokens": 9}).check_whole()
                asked = read(n)[-1]
                # Streamed: the tokens after the first come in the last phase. Where a busy machine
                # delayed the first they came with it: another one, then.
                if float(asked["phase_done"]) >= 0.02 and float(asked["phase_prefill_waiting"]) < 0.05:
                    break
            else:
                raise AssertionError(f"{mode}: the phases of nine requests do not fit: {asked}")
            gw.request("POST", "/v1/chat/completions", {**CHAT, "max_tokens": 9})
            whole = read(n + 1)[-1]
            gw.request("POST", "/v1/chat/completions", "{")
            refused = read(n + 2)[-1]
            gw.request("GET", "/v1/models")
            other = read(n + 3)[-1]
            for got in (asked, whole):
                assert got["status"] == "200" and got["model"] == "lexicon", got
                assert re.fullmatch("[0-9a-f]{16}", got["request_id"]), got
                assert got["handoff"] == ("none" if mode == "one" else mode), got
                assert got["decode"] == d.address, got
                assert got["prefill"] == ("-" if mode == "one" else p.address), got
                assert int(got["prompt_tokens"]) == len(chat_ids(CHAT["messages"])), got
                assert int(got["generated_tokens"]) == 9, got
                assert 0 <= int(got["matched_tokens"]) <= int(got["prompt_tokens"]), got
                times = [float(got[f"phase_{p}"]) for p in PHASES]
                assert all(re.fullmatch(r"\d+\.\d{6}", got[f"phase_{p}"]) for p in PHASES), got
                assert abs(sum(times) - float(got["time"])) < 0.1 * h.PATIENCE, (mode, times, got)
                assert sum(times[5:8]) >= 0.05, got
            assert asked["request_id"] != whole["request_id"]
            assert refused["status"] == "400" and refused["prefill"] == refused["decode"] == "-"
            assert refused["phase_done"] != "-" and refused["phase_decode_running"] == "-", refused
            assert other["status"] == "200" and all(other[f] == "-" for f in FIELDS), other


def check_exposition(text):
    """Prometheus' text format, as strictly as its parsers read it: {name{labels}: value}."""
    assert text.endswith("\n")
    label = r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*"'
    sample = re.compile(rf"([a-zA-Z_:][\w:]*)(?:\{{({label}(?:,{label})*)\}})? "
                        r"([-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|Inf|NaN))")
    types, helped, samples, last = {}, set(), {}, None
    for line in text.splitlines():
        if found := re.fullmatch(r"# HELP (\S+) \S.*", line):
            assert found[1] not in helped, line
            helped.add(found[1])
        elif found := re.fullmatch(r"# TYPE (\S+) (counter|gauge|histogram)", line):
            assert found[1] not in types and found[1] in helped, line
            types[found[1]] = found[2]
            last = found[1]
        else:
            found = sample.fullmatch(line)
            assert found, f"no sample: {line!r}"
            name = found[1]
            if types[last] == "histogram":
                name = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name == last, f"{line}: among the samples of {last}"
            key = f"{found[1]}{{{found[2] or ''}}}"
            assert key not in samples, f"{key} twice"
            samples[key] = float(found[3])
    for name, kind in types.items():
        if kind == "counter":
            assert name.endswith("_total"), name
        if kind != "histogram":
            continue
        for key in [k for k in samples if k.startswith(f"{name}_count{{")]:
            labels = key[len(name) + 7:-1]
            buckets = [(float(m[1]), v) for k, v in samples.items()
                       if (m := re.fullmatch(re.escape(f"{name}_bucket{{{labels},le=") + r'"(.*)"\}', k))]
            assert buckets == sorted(buckets) and len(buckets) > 5, (key, buckets)
            values = [v for _, v in buckets]
            assert values == sorted(values) and buckets[-1] == (float("inf"), samples[key]), key
            assert f"{name}_sum{{{labels}}}" in samples, key
    return samples


def test_metrics_text():
    with cluster("sequential") as (gw, _, _, _):
        gw.chat(CHAT).check_whole()
        gw.check_idle()
        _, headers, data = gw.request("GET", "/starling/metrics")
        assert headers["content-type"].startswith("text/plain; version=0.0.4"), headers
        samples = check_exposition(data.decode())
        assert len(samples) > 200
        for phase in PHASES:
            assert f'starling_phase_seconds_count{{cluster="main",phase="{phase}"}}' in samples


def test_counted_once():
    """n requests: n in each histogram of a phase, n in the whole's, n sent to each engine."""
    for mode in ("one", "sequential", "parallel"):
        with cluster(mode) as (gw, p, d, _):
            n = 10
            h.in_threads([lambda: gw.chat({**CHAT, "max_tokens": 3}).check_whole()] * n)
            gw.check_idle()
            m = check_exposition(gw.request("GET", "/starling/metrics")[2].decode())
            for phase in PHASES:
                got = m[f'starling_phase_seconds_count{{cluster="main",phase="{phase}"}}']
                assert got == n, f"{mode}: {got} times {phase}"
            for name in ("request_seconds_count", "time_to_first_token_seconds_count",
                         "requests_total", "requests_ok_total"):
                assert m[f'starling_{name}{{cluster="main"}}'] == n, (mode, name)
            assert m['starling_decision_seconds_count{cluster="main"}'] >= n
            for e in {p, d}:
                sent = [v for k, v in m.items() if k.startswith("starling_engine_requests_total{")
                        and f'"{e.address}"' in k]
                assert sent == [n] == [e.state()["requests"]], (mode, sent)


def test_retries_are_counted():
    """A request that was tried twice is two at engines and one in the gateway."""
    with StandIn("vllm") as a, StandIn("vllm") as b, Gateway(
            [("all", "both", "vllm", [a.address, b.address])], "breaker failures=100;") as gw:
        gw.ready()
        for e in (a, b):
            e.fault(status=500, times=1)
        h.in_threads([lambda: gw.chat(CHAT).check_whole()] * 8)
        gw.check_idle(a, b)
        tried = a.state()["requests"] + b.state()["requests"]
        assert gw.metric("starling_engine_requests_total") == tried >= 8
        assert gw.metric("starling_retries_total") == tried - 8
        assert gw.metrics()['starling_phase_seconds_count{cluster="main",phase="done"}'] == 8


def test_names_travel_at_once():
    """Both legs of a parallel request have the same names, the client's or made ones."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with cluster("parallel") as (gw, p, d, _):
        for sent in ({"X-Request-Id": "r.1", "traceparent": trace, "tracestate": "v=1"}, {}):
            s = gw.chat(CHAT, headers=sent)
            s.check_whole()
            one, two = [{k: e.requests()[-1]["headers"].get(k) for k in
                         ("x-request-id", "traceparent", "tracestate")} for e in (p, d)]
            assert one == two and one["x-request-id"] == s.headers["x-request-id"], (one, two)
            for name, value in sent.items():
                assert one[name.lower()] == value, one
            assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", one["traceparent"]), one
            assert sent or one["tracestate"] is None, one


if __name__ == "__main__":
    h.main(globals())
