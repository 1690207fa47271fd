#!/usr/bin/python3
"""starling logits as a user meets it: the file it writes, and what it says about bad arguments.

    test_cmd_logits.py PATH_OF_STARLING
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
LEXICON = os.path.join(ROOT, 'models', 'lexicon')
GOLDEN = os.path.join(ROOT, 'tests', 'vectors', 'lexicon', 'golden')
STARLING = sys.argv[1]
sys.path.append(os.path.join(ROOT, 'tools'))

import make_checkpoint  # noqa: E402

failures = 0


def check(name, ok, detail=''):
    global failures
    failures += not ok
    print(f'{"ok" if ok else "FAIL"}: {name} {"" if ok else detail}')


def logits(*args, stdin=''):
    return subprocess.run([STARLING, 'logits', *args], input=stdin, text=True,
                          capture_output=True, timeout=60)


def check_files(folder):
    with open(os.path.join(GOLDEN, 'prompts.json'), encoding='utf-8') as f:
        tokens = json.load(f)[5]['tokens']
    golden = np.load(os.path.join(GOLDEN, 'logits_5.npy'))
    ids = os.path.join(folder, 'ids.json')
    with open(ids, 'w', encoding='utf-8') as f:
        json.dump(tokens, f)
    written = []
    for i, (source, options) in enumerate((
            (','.join(map(str, tokens)), []), ('@' + ids, ['--chunk', '7', '--threads', '1']),
            ('@-', ['--chunk', '1', '--block-size', '3']))):
        out = os.path.join(folder, f'{i}.npy')
        run = logits(os.path.join(LEXICON, 'bf16'), '--tokens', source, '--out', out, *options,
                     stdin=' '.join(map(str, tokens)))
        check(f'{source[:2]} {options}: exit code', run.returncode == 0, run.stderr)
        written.append(np.load(out))
    check('dtype and shape', written[0].dtype == np.float32 and written[0].shape == golden.shape)
    error = np.linalg.norm(written[0] - golden) / np.linalg.norm(golden)
    check('golden logits', error <= 1e-4, f'relative error {error}')
    check('same bits in every chunking', all(w.tobytes() == written[0].tobytes() for w in written))
    run = logits('--tokens', '4093,291', '--top', '2')
    rows = [line.split('\t') for line in run.stdout.splitlines()]
    check('top tokens', [r[:2] for r in rows] == [['0', '4093'], ['1', '291']] and
          rows[1][2].startswith('198 ') and rows[0][2].count('%') == 2, run.stdout)


def check_bits(folder):
    """Every kind of attention and MLP: equal bits in every chunking, block size, thread count."""
    out = os.path.join(folder, 'bits.npy')
    tokens = ','.join(str(3 + i * 29 % 250) for i in range(41))
    variants = ([], ['--chunk', '1', '--threads', '2'], ['--chunk', '7', '--threads', '1'],
                ['--chunk', '16', '--block-size', '5'], ['--chunk', '40', '--block-size', '64'])
    for preset, dtype in (('tiny-qwen2', 'W8A8'), ('tiny-qwen3', 'BF16'), ('tiny-qwen3_moe', 'F32'),
                          ('tiny-deepseek_v2', 'F16'), ('tiny-deepseek_v3', 'W8A8')):
        model = os.path.join(folder, preset)
        make_checkpoint.make(model, preset, dtype, seed=2)
        for kv in ('f32', 'bf16'):
            seen = set()
            for options in variants:
                run = logits(model, '--tokens', tokens, '--out', out, '--kv-cache-dtype', kv,
                             *options)
                if run.returncode:
                    check(f'{preset} {options}', False, run.stderr)
                    return
                with open(out, 'rb') as f:
                    seen.add(f.read())
            check(f'{preset} {dtype}, {kv} KV: same bits', len(seen) == 1)


def check_errors(folder):
    out = os.path.join(folder, 'never.npy')
    for args, code, words in (
            (['--tokens', '1,4096'], 1, ['4096', 'number 1', '0 to 4095']),
            (['--tokens', '1,-2'], 1, ["'-2'", '1,2,3']),
            (['--tokens', '1,two'], 1, ["'two'"]),
            (['--tokens', '99999999999'], 1, ['99999999999']),
            (['--tokens', ''], 1, ['no token id']),
            (['--tokens', ','.join(['1'] * 2049)], 1, ['2049', '2048']),
            (['--tokens', '@' + folder + '/nothing'], 1, ['nothing', 'No such file']),
            ([], 2, ['--tokens']),
            (['--tokens', '1', '--kv-cache-dtype', 'f16'], 2, ['f16', 'bf16, f32 or int8']),
            (['--tokens', '1', '--chunk', '0'], 2, ['--chunk', "'0'"]),
            (['--tokens', '1', '--kernels', 'mmx'], 1, ['mmx', 'ref']),
            ([folder, '--tokens', '1'], 1, ['config.json'])):
        run = logits(*args, '--out', out)
        check(f'{" ".join(args)[:40]}: code and words',
              run.returncode == code and all(w in run.stderr for w in words) and not run.stdout,
              f'{run.returncode} {run.stderr}')
        check('nothing written', not os.path.exists(out))
    run = logits('--tokens', '1', '--out', os.path.join(folder, 'no', 'x.npy'))
    check('unwritable', run.returncode == 1 and 'No such file' in run.stderr, run.stderr)


def main():
    with tempfile.TemporaryDirectory() as folder:
        check_files(folder)
        check_bits(folder)
        check_errors(folder)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
