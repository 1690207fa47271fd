#!/usr/bin/python3
"""A race with llama.cpp on the same random weights: prompt processing and generation, one stream.

    llama_bench.py [--preset ds2-1.5b] [--rounds 5] [--threads 2] [--prompt 512] [--generate 64]
                   [--starling build/starling] [--cache DIR] [--json]

llama.cpp (npm package of tests/js, its own defaults: weights repacked for the CPU, F16 KV, flash
attention where it wants it) runs the checkpoint as Q8_0 GGUF, Starling runs it as published W8A8
INT8. Both read about the same bytes a token. The two take turns, one measurement each per round,
so that a slow minute of the machine hits both; medians, and the ratio of medians (above 1:
Starling is faster) with its spread over the rounds. Checkpoints are made once and kept in --cache
(3.4 GB for ds2-1.5b).
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..'))
sys.path[:0] = [os.path.join(ROOT, *path) for path in
                (('tests', 'oracle'), ('tests', 'oracle', 'llama'), ('tools',))]

import gguf  # noqa: E402
import libllama  # noqa: E402
import make_checkpoint  # noqa: E402

FLASH_AUTO = -1


def prepare(cache, preset):
    """Returns (W8A8 folder, Q8_0 file), made when missing."""
    folder = os.path.join(cache, preset + '-w8a8')
    path = os.path.join(cache, preset + '-q8_0.gguf')
    if not os.path.exists(os.path.join(folder, 'config.json')):
        print(f'making {folder}', file=sys.stderr)
        make_checkpoint.make(folder, preset, 'W8A8',
                             tokenizer=os.path.join(ROOT, 'models', 'lexicon', 'int8'))
    if not os.path.exists(path):
        print(f'making {path}', file=sys.stderr)
        gguf.convert(folder, path + '.part', gguf.GGML_Q8_0)
        os.replace(path + '.part', path)
    return folder, path


class LlamaSide:
    def __init__(self, package, path, args):
        llama = libllama.Llama(package)
        self.version = llama.lib.llama_version().decode()
        self.args = args
        n_ctx = max(args.prompt, args.generate)
        self.session = libllama.Session(llama, path, n_ctx, args.threads, libllama.GGML_F16,
                                        FLASH_AUTO)
        self.tokens = [i * 7919 % self.session.n_vocab for i in range(n_ctx)]
        self.measure()  # touches every page once

    def timed(self, tokens, position):
        start = time.perf_counter()
        self.session.decode(tokens, position, False)
        return time.perf_counter() - start

    def measure(self):
        """tokens/s, of medians, as `starling bench` has them: of three prompts; of the steps of a
        generation from an empty context."""
        n, prompts, steps = self.args.prompt, [], []
        for _ in range(3):
            self.session.clear()
            prompts.append(self.timed(self.tokens[:n], 0))
        self.session.clear()
        for i in range(self.args.generate):
            steps.append(self.timed(self.tokens[i:i + 1], i))
        return {'prompt': n / statistics.median(prompts),
                'generation': 1 / statistics.median(steps)}


class StarlingSide:
    def __init__(self, binary, folder, args):
        self.command = [binary, 'bench', folder, '--json', '--no-kernels', '--threads',
                        str(args.threads), '--prompt', str(args.prompt), '--generate',
                        str(args.generate), '--depth', '0', '--batch', '1']

    def measure(self):
        r = subprocess.run(self.command, capture_output=True, text=True)
        if r.returncode:
            sys.exit(f'{" ".join(self.command)}: exit {r.returncode}: {r.stderr.strip()}')
        rows = {row['name']: row['value'] for row in json.loads(r.stdout)}
        return {name: rows[name] for name in ('prompt', 'generation')}


def report(rounds, args):
    """rounds: {side: [{prompt, generation}, …]} -> printed rows"""
    rows = []
    for name, n in (('prompt', args.prompt), ('generation', args.generate)):
        row = {'name': name, 'tokens': n, 'unit': 'tokens/s'}
        for side, measured in rounds.items():
            values = [m[name] for m in measured]
            row[side] = statistics.median(values)
            row[side + '_min'], row[side + '_max'] = min(values), max(values)
        if 'starling' in rounds:
            row['ratio'] = row['starling'] / row['llama.cpp']
            ratios = [s[name] / t[name] for s, t in zip(rounds['starling'], rounds['llama.cpp'])]
            row['ratio_min'], row['ratio_max'] = min(ratios), max(ratios)
        rows.append(row)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        text = f'{row["name"]:10} {row["tokens"]:4} tokens'
        for side in rounds:
            text += (f'   {side} {row[side]:8.1f} tokens/s '
                     f'[{row[side + "_min"]:.1f} .. {row[side + "_max"]:.1f}]')
        if 'ratio' in row:
            text += (f'   ratio {row["ratio"]:.2f} '
                     f'[{row["ratio_min"]:.2f} .. {row["ratio_max"]:.2f}]')
        print(text)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('--preset', default='ds2-1.5b', choices=sorted(make_checkpoint.PRESETS))
    ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--threads', type=int, default=2)
    ap.add_argument('--prompt', type=int, default=512)
    ap.add_argument('--generate', type=int, default=64)
    ap.add_argument('--starling', default=os.path.join(ROOT, 'build', 'starling'))
    ap.add_argument('--llama-only', action='store_true', help='measure llama.cpp alone')
    ap.add_argument('--package', default=libllama.PACKAGE, help='the npm package @node-llama-cpp')
    ap.add_argument('--cache', default=os.path.join(os.path.expanduser('~'), '.cache', 'starling',
                                                    'bench'))
    ap.add_argument('--json', action='store_true')
    args = ap.parse_args()
    folder, path = prepare(args.cache, args.preset)
    sides = {'llama.cpp': LlamaSide(args.package, path, args)}
    if not args.llama_only:
        sides['starling'] = StarlingSide(args.starling, folder, args)
    print(f'{args.preset}, {args.threads} threads, {args.rounds} rounds, '
          f'llama.cpp {sides["llama.cpp"].version}', file=sys.stderr)
    rounds = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            rounds[name].append(side.measure())
    report(rounds, args)
    return 0


if __name__ == '__main__':
    sys.exit(main())
