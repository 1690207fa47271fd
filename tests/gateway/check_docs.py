#!/usr/bin/python3
"""docs/gateway.md against the sources: every directive, parameter, variable, metric, phase and
member of the status page is in it, no metric or variable that does not exist, and each test it
names is there. Links of all pages lead somewhere."""
import glob
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
failures = []


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def source(name):
    return read(f"src/gateway/ngx_http_starling_{name}.c")


def between(text, begin, end="};"):
    at = text.index(begin)
    return text[at:text.index(end, at)]


def found(what, names):
    assert names, f"no {what} found in the sources: has their form changed?"
    return set(names)


MODULE, METRICS, STATUS = source("module"), source("metrics"), source("status")
DOC = read("docs/gateway.md")


def directives():
    table = between(MODULE, "ngx_http_starling_commands[] =")
    return found("directives", re.findall(r'(?:ngx_string|_IN_CLUSTER|_IN_POOL)\("(\w+)"', table))


def parameters():
    text = source("conf") + source("models") + source("pools")
    return found("parameters", re.findall(r'\{ "(\w+)", NGX_HTTP_STARLING_[A-Z]', text))


def variables():
    table = between(MODULE, "ngx_http_starling_vars[] =")
    return found("variables", re.findall(r'ngx_string\("(\w+)"\)', table)) | found(
        "phase variables",
        ["starling_phase_" + p for p in re.findall(r'_STARLING_PHASE\("(\w+)"', table)])


def metrics():
    tables = (("counters[]", "_total"), ("histograms[]", ""), ("engine_counters[]", "_total"),
              ("source_counters[]", "_total"), ("engine_gauges[", ""), ("  gauges[6] =", ""))
    names = {"starling_phase_seconds"}
    for table, suffix in tables:
        if table[0] != " ":
            table = "ngx_http_starling_" + table
        rows = re.findall(r'\{ "(\w+)",\s+"', between(METRICS, table))
        names |= {f"starling_{n}{suffix}" for n in found(f"metrics of {table}", rows)}
    count = len(re.findall(r'_metric_head\(', METRICS)) - 1
    assert count == 7, f"{count} places write metrics' heads, 7 are known here"
    return names


def status_members():
    quoted = re.findall(r'\\"(\w+)\\":', STATUS)
    texts = re.findall(r'json_text\(out, "(\w+)"', STATUS)
    return found("members of the status page", quoted + texts)


def phases():
    text = between(read("src/cluster/cluster_requests.c"), "st_phase_names[ST_PHASES] =")
    return found("phases", re.findall(r'"(\w+)"', text))


def complain(what, names):
    failures.extend(f"docs/gateway.md: {what} {n} is missing" for n in sorted(names))


def check_names():
    words = set(re.findall(r"\w+", DOC))
    complain("directive", {d for d in directives() if not re.search(rf"^\| `{d}\b", DOC, re.M)})
    complain("parameter", {p for p in parameters() if not re.search(rf"`{p}=", DOC)})
    complain("variable", {v for v in variables() if f"${v}`" not in DOC})
    complain("metric", {m for m in metrics() if f"`{m}`" not in DOC})
    complain("member of the status page", {
        m for m in status_members() if f"`{m}`" not in DOC and f'"{m}"' not in DOC})
    complain("phase", phases() - words)
    known = directives() | variables() | metrics()
    failures.extend(f"docs/gateway.md: there is no {n}"
                    for n in sorted(set(re.findall(r"\bstarling_\w+", DOC)) - known))


def check_tests():
    """`test_faults.test_breaker`, `test_route.no_death_spiral`"""
    named = re.findall(r"`(test_\w+)\.(\w+)`", DOC)
    assert len(named) > 30, "the table of pains names tests"
    for file, function in named:
        paths = glob.glob(f"{ROOT}/tests/*/{file}.py") + glob.glob(f"{ROOT}/tests/*/{file}.c")
        text = "".join(read(p) for p in paths)
        if not re.search(rf"^(def|static void) {function}\(", text, re.M):
            failures.append(f"docs/gateway.md: there is no test {file}.{function}")


def check_example():
    """deploy/nginx.conf shows each directive, set or commented out."""
    text = read("deploy/nginx.conf")
    failures.extend(f"deploy/nginx.conf: {d} is missing" for d in sorted(directives() - {"include"})
                    if not re.search(rf"^[\s#]*(?:.*[{{;]\s*)?{d}\b", text, re.M))
    failures.extend(f"deploy/nginx.conf: {p}= is missing" for p in sorted(parameters())
                    if f"{p}=" not in text)


def anchor(title):
    return re.sub(r"[^\w\- ]", "", title.lower().replace("`", "")).replace(" ", "-")


def check_links():
    pages = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split()
    for page in pages:
        text = re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, section = target.partition("#")
            path = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
            if not os.path.exists(os.path.join(ROOT, path)):
                failures.append(f"{page}: {target} leads nowhere")
            elif section and section not in map(anchor, re.findall(r"^#+ (.*)$", read(path), re.M)):
                failures.append(f"{page}: {target}: there is no such section")


check_names()
check_tests()
check_example()
check_links()
for line in failures:
    print(line)
print(f"{len(failures)} complaints")
sys.exit(bool(failures))
