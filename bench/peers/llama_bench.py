#!/usr/bin/python3
"""A race with llama.cpp on the same random weights: prompt, generation at depth and batched.

    llama_bench.py [--preset ds2-1.5b] [--quant int8|int4] [--rounds 5] [--threads 2]
                   [--prompt 512] [--generate 32] [--depth 8192] [--batch 16]
                   [--kv-cache-dtype bf16|int8] [--starling build/starling] [--cache DIR] [--json]

llama.cpp (npm package of tests/js, its own defaults: weights repacked for the CPU, flash attention
where it wants it) runs the checkpoint as GGUF, Q8_0 or Q4_0; Starling runs it as published, W8A8
INT8 or INT4 in groups of 128. KV is F16 there and BF16 here, or Q8_0 and INT8.
Q4_0 has every matrix at four bits, the head and the embedding among them (quantized with its own
tool llama.cpp would keep the head at six), and so has the INT4 checkpoint all but the embedding,
of which a token reads one row; beside Q8_0 the INT8 checkpoint has its head in BF16 and all linear
layers, kv_a_proj and kv_b_proj too, in INT8.
The two take turns, one measurement each per round, so that a slow minute of the machine hits both;
medians, and the ratio of medians (above 1: Starling is faster) with its spread over the rounds.
Checkpoints are made once and kept in --cache (3.4 GB for ds2-1.5b in INT8).
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
# --kv-cache-dtype -> llama.cpp's
KV_TYPES = {'bf16': libllama.GGML_F16, 'int8': libllama.GGML_Q8_0}
# --quant -> dtype for make_checkpoint, type for gguf
QUANTS = {'int8': ('W8A8', 'Q8_0'), 'int4': ('W4A16-all', 'Q4_0')}


def prepare(cache, preset, quant):
    """Returns (checkpoint folder, GGUF file), made when missing."""
    ggml = QUANTS[quant][1]
    path = os.path.join(cache, f'{preset}-{ggml.lower()}.gguf')
    folders = {q: os.path.join(cache, f'{preset}-{q}-linear') for q in QUANTS}
    for q in {quant, 'int8'}:  # GGUF is made of INT8
        d = folders[q]
        if not os.path.exists(os.path.join(d, 'config.json')):
            print(f'making {d}', file=sys.stderr)
            make_checkpoint.make(d, preset, QUANTS[q][0], quantize_kv_a=True, quantize_kv_b=True,
                                 tokenizer=os.path.join(ROOT, 'models', 'lexicon', 'int8'))
    if not os.path.exists(path):
        print(f'making {path}', file=sys.stderr)
        gguf.convert(folders['int8'], path + '.part', gguf.TYPES[ggml])
        os.replace(path + '.part', path)
    return folders[quant], path


def median_seconds(calls):
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class LlamaSide:
    def __init__(self, package, path, args):
        llama = libllama.Llama(package)
        self.version = llama.lib.llama_version().decode()
        self.args = args

        def session(positions, sequences=1, share=None):
            return libllama.Session(llama, path, positions, args.threads, KV_TYPES[args.kv_cache_dtype],
                                    FLASH_AUTO, sequences, share)
        self.one = session(max(args.prompt, args.generate))
        self.deep = session(args.depth + args.generate, 1, self.one) if args.depth else None
        self.many = session(256 * args.batch, args.batch, self.one) if args.batch > 1 else None
        self.tokens = [i * 7919 % self.one.n_vocab for i in range(max(args.prompt, args.depth, 512))]
        self.measure_short()  # touches every page once
        for at in range(0, args.depth, 512):
            print(f'\rllama.cpp: context {at} of {args.depth}', end='', file=sys.stderr)
            self.deep.decode(self.tokens[at:min(at + 512, args.depth)], at, False)
        print(file=sys.stderr)

    def generate(self, session, position):
        return 1 / median_seconds(
            lambda i=i: session.decode(self.tokens[i:i + 1], position + i, False)
            for i in range(self.args.generate))

    def measure_short(self):
        n, one = self.args.prompt, self.one

        def prompt():
            one.decode(self.tokens[:n], 0, False)
        times = []
        for _ in range(3):
            one.clear()
            times.append(median_seconds([prompt]))
        one.clear()
        return {'prompt': n / statistics.median(times), 'generation': self.generate(one, 0)}

    def measure(self):
        """tokens/s, of medians, as `starling bench` has them: of three prompts; of the steps of a
        generation from an empty context, at depth, and of several sequences from empty ones."""
        result = self.measure_short()
        if self.args.depth:
            result['generation at depth'] = self.generate(self.deep, self.args.depth)
            self.deep.forget(self.args.depth)
        if self.many:
            self.many.clear()
            n = self.args.batch
            result['generation batched'] = n / median_seconds(
                lambda i=i: self.many.step(self.tokens[i:i + n], i)
                for i in range(self.args.generate))
        return result


class StarlingSide:
    def __init__(self, binary, folder, args):
        self.args = args
        self.command = [binary, 'bench', folder, '--json', '--no-kernels', '--threads',
                        str(args.threads), '--prompt', str(args.prompt), '--generate',
                        str(args.generate), '--depth', str(args.depth), '--batch',
                        str(args.batch), '--kv-cache-dtype', args.kv_cache_dtype]

    def measure(self):
        r = subprocess.run(self.command, capture_output=True, text=True)
        if r.returncode:
            sys.exit(f'{" ".join(self.command)}: exit {r.returncode}: {r.stderr.strip()}')
        rows = {(row['name'], row['shape']): row['value'] for row in json.loads(r.stdout)}
        a = self.args
        result = {'prompt': rows['prompt', f'{a.prompt} tokens'],
                  'generation': rows['generation', '1 sequence at depth 0']}
        if a.depth:
            result['generation at depth'] = rows['generation', f'1 sequence at depth {a.depth}']
        if a.batch > 1:
            result['generation batched'] = rows['generation', f'{a.batch} sequences at depth 0']
        return result


def report(rounds, args):
    """rounds: {side: [{name: tokens/s}, ...]} -> printed rows"""
    shapes = {'prompt': f'{args.prompt} tokens', 'generation': 'depth 0',
              'generation at depth': f'depth {args.depth}',
              'generation batched': f'{args.batch} sequences'}
    rows = []
    for name in rounds['llama.cpp'][0]:
        row = {'name': name, 'shape': shapes[name], 'unit': 'tokens/s'}
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
        text = f'{row["name"]:20} {row["shape"]:13}'
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
    ap.add_argument('--quant', default='int8', choices=sorted(QUANTS))
    ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--threads', type=int, default=2)
    ap.add_argument('--prompt', type=int, default=512)
    ap.add_argument('--generate', type=int, default=32)
    ap.add_argument('--depth', type=int, default=8192,
                    help='1024 times a power of two; 0: not at depth (llama.cpp takes minutes '
                    'to get there, once)')
    ap.add_argument('--batch', type=int, default=16, help='a power of two; 1: not batched')
    ap.add_argument('--kv-cache-dtype', default='bf16', choices=sorted(KV_TYPES),
                    help='int8 is Q8_0 in llama.cpp, bf16 F16')
    ap.add_argument('--starling', default=os.path.join(ROOT, 'build', 'starling'))
    ap.add_argument('--llama-only', action='store_true', help='measure llama.cpp alone')
    ap.add_argument('--package', default=libllama.PACKAGE, help='the npm package @node-llama-cpp')
    ap.add_argument('--cache', default=os.path.join(os.path.expanduser('~'), '.cache', 'starling',
                                                    'bench'))
    ap.add_argument('--json', action='store_true')
    args = ap.parse_args()
    folder, path = prepare(args.cache, args.preset, args.quant)
    sides = {'llama.cpp': LlamaSide(args.package, path, args)}
    if not args.llama_only:
        sides['starling'] = StarlingSide(args.starling, folder, args)
        print('starling: ' + ' '.join(sides['starling'].command), file=sys.stderr)
    print(f'{args.preset}, {args.threads} threads, {args.rounds} rounds, '
          f'llama.cpp {sides["llama.cpp"].version}, {os.path.basename(path)}', file=sys.stderr)
    rounds = {name: [] for name in sides}
    for i in range(args.rounds):
        for name, side in sides.items():
            rounds[name].append(side.measure())
            print(f'round {i + 1}: {name} {rounds[name][-1]}', file=sys.stderr)
    report(rounds, args)
    return 0


if __name__ == '__main__':
    sys.exit(main())
