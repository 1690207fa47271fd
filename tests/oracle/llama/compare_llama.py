#!/usr/bin/python3
"""llama.cpp as a second, foreign oracle: logits of the same random F32 checkpoints from llama.cpp,
from forward.py and from the engine.

    compare_llama.py [--starling build/starling] [--package DIR]

Exits 77 (skipped) when the npm package is not installed. Where llama.cpp computes something else
than the published model, the checkpoint is left out, with the reason:
- YaRN with mscale != mscale_all_dim: GGUF has no key for it, cos and sin keep amplitude 1;
- V2's group limit: llama.cpp ranks groups by the sum of their two best (V3's rule), V2 by the best;
- the pangu family is unknown to it.
Its sum of routing weights is clamped at 6.1e-5, far below the sums met here. Without q_lora it
reads V2 only at 27 layers (V2-Lite's number), so that checkpoint is made with 27.
"""
import argparse
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from oracle_common import ROOT, Engine, Table, relative_error, test_tokens  # noqa: E402

import forward  # noqa: E402
import gguf  # noqa: E402
import libllama  # noqa: E402
import make_checkpoint  # noqa: E402

CASES = {
    'tiny-deepseek_v2': {'num_hidden_layers': 27},
    'tiny-deepseek_v2-qlora': {}, 'tiny-deepseek_v3': {}, 'tiny-deepseek_v3-mtp': {},
    'tiny-kimi_k2': {}, 'tiny-qwen2': {}, 'tiny-qwen2-untied': {}, 'tiny-qwen3': {},
    'tiny-qwen3_moe': {},
}
LENGTH = 65
BOUND = 1e-4


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('--starling', help='compare this engine too')
    ap.add_argument('--package', default=libllama.PACKAGE, help='the npm package @node-llama-cpp')
    args = ap.parse_args()
    try:
        llama = libllama.Llama(args.package)
    except FileNotFoundError as e:
        print(f'skipped: {e}')
        return 77
    print(f'llama.cpp {llama.lib.llama_version().decode()}, float32 weights and KV; '
          f'relative error over {LENGTH} positions')
    engine = Engine(args.starling) if args.starling else None
    table = Table()
    for preset, overrides in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            config = make_checkpoint.make(folder, preset, 'F32', seed=2, overrides=overrides)
            tokens = test_tokens(LENGTH, config['vocab_size'])
            path = os.path.join(folder, 'model.gguf')
            gguf.convert(folder, path)
            with libllama.Session(llama, path) as session:
                theirs = session.logits(tokens)
            error = relative_error(theirs, forward.Model(folder).forward(tokens))
            text, ok = f'oracle {error:.1e}', error <= BOUND
            if engine:
                try:
                    error = relative_error(engine.logits(folder, tokens), theirs)
                    text, ok = f'{text}  engine {error:.1e}', ok and error <= BOUND
                except RuntimeError as e:
                    text, ok = f'{text}  {e}', False
            table.row(preset, ok, text)
    return table.finish()


if __name__ == '__main__':
    sys.exit(main())
