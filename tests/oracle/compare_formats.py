#!/usr/bin/python3
"""The engine against the float64 oracle on every quantized dialect: FP8 in blocks, and INT4 as
compressed-tensors, GPTQ and AWQ store it, by several group sizes.

    compare_formats.py [--starling build/starling] [--isa '' --isa ref] [--only WORD]
                       [--lexicon [STEP]]

Layers whose inputs stay floats (FP8, act-order) are held to a relative error of 1e-5. INT4 layers
round their inputs to 8 bits, which is judged as compare_families.py judges W8A8: 1e-4 at each
position before the first that may fall to either side of a tie, 2e-2 for all of them.

With --lexicon, the lexicon's BF16 weights are quantized, and its perplexity (with the first --isa) on
every STEP-th of its evaluation dialogues must stay within 3% of BF16's.
"""
import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from compare_families import make_sure_of, perplexity_of
from oracle_common import (LEXICON, Table, add_engine_options, engines_of, relative_error,
                           row_errors, test_tokens)

import forward
import make_checkpoint
import quantize_checkpoint

LENGTH = 33
FLOAT_BOUND, SURE_BOUND, BOUND = 1e-5, 1e-4, 2e-2
# Attention by 16-bit integers is off by some 1e-4, which turns the rounding of other inputs to 8
# bits over: a third of what that rounding costs anyway.
INTEGERS_BOUND = 5e-2
MLA, GQA = 'group-deepseek_v3', 'group-qwen2'
# Preset, dialect, inputs per scale, first seed to try (what make_sure_of found counting from 1: most
# of the time went into that). Odd files and orders leave tensors unaligned.
CASES = [
    (MLA, 'FP8', None, 1), (GQA, 'FP8', None, 1),
    (MLA, 'W4A16', 32, 29), (MLA, 'W4A16', 128, 7), (GQA, 'W4A16', -1, 3),
    (GQA, 'W4A16-asym', 32, 2), (MLA, 'W4A16-asym', 96, 16), (GQA, 'W4A16-actorder', 32, 1),
    (MLA, 'W4A16-all', 32, 42), (GQA, 'W4A16-all', 128, 23),
    (MLA, 'GPTQ', 32, 28), (GQA, 'GPTQ', 128, 15), (GQA, 'GPTQ-sym', 64, 2),
    (MLA, 'GPTQ-actorder', 64, 1),
    (MLA, 'AWQ', 32, 28), (GQA, 'AWQ', 160, 7),
]


def compare(engines, preset, dialect, group, first):
    """Returns (engine, ok, text) for each engine."""
    options = {'order': 'name', 'shards': 2 if group == 32 else 1, 'group': group or 128}

    def make(folder, seed):
        return make_checkpoint.make(folder, preset, dialect, seed=seed, **options)

    rounds = dialect != 'FP8' and not dialect.endswith('actorder')
    with tempfile.TemporaryDirectory() as folder:
        tokens, _, reference, sure = make_sure_of(folder, make, LENGTH, rounds, first)
        results = []
        if rounds and preset == MLA:
            engines = [e.attending_in_floats() for e in engines]
        for engine in engines:
            try:
                x = engine.logits(folder, tokens, '--kv-cache-dtype', 'f32')
            except RuntimeError as e:
                results.append((engine, False, str(e)))
                continue
            error, rows = relative_error(x, reference), row_errors(x, reference)
            if rounds:
                results.append((engine, error <= BOUND and (rows[:sure] <= SURE_BOUND).all(),
                                f'{error:.1e}  {rows[:sure].max():.1e} at {sure} sure positions'))
            else:
                results.append((engine, error <= FLOAT_BOUND, f'{error:.1e}'))
        return results


def integers_attend(engine):
    """MLA with kv_b_proj in integers as the engine runs it. Dense, as experts chosen by a hair
    would make any difference a large one. Returns (engine, ok, text)."""
    with tempfile.TemporaryDirectory() as folder:
        layers = make_checkpoint.PRESETS[MLA]['num_hidden_layers']
        config = make_checkpoint.make(folder, MLA, 'W4A16-all', group=32,
                                      overrides={'first_k_dense_replace': layers})
        tokens = test_tokens(LENGTH, config['vocab_size'])
        reference = forward.Model(folder).forward(tokens)
        error = relative_error(engine.logits(folder, tokens, '--kv-cache-dtype', 'f32'), reference)
    return engine, error <= INTEGERS_BOUND, f'{error:.1e}'


def lexicon(engine, table, step):
    original = os.path.join(LEXICON, 'bf16')
    reference = perplexity_of(engine, original, step)
    for dialect, group in (('W4A16', 32), ('W4A16', 128), ('GPTQ', 32), ('AWQ', 128),
                           ('FP8', None)):
        with tempfile.TemporaryDirectory() as folder:
            quantize_checkpoint.quantize(original, folder, dialect, group or 128)
            perplexity = perplexity_of(engine, folder, step)
        table.row(f'lexicon {dialect}' + (f' by {group}' if group else ''),
                  perplexity <= 1.03 * reference,
                  f'perplexity {perplexity:.5f}, BF16 {reference:.5f}: '
                  f'{(perplexity / reference - 1) * 100:+.2f}%')


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    add_engine_options(ap)
    ap.add_argument('--only', default='', help='cases whose "preset dialect" contains this')
    ap.add_argument('--lexicon', type=int, nargs='?', const=1, metavar='STEP')
    args = ap.parse_args()
    engines, table = engines_of(args), Table()
    cases = [c for c in CASES if args.only in f'{c[0]} {c[1]}']
    with ThreadPoolExecutor(2) as pool:
        for case, results in zip(cases, pool.map(lambda c: compare(engines, *c), cases)):
            preset, dialect, group, _ = case
            table.rows(f'{preset} {dialect}' + (f' by {group}' if group else ''), results)
    if not args.only:
        table.rows(f'{MLA} dense W4A16-all', [integers_attend(e) for e in engines])
    if args.lexicon:
        lexicon(engines[0], table, args.lexicon)
    return table.finish()


if __name__ == '__main__':
    sys.exit(main())
