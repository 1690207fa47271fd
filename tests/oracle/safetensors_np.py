"""Reads the tensors of a Hugging Face folder as numpy arrays; the format is read by hand."""
import json
import os
import struct

import numpy as np

STORED = {'F32': '<f4', 'F16': '<f2', 'BF16': '<u2', 'I8': 'i1', 'I32': '<i4', 'I64': '<i8',
          'F8_E4M3': 'u1'}


class Tensors:
    """Tensors of a folder by name, mapped; get() returns float64 (I8: int8)."""

    def __init__(self, folder):
        self.folder = folder
        self.where = {}
        index = os.path.join(folder, 'model.safetensors.index.json')
        if os.path.exists(index):
            with open(index, encoding='utf-8') as f:
                files = sorted(set(json.load(f)['weight_map'].values()))
        else:
            files = ['model.safetensors']
        for name in files:
            self._add(os.path.join(folder, name))

    def _add(self, path):
        with open(path, 'rb') as f:
            size = struct.unpack('<Q', f.read(8))[0]
            header = json.loads(f.read(size))
        data = np.memmap(path, dtype=np.uint8, mode='r', offset=8 + size)
        for name, t in header.items():
            if name != '__metadata__':
                first, last = t['data_offsets']
                self.where[name] = (data[first:last], t['dtype'], t['shape'])

    def __contains__(self, name):
        return name in self.where

    def raw(self, name):
        """Returns (array as stored, with bfloat16 and E4M3 as bits; dtype name)."""
        data, dtype, shape = self.where[name]
        return np.frombuffer(data.tobytes(), STORED[dtype]).reshape(shape), dtype

    def f32(self, name):
        x, dtype = self.raw(name)
        if dtype == 'BF16':
            return (x.astype(np.uint32) << 16).view(np.float32)
        return x.astype(np.float32)

    def f64(self, name):
        return self.f32(name).astype(np.float64)
