#!/usr/bin/python3
"""The starling_cluster block as `nginx -t` sees it: what is right is taken, nonsense is refused with
file, line, and what was expected."""
import os
import re
import shutil
import subprocess
import tempfile

import gateway_harness as h

POOLS = """pool all { role both; engine 127.0.0.1:8101; }"""
MODEL = f"model lexicon tokenizer={h.LEXICON};"


def cluster(inside, name="main"):
    return f"starling_cluster {name} {{\n{inside}\n}}\n"


def config(http, location="", main=""):
    return f"""load_module {h.MODULE};
{main}
pid nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
access_log off;
client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
uwsgi_temp_path uwsgi; scgi_temp_path scgi;
#CLUSTERS
{http}
server {{
    listen unix:{{dir}}/s;
    {location}
}}
}}
"""


def nginx_t(text):
    """(exit code, what nginx says, the line of #CLUSTERS)"""
    folder = tempfile.mkdtemp(prefix="starling-conf-")
    try:
        with open(f"{folder}/keys", "w", encoding="utf-8") as f:
            f.write("# keys\nfirst\n\nsecond\r\n")
        with open(f"{folder}/nokeys", "w", encoding="utf-8") as f:
            f.write("# none\n")
        with open(f"{folder}/engines.conf", "w", encoding="utf-8") as f:
            f.write("engine 127.0.0.1:8101;\nengine [::1]:8101;\n")
        os.mkdir(f"{folder}/empty")
        with open(f"{folder}/nginx.conf", "w", encoding="utf-8") as f:
            f.write(text.replace("{dir}", folder))
        env = dict(os.environ)
        if h.SANITIZED:
            # nginx itself leaks its configuration when it fails or only tests it
            env.update(LD_PRELOAD=h.asan_runtime(), ASAN_OPTIONS="detect_leaks=0")
        r = subprocess.run([h.NGINX, "-t", "-p", folder, "-c", "nginx.conf", "-e", "stderr"],
                           capture_output=True, text=True, timeout=60, env=env)
        line = text[:text.index("#CLUSTERS")].count("\n") + 2
        return r.returncode, r.stderr, line
    finally:
        shutil.rmtree(folder)


def refused(http, at, *expected, location="", main=""):
    """at: the line, counted from 0 at the first of http."""
    code, said, first = nginx_t(config(http, location, main))
    assert code == 1, f"taken, though it is wrong:\n{http}\n{said}"
    assert "Sanitizer" not in said and "runtime error" not in said, said
    emerg = [line for line in said.splitlines() if "[emerg]" in line]
    for text in expected:
        assert any(text in line for line in emerg), f"{text!r} is not in {said}"
    where = re.search(r"nginx\.conf:(\d+)", emerg[0])
    assert where, f"no file and line: {said}"
    assert int(where[1]) == first + at, f"line {where[1]}, expected {first + at}: {said}"


def taken(http, location="", main=""):
    code, said, _ = nginx_t(config(http, location, main))
    assert code == 0, said
    assert "Sanitizer" not in said and "runtime error" not in said, said
    assert "[warn]" not in said, said


def in_cluster(line, *expected):
    """One wrong line in an otherwise right cluster."""
    refused(cluster(f"{MODEL}\n{POOLS}\n{line}"), 3, *expected)


def in_pool(engine, *expected, kind="starling", more=""):
    refused(cluster(f"{MODEL}\n{more}\npool p {{\nrole both; kind {kind};\n{engine}\n}}"), 5, *expected)


def test_taken():
    taken(cluster(f"{MODEL}\n{POOLS}"), "location /v1/ { starling main; }")
    taken(cluster(f"""
        zone 64m; handoff parallel; queue size=10 timeout=1s in_flight=100; retries 0;
        connect_timeout 100ms; first_token_timeout 5m; answer_timeout 15m; read_timeout 60s; send_timeout 30s;
        health interval=2s timeout=1s failures=3; breaker failures=3 pause=500ms max_pause=30s;
        policy skip_prefill=256 match_weight=0.5 order_length=0.8 starvation=5s kv_high_water=0.9;
        keepalive 0; max_body 32m; body_memory 0; thread_body 0; token_cache 0;
        api_key one; api_key file=keys; rate requests=0.5 burst=3;
        model lexicon tokenizer={h.LEXICON} upstream=lex max_len=1000 alias=a alias=b;
        model other;
        pool p {{ role prefill; kind starling;
                  engine 127.0.0.1:8101 models=lexicon max_requests=3 max_prefill_tokens=10000
                         events=off; }}
        pool d {{ role decode; engine unix:/run/starling.sock models=lexicon; engine [::1]:8101
                         api_key=K events=tcp://[::1]:5557 replay=tcp://[::1]:5558; }}
        pool o {{ role both; kind vllm;
                  engine localhost:8000 models=other dp=2 events=auto block_size=32; }}"""),
          "location /v1/ { starling main; }\nlocation /starling/ { starling_status; }\n"
          "location /open/ { starling_status public; }")
    taken(cluster(f"{MODEL}\npool p {{ role both; include engines.conf; }}"))


def test_several_clusters():
    taken(cluster(f"{MODEL}\n{POOLS}") + cluster(f"model m2; {POOLS}", "second"),
          "location /a/ { starling main; }\nlocation /b/ { starling second; }")
    refused(cluster(f"{MODEL}\n{POOLS}") + cluster(f"{MODEL}\n{POOLS}"), 4,
            'there is a starling_cluster "main" already')


def test_thread_pool():
    taken(cluster(f"{MODEL}\n{POOLS}"), main="thread_pool starling threads=1;")
    taken(cluster(f"{MODEL}\n{POOLS}") + cluster(f"{MODEL}\n{POOLS}", "second"))


def test_locations():
    good = cluster(f"{MODEL}\n{POOLS}")
    lines = good.count("\n") + 3
    for location, text in [
            ("location / { starling nobody; }", 'no starling_cluster "nobody" above'),
            ("location / { starling main; starling main; }", "is duplicate"),
            ("location / { starling main; starling_status; }", "cannot share a location"),
            ("location / { starling_status; starling main; }", "cannot share a location"),
            ("location / { starling_status open; }", 'expected nothing or "public"'),
            ("location / { starling; }", "invalid number of arguments"),
            ("starling main;", "not allowed here")]:
        refused(good, lines, text, location=location)


def test_values():
    for line, text in [
            ("zone 64q;", 'expected a size ("64m") from 1048576 to'),
            ("zone 1k;", "expected a size"),
            ("zone 1m; zone 1m;", "is duplicate"),
            ("handoff both;", 'expected "sequential" or "parallel"'),
            ("queue 5;", 'unknown parameter "5"; expected size=, timeout=, in_flight='),
            ("queue size=0;", "expected an integer from 1 to 65536"),
            ("queue size=-1;", "expected an integer"),
            ("queue size=1.5;", "expected an integer"),
            ("queue size=1e3;", "expected an integer"),
            ("queue size=;", "expected an integer"),
            ("queue size=1 size=2;", '"size=" stands there twice'),
            ("queue timeout=soon;", 'expected a time ("30s") from 1ms to'),
            ("retries many;", '"retries": "many": expected an integer from 0 to 100'),
            ("connect_timeout 0;", '"connect_timeout": "0": expected a time'),
            ("first_token_timeout x;", "expected a time"),
            ("answer_timeout 0;", '"answer_timeout": "0": expected a time'),
            ("read_timeout 1y2;", "expected a time"),
            ("send_timeout -1s;", "expected a time"),
            ("health interval=1ms;", "from 10ms to"),
            ("health every=1s;", "expected interval=, timeout=, failures="),
            ("breaker failures=0;", "from 1 to 1000"),
            ("breaker pause=1m max_pause=1s;", "pause, 60000ms, is longer than max_pause, 1000ms"),
            ("policy match_weight=2;", "expected a number from 0 to 1"),
            ("policy match_weight=nan;", "expected a number"),
            ("policy kv_high_water=0;", "from 0.01 to 1"),
            ("policy starvation=never;", "expected a time"),
            ("policy order=1;", 'unknown parameter "order=1"'),
            ("keepalive -1;", "expected an integer from 0"),
            ("max_body 1;", "expected a size"),
            ("max_body 99g;", "expected a size"),
            ("body_memory -1;", "expected a size"),
            ("thread_body x;", "expected a size"),
            ("token_cache 1.5m;", "expected a size"),
            ("rate burst=3;", '"requests=" is missing'),
            ("rate requests=0;", "from 0.001"),
            ("api_key file=missing;", "missing\" cannot be opened"),
            ("api_key file=nokeys;", "holds no key"),
            ("api_key \"a b\";", "printable ASCII"),
            ("api_key \"\";", "a key of 0 bytes"),
            ("role both;", "not allowed here"),
            ("nonsense 1;", "unknown directive"),
            ("zone;", "invalid number of arguments"),
            ("pool all { role both; engine 127.0.0.1:1; }", 'there is a pool "all" already'),
            ("pool empty { role both; }", 'pool "empty" has no engine')]:
        in_cluster(line, text)


def test_models():
    for model, text in [
            ("model a; model a;", 'there is a model "a" already'),
            ("model a alias=b alias=a;", 'there is a model "a" already'),
            ("model a alias=b; model b;", 'there is a model "b" already'),
            ("model a tokenizer=nowhere;", "tokenizer of model \"a\" cannot be loaded"),
            ("model a tokenizer=empty;", "tokenizer.json"),
            ("model a tokenizer=;", "a value is missing"),
            ("model a max_len=0;", "expected an integer from 1"),
            ("model a max=3;", "expected tokenizer=, upstream=, max_len=, alias="),
            ('model "";', "a name of 0 bytes")]:
        refused(cluster(f"{model}\n{POOLS}"), 1, text)


def test_engines():
    for engine, text in [
            ("engine 127.0.0.1;", "no port; expected HOST:PORT, [IPv6]:PORT or unix:PATH"),
            ("engine http://127.0.0.1:8000;", "no scheme"),
            ("engine 127.0.0.1:99999;", "invalid port"),
            ("engine 127.0.0.1:0;", "invalid port"),
            ("engine nosuchhost.invalid:80;", "host not found"),
            ("engine unix:;", "no path in the unix domain socket"),
            ("engine [::1;", "expected HOST:PORT"),
            ('engine "";', "an address of 0 bytes"),
            ("engine 127.0.0.1:1; engine 127.0.0.1:1;", "there is an engine"),
            ("engine 127.0.0.1:1 models=nobody;", 'there is no model "nobody" above this line'),
            ("engine 127.0.0.1:1 models=lexicon,;", 'there is no model ""'),
            ("engine 127.0.0.1:1 max_requests=0;", "from 1 to 1000000"),
            ("engine 127.0.0.1:1 dp=0;", "from 1 to 256"),
            ("engine 127.0.0.1:1 events=yes;", "expected auto, off, tcp://HOST:PORT or ipc://PATH"),
            ("engine 127.0.0.1:1 events=tcp://x;", "expected auto, off"),
            ("engine 127.0.0.1:1 events=tcp://:5;", "expected auto, off"),
            ("engine 127.0.0.1:1 events=tcp://x:0;", "expected auto, off"),
            ("engine 127.0.0.1:1 events=off replay=tcp://x:1;", 'without "events="'),
            ("engine 127.0.0.1:1 replay=tcp://x:1;", 'with "events=auto"'),
            ("engine 127.0.0.1:1 events=tcp://x:1 replay=x;", "expected tcp://HOST:PORT"),
            ("engine 127.0.0.1:1 bootstrap_port=0;", "from 1 to 65535"),
            ("engine 127.0.0.1:1 weight=5;", "unknown parameter"),
            ("engine 127.0.0.1:1; role decode;", "must stand above the pool's engines"),
            ("role decode;", "is duplicate")]:
        in_pool(engine, text)
    in_pool("engine unix:/run/x events=auto;", "with a unix socket: expected tcp://", kind="vllm")
    refused(cluster(f"{MODEL}\npool p {{\nengine 127.0.0.1:1;\n}}"), 3, 'has no "role" above its engines')
    refused(cluster(f"{MODEL}\npool p {{\nrole all;\n}}"), 3,
            'expected "prefill", "decode" or "both"')
    refused(cluster(f"{MODEL}\npool p {{\nrole both; kind ours;\n}}"), 3,
            'expected "starling", "vllm" or "sglang"')


def test_the_whole():
    """What only the end of the block can tell stands at its last line."""
    def whole(inside, *text):
        refused(cluster(inside), inside.count("\n") + 2, *text)
    whole(POOLS, 'has no model')
    whole(MODEL, 'has no pool')
    whole(f"{MODEL}\nmodel other;\npool p {{ role both; engine 127.0.0.1:1 models=lexicon; }}",
          'no engine serves model "other"')
    whole(f"{MODEL}\npool p {{ role prefill; engine 127.0.0.1:1; }}", "has prefill engines only")
    whole(f"{MODEL}\npool p {{ role prefill; kind vllm; engine 127.0.0.1:1; }}\n"
          "pool d { role decode; engine 127.0.0.1:2; }", "cannot hand its KV to each other")
    whole(f"{MODEL}\npool p {{ role prefill; kind sglang; engine 127.0.0.1:1; }}\n"
          "pool d { role decode; kind sglang; engine 127.0.0.1:2; }", "SGLang hands over in parallel")
    whole(f"{MODEL}\n{POOLS}\nzone 1m; queue size=65536 in_flight=1000000;",
          "too small for its queue and index; expected at least")
    whole(f"{MODEL}\npool p {{ role both; kind vllm; engine 127.0.0.1:1 dp=256; "
          "engine 127.0.0.1:2; }", "257 data-parallel ranks; expected at most 256")
    many = "\n".join(f"engine 127.0.0.1:{i};" for i in range(1, 258))
    refused(cluster(f"{MODEL}\npool p {{ role both;\n{many}\n}}"), 259, "more than 256 engines")
    many = "\n".join(f"model m{i};" for i in range(65))
    refused(cluster(f"{many}\n{POOLS}"), 65, "more than 64 models")


def test_large_cluster():
    engines = "\n".join(f"engine 127.0.0.1:{i};" for i in range(1, 257))
    taken(cluster(f"{MODEL}\npool p {{ role both;\n{engines}\n}}"))


if __name__ == "__main__":
    h.main(globals())
