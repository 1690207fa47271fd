"""What the comparison scripts share: paths, the engine as a command, errors, the table."""
import os
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
GOLDEN = os.path.join(ROOT, 'tests', 'vectors', 'lexicon', 'golden')
LEXICON = os.path.join(ROOT, 'models', 'lexicon')
sys.path.insert(0, os.path.join(ROOT, 'tools'))


def relative_error(x, reference):
    """Frobenius"""
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def row_errors(x, reference):
    return np.linalg.norm(x - reference, axis=1) / np.linalg.norm(reference, axis=1)


def test_tokens(n, vocab):
    """n ids spread over the vocabulary, the same on every run."""
    return [(i * 7919 + 11) % vocab for i in range(n)]


class Engine:
    """`starling logits` as a function."""

    def __init__(self, binary, isa=None):
        self.binary, self.isa = binary, isa
        self.env = dict(os.environ, **({'STARLING_CPU': isa} if isa else {}))

    def logits(self, folder, tokens, *options):
        """Returns float32 [T, vocab]; raises RuntimeError with the engine's own words."""
        with tempfile.TemporaryDirectory() as tmp:
            out = os.path.join(tmp, 'logits.npy')
            args = [self.binary, 'logits', folder, '--tokens', ','.join(map(str, tokens)),
                    '--out', out, *options]
            r = subprocess.run(args, env=self.env, capture_output=True, text=True, timeout=300)
            if r.returncode:
                raise RuntimeError(f'{" ".join(args)}: exit {r.returncode}: {r.stderr.strip()}')
            return np.load(out)

    def attending_in_floats(self):
        """This engine, or where it would attend with expanded INT8 or INT4 weights by 16-bit
        integers, one that does not: in so many roundings some are always near a tie.
        tests/kernels/test_expanded.c judges those kernels."""
        if self.isa or not os.path.exists('/proc/cpuinfo'):
            return self
        with open('/proc/cpuinfo', encoding='utf-8') as f:
            return Engine(self.binary, 'avx512') if 'avx512_vnni' in f.read() else self


def add_engine_options(ap):
    ap.add_argument('--starling', default=os.path.join(ROOT, 'build', 'starling'))
    ap.add_argument('--isa', action='append', help="kernels to use (STARLING_CPU); may stand "
                    "several times, and '' is the processor's best")


def engines_of(args):
    return [Engine(args.starling, isa) for isa in args.isa or ['']]


class Table:
    """Prints one line per check; remembers whether all passed."""

    def __init__(self):
        self.n = 0
        self.failed = []

    def row(self, name, ok, text):
        self.n += 1
        if not ok:
            self.failed.append(name)
        print(f'{"ok  " if ok else "FAIL"} {name:38} {text}', flush=True)

    def rows(self, name, results):
        """One line per engine: (engine, ok, text) each."""
        for engine, ok, text in results:
            self.row(name + (f', {engine.isa}' if engine.isa else ''), ok, text)

    def finish(self):
        print(f'{self.n - len(self.failed)} of {self.n} agree')
        return 1 if self.failed or not self.n else 0
