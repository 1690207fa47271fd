#!/usr/bin/python3
"""Checks the oracle itself: forward.py against the lexicon's golden logits, which another program
(PyTorch, float64) wrote; and make_checkpoint.py: same weights whatever the number of files."""
import json
import os
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, os.path.join(ROOT, 'tools')]

import forward  # noqa: E402
import make_checkpoint  # noqa: E402

GOLDEN = os.path.join(ROOT, 'tests', 'vectors', 'lexicon', 'golden')


def relative_error(x, reference):
    return np.linalg.norm(x - reference) / np.linalg.norm(reference)


def check_lexicon(kind, prefix):
    """BF16: float64 on both sides, equal to float32's precision. INT8: one activation that lies on
    a rounding tie may fall to either side and move a whole prompt, so: most prompts equal."""
    with open(os.path.join(GOLDEN, 'prompts.json'), encoding='utf-8') as f:
        prompts = json.load(f)
    model = forward.Model(os.path.join(ROOT, 'models', 'lexicon', kind))
    errors = []
    for i, prompt in enumerate(prompts):
        golden = np.load(os.path.join(GOLDEN, f'{prefix}logits_{i}.npy'))
        errors.append(relative_error(model.forward(prompt['tokens']), golden))
    equal = sum(e < 1e-6 for e in errors)
    ok = equal == len(errors) if kind == 'bf16' else equal >= 5 and max(errors) < 0.1
    print(f'{"ok" if ok else "FAIL"}: lexicon {kind}: {equal} of {len(errors)} prompts equal, '
          f'worst error {max(errors):.2g}')
    return ok


def check_shards():
    """One file or three, library order or name order (unaligned tensors): the same logits."""
    ok = True
    tokens = list(range(3, 20))
    for preset in ('tiny-deepseek_v3', 'tiny-qwen2'):
        results = []
        for shards, order in ((1, 'library'), (3, 'name')):
            with tempfile.TemporaryDirectory() as folder:
                make_checkpoint.make(folder, preset, 'W8A8', shards=shards, order=order)
                results.append(forward.Model(folder).forward(tokens))
        same = np.array_equal(results[0], results[1])
        ok = ok and same
        print(f'{"ok" if same else "FAIL"}: {preset}: 1 file and 3 files give the same logits')
    return ok


def main():
    results = [check_lexicon('bf16', ''), check_lexicon('int8', 'int8_'), check_shards()]
    return 0 if all(results) else 1


if __name__ == '__main__':
    sys.exit(main())
