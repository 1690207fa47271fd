#!/usr/bin/python3
"""Quantizes a checkpoint's linear layers, by the extremes of each group or block.

    quantize_checkpoint.py DIR OUT_DIR --dtype W4A16 [--group 128]

Reads F32, F16 or BF16; everything but the layers stays as it is, and so do the other files of the
folder. For tests and measurements: no calibration, unlike the tools that publish such checkpoints.
"""
import argparse
import json
import os
import shutil
import struct
import sys

import numpy as np

from checkpoint_quant import NAMES, Dialect, bf16_value
from make_checkpoint import Tensor, assign_dtypes, unquantized, write_json, write_weights

STORED = {'F32': '<f4', 'F16': '<f2', 'BF16': '<u2'}


class Folder:
    """The tensors of a folder of safetensors files, as a Source of make_checkpoint.py."""

    def __init__(self, folder):
        self.small = {}
        self.where = {}
        for name in sorted(os.listdir(folder)):
            if name.endswith('.safetensors'):
                self._add(os.path.join(folder, name))

    def _add(self, path):
        with open(path, 'rb') as f:
            size = struct.unpack('<Q', f.read(8))[0]
            header = json.loads(f.read(size))
        data = np.memmap(path, dtype=np.uint8, mode='r', offset=8 + size)
        for name, t in header.items():
            if name == '__metadata__':
                continue
            if t['dtype'] not in STORED:
                raise ValueError(f'{path}: {name} is {t["dtype"]}: expected {", ".join(STORED)}')
            first, last = t['data_offsets']
            self.where[name] = data[first:last], t['dtype'], tuple(t['shape'])

    def tensors(self):
        return [Tensor(name, shape, 0.0, dtype=dtype)
                for name, (_, dtype, shape) in self.where.items()]

    def rows(self, tensor):
        """Yields the float32 values, in one piece."""
        data, dtype, shape = self.where[tensor.name]
        x = np.frombuffer(data.tobytes(), STORED[dtype])
        yield (bf16_value(x) if dtype == 'BF16' else x.astype(np.float32)).reshape(shape)


def quantize(folder, out, dtype, group=128):
    """Writes the checkpoint folder `out`; returns its config."""
    os.makedirs(out, exist_ok=True)
    for name in os.listdir(folder):
        if not name.endswith(('.safetensors', '.safetensors.index.json')):
            shutil.copy(os.path.join(folder, name), out)
    with open(os.path.join(folder, 'config.json'), encoding='utf-8') as f:
        config = json.load(f)
    source, dialect = Folder(folder), Dialect(dtype, group)
    tensors = assign_dtypes(source.tensors(), 'BF16', dialect=dialect)
    config['quantization_config'] = dialect.config(unquantized(tensors))
    write_weights(out, tensors, 1, 'library', source)
    write_json(os.path.join(out, 'config.json'), config)
    return config


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('dir', help='checkpoint folder to read')
    ap.add_argument('out', help='folder to write')
    ap.add_argument('--dtype', required=True, choices=NAMES)
    ap.add_argument('--group', type=int, default=128, help='INT4: inputs per scale; -1: all')
    args = ap.parse_args()
    quantize(args.dir, args.out, args.dtype, args.group)
    return 0


if __name__ == '__main__':
    sys.exit(main())
