#!/usr/bin/python3
"""starling bench --json prints rows with every field, and each figure is plausible."""
import csv
import io
import json
import os
import struct
import subprocess
import sys
import tempfile

out = subprocess.run([sys.argv[1], "bench", sys.argv[2], "--json", "--quick", "--no-kernels",
                      "--prompt", "32", "--generate", "2", "--depth", "0", "--batch", "4"],
                     capture_output=True, text=True, check=True)
rows = json.loads(out.stdout)
names = [r["name"] for r in rows]
for want in ("peak memory read", "active weights", "prompt", "generation"):
    assert want in names, f"no row named {want}: {names}"
for r in rows:
    assert set(r) == {"name", "shape", "value", "unit", "peak", "ratio"}, r
    assert r["value"] > 0 or r["unit"] == "%", r
    assert (r["peak"] is None) == (r["ratio"] is None), r
for part in ("prompt", "generation", "4 sequences"):
    shares = [r["value"] for r in rows if r["name"].startswith("time in ") and r["shape"] == part]
    assert abs(sum(shares) - 100) < 1e-3, f"shares of {part} do not add up: {shares}"
refused = subprocess.run([sys.argv[1], "bench", "--kv-cache-dtype", "int4"], capture_output=True,
                         text=True)
assert refused.returncode == 2 and "int4" in refused.stderr, refused

# The same as CSV, and the picture.
with tempfile.TemporaryDirectory() as folder:
    picture = os.path.join(folder, "speed.png")
    out = subprocess.run([sys.argv[1], "bench", sys.argv[2], "--csv", "--quick", "--no-kernels",
                          "--prompt", "8", "--generate", "1", "--depth", "0", "--batch", "2",
                          "--plot", picture], capture_output=True, text=True, check=True)
    table = list(csv.DictReader(io.StringIO(out.stdout)))
    with open(picture, "rb") as f:
        png = f.read()
assert {"name", "shape", "value", "unit", "peak", "ratio"} == set(table[0]), table[0]
speeds = [r for r in table if r["name"] == "generation"]
assert [r["shape"] for r in speeds] == ["1 sequence at depth 0", "2 sequences at depth 0"], speeds
assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", png[16:24]) == (1120, 380)
for options in (["--json", "--csv"], ["--plot", "x.png", "--no-model"]):
    refused = subprocess.run([sys.argv[1], "bench", *options], capture_output=True, text=True)
    assert refused.returncode == 2 and options[0] in refused.stderr, refused
print(f"{len(rows)} rows")
