#!/usr/bin/python3
"""The engine against the float64 oracle: every family, every weight dtype, odd shapes.

    compare_families.py [--starling build/starling] [--isa '' --isa ref] [--only WORD] [--ends]
                        [--no-lexicon]

For every tiny checkpoint and several lengths: relative error of the logits <= 1e-4 for F32, F16
and BF16 weights with F32 KV. W8A8 rounds activations to 8 bits: a last-bit difference at a rounding
tie moves one of them by a step, from that position on, and at times chooses another expert. The
oracle knows where it came near a tie: positions before the first are held to 1e-4 each, all of
them together to 2e-2, and the argmax must agree at 90% of positions.

BF16 KV is compared with an oracle that rounds the same values to bfloat16, by the median position
(1e-3), since a last-bit difference can fall to the other side there too.

Then the lexicon, with the first --isa: logits against its goldens, perplexity against its
reference.
"""
import argparse
import json
import math
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from oracle_common import (GOLDEN, LEXICON, Table, add_engine_options, engines_of, relative_error,
                           row_errors, test_tokens)

import forward
import make_checkpoint

LENGTHS = (1, 2, 17, 65)
DTYPES = ('F32', 'F16', 'BF16', 'W8A8')
EVERY_DTYPE = ('tiny-deepseek_v3', 'tiny-qwen2')  # with --ends; the other presets in two dtypes
FLOAT_BOUND = 1e-4
TIE_DISTANCE, ROUTER_GAP = 4e-5, 1e-6  # nearer than this, float32 may decide the other way
MIN_SURE = 16


def integers_expand(preset, dtype):
    """Whether kv_b_proj has 8 bits."""
    return dtype == 'W8A8' and preset.endswith(('v3', 'qlora', 'bias'))


def make(folder, preset, dtype, seed=1):
    """Dtypes also differ in the files' number and order and in what is quantized, so that every
    loader path is met."""
    options = {'F32': {}, 'F16': {'shards': 2}, 'BF16': {'shards': 3, 'order': 'name'},
               'W8A8': {'order': 'name', 'quantize_kv_a': preset.endswith(('v3', 'bias')),
                        'quantize_kv_b': integers_expand(preset, dtype)}}[dtype]
    return make_checkpoint.make(folder, preset, dtype, seed=seed, **options)


def sure_positions(oracle):
    """Number of positions before the first that float32 could decide the other way."""
    unsure = (oracle.tie_distance < TIE_DISTANCE) | (oracle.router_gap < ROUTER_GAP)
    return int(unsure.argmax()) if unsure.any() else len(unsure)


def make_sure_of(folder, make_seed, length, rounds, first=1):
    """Makes a checkpoint by make_seed(folder, seed); where inputs are rounded to 8 bits, that of
    the first seed from first on whose oracle is sure of enough positions. Returns (tokens, oracle,
    its logits, number of sure positions)."""
    for seed in range(first, first + 50):
        config = make_seed(folder, seed)
        tokens = test_tokens(length, config['vocab_size'])
        oracle = forward.Model(folder)
        logits = oracle.forward(tokens)
        sure = sure_positions(oracle)
        if not rounds or sure >= MIN_SURE:
            return tokens, oracle, logits, sure
    raise RuntimeError(f'no seed with {MIN_SURE} sure positions')


def make_sure(folder, preset, dtype):
    return make_sure_of(folder, lambda f, seed: make(f, preset, dtype, seed), max(LENGTHS),
                        dtype == 'W8A8')


def compare(engine, folder, dtype, oracle, cases):
    """The engine's logits with the oracle's: cases are (tokens, logits, sure positions). Returns
    (engine, ok, text)."""
    errors, ok = [], True
    try:
        for tokens, r, sure in cases:
            x = engine.logits(folder, tokens)
            if x.shape != r.shape:
                raise RuntimeError(f'logits {x.shape}, expected {r.shape}')
            errors.append(relative_error(x, r))
            rows = row_errors(x, r)
            if dtype == 'W8A8':
                agree = (x.argmax(-1) == r.argmax(-1)).mean()
                ok = (ok and errors[-1] <= 2e-2 and agree >= 0.9
                      and (rows[:sure] <= FLOAT_BOUND).all())
            else:
                ok = ok and errors[-1] <= FLOAT_BOUND
    except RuntimeError as e:
        return engine, False, str(e)
    text = ' '.join(f'{e:8.1e}' for e in errors)
    if dtype == 'W8A8':
        return engine, ok, f'{text}  {rows[:sure].max():.1e} at {sure} sure positions'
    return engine, ok, f'{text}  router gap {oracle.router_gap.min():.0e}'


def family(engines, lengths, preset, dtype):
    """Returns compare()'s results, one an engine."""
    with tempfile.TemporaryDirectory() as folder:
        tokens, oracle, reference, sure = make_sure(folder, preset, dtype)
        cases = []
        for n in lengths:
            r = reference[:n]
            if dtype == 'W8A8':  # which latents are rounded depends on the prompt's length
                r = oracle.forward(tokens[:n])
                sure = sure_positions(oracle)
            cases.append((tokens[:n], r, sure))
        if integers_expand(preset, dtype):
            engines = [e.attending_in_floats() for e in engines]
        return [compare(e, folder, dtype, oracle, cases) for e in engines]


def bf16_kv(engines, table, only):
    """The longest run of each BF16 checkpoint again, with BF16 KV on both sides."""
    for preset in make_checkpoint.PRESETS:
        if not preset.startswith('tiny-') or only not in f'{preset} BF16':
            continue
        with tempfile.TemporaryDirectory() as folder:
            config = make(folder, preset, 'BF16')
            tokens = test_tokens(max(LENGTHS), config['vocab_size'])
            plain = forward.Model(folder).forward(tokens)
            reference = forward.Model(folder, 'bf16').forward(tokens)
            results = []
            for engine in engines:
                try:
                    x = engine.logits(folder, tokens, '--kv-cache-dtype', 'bf16')
                except RuntimeError as e:
                    results.append((engine, False, str(e)))
                    continue
                median = float(np.median(row_errors(x, reference)))
                rounding = float(np.median(row_errors(x, plain)))
                # The second number proves that the engine did round.
                results.append((engine, median <= 1e-3 < rounding * 4,
                                f'median {median:.1e}; to F32 KV {rounding:.1e}'))
            table.rows(f'{preset} BF16, BF16 KV', results)


def families(engines, table, only, lengths, ends):
    cases = [(p, d) for p in make_checkpoint.PRESETS if p.startswith('tiny-') for d in DTYPES
             if only in f'{p} {d}' and (not ends or p in EVERY_DTYPE or d in ('BF16', 'W8A8'))]

    with ThreadPoolExecutor(2) as pool:
        for case, results in zip(cases, pool.map(lambda c: family(engines, lengths, *c), cases)):
            table.rows(' '.join(case), results)


def lexicon_logits(engine, table):
    """Bounds: each prompt (F32 KV); all prompts together (BF16 KV: rounding KV flips an expert in
    two prompts, in the oracle just as in the engine); the argmax of all positions (INT8)."""
    with open(os.path.join(GOLDEN, 'prompts.json'), encoding='utf-8') as f:
        prompts = json.load(f)

    def run(kind, prefix, *options):
        """Returns the engine's logits and the goldens, a list of prompts each."""
        return ([engine.logits(os.path.join(LEXICON, kind), p['tokens'], *options)
                 for p in prompts],
                [np.load(os.path.join(GOLDEN, f'{prefix}logits_{i}.npy'))
                 for i in range(len(prompts))])

    x, golden = run('bf16', '', '--kv-cache-dtype', 'f32')
    worst = max(map(relative_error, x, golden))
    table.row('lexicon BF16, F32 KV', worst <= FLOAT_BOUND, f'worst prompt {worst:.1e}')

    x, golden = run('bf16', '', '--kv-cache-dtype', 'bf16')
    error = relative_error(np.concatenate(x), np.concatenate(golden))
    worst = max(map(relative_error, x, golden))
    table.row('lexicon BF16, BF16 KV', error <= 2e-2, f'all prompts {error:.1e}, worst {worst:.1e}')
    oracle = forward.Model(os.path.join(LEXICON, 'bf16'), 'bf16')
    worst = max(relative_error(a, oracle.forward(p['tokens'])) for a, p in zip(x, prompts))
    table.row('  and an oracle with BF16 KV', worst <= 1e-3, f'worst prompt {worst:.1e}')

    x, golden = run('int8', 'int8_')
    x, golden = np.concatenate(x), np.concatenate(golden)
    agree = float((x.argmax(-1) == golden.argmax(-1)).mean())
    table.row('lexicon INT8', agree >= 0.97,
              f'argmax {agree:.3f}, median position {np.median(row_errors(x, golden)):.1e}')


def perplexity_of(engine, folder, step=1):
    """Of the lexicon's evaluation dialogues (every step-th) with the checkpoint in folder."""
    with open(os.path.join(GOLDEN, 'eval.jsonl'), encoding='utf-8') as f:
        dialogues = [json.loads(line) for line in f][::step]

    def loss(dialogue):
        tokens, mask = np.array(dialogue['tokens']), np.array(dialogue['mask'], bool)
        x = engine.logits(folder, dialogue['tokens']).astype(np.float64)
        top = x.max(-1)
        log_sum = top + np.log(np.exp(x - top[:, None]).sum(-1))
        nll = log_sum[:-1] - x[np.arange(len(tokens) - 1), tokens[1:]]
        return nll[mask[1:]].sum(), int(mask[1:].sum())

    with ThreadPoolExecutor(2) as pool:
        losses = list(pool.map(loss, dialogues))
    return math.exp(sum(s for s, _ in losses) / sum(n for _, n in losses))


def lexicon_perplexity(engine, table):
    with open(os.path.join(GOLDEN, 'reference.json'), encoding='utf-8') as f:
        reference = json.load(f)['eval perplexity int8 (dynamic activations)']
    perplexity = perplexity_of(engine, os.path.join(LEXICON, 'int8'))
    table.row('lexicon INT8 perplexity', abs(perplexity / reference - 1) <= 0.01,
              f'{perplexity:.5f}, reference {reference:.5f}')


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    add_engine_options(ap)
    ap.add_argument('--only', default='', help='checkpoints whose "preset DTYPE" contains this')
    ap.add_argument('--ends', action='store_true', help='only the shortest and the longest '
                    'prompt, and most presets in two dtypes')
    ap.add_argument('--no-lexicon', action='store_true')
    args = ap.parse_args()
    engines, table = engines_of(args), Table()
    lengths = (LENGTHS[0], LENGTHS[-1]) if args.ends else LENGTHS
    print(f'relative error at {lengths} tokens')
    families(engines, table, args.only, lengths, args.ends)
    bf16_kv(engines, table, args.only)
    if not args.no_lexicon:
        lexicon_logits(engines[0], table)
        lexicon_perplexity(engines[0], table)
    return table.finish()


if __name__ == '__main__':
    sys.exit(main())
