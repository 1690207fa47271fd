#!/usr/bin/python3
"""starling bench --json prints rows with every field, and each figure is plausible."""
import json
import subprocess
import sys

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
for part in ("prompt", "generation"):
    shares = [r["value"] for r in rows if r["name"].startswith("time in ") and r["shape"] == part]
    assert abs(sum(shares) - 100) < 1e-3, f"shares of {part} do not add up: {shares}"
refused = subprocess.run([sys.argv[1], "bench", "--kv-cache-dtype", "int4"], capture_output=True,
                         text=True)
assert refused.returncode == 2 and "int4" in refused.stderr, refused
print(f"{len(rows)} rows")
