"""Quantized dialects for make_checkpoint.py, as the tools that publish them write them.

A Dialect turns each linear layer's float weights into tensors and says what config.json needs. Rows
of a weight are outputs, columns inputs.
"""
import numpy as np

FP8_BLOCK = 128
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds output AWQ_ORDER[i]


def e4m3_values():
    """Every E4M3 number from 0 up, in order; code 127 would be NaN."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    return np.where(exponent == 0, mantissa * 2.0 ** -9, (8 + mantissa) * 2.0 ** (exponent - 10.0))


def to_e4m3(x):
    """float -> E4M3 codes, to nearest, ties to even; too large ones saturate."""
    values = e4m3_values()
    a = np.abs(x)
    above = np.clip(np.searchsorted(values, a), 1, 126)
    low, high = values[above - 1], values[above]
    up = (a - low > high - a) | ((a - low == high - a) & (above % 2 == 0))
    return np.where(up, above, above - 1).astype(np.uint8) | np.where(x < 0, 128, 0).astype(np.uint8)


def pack_words(q, axis):
    """Numbers of four bits, eight to a 32-bit word along axis, lowest first; the end is filled up
    with zeros."""
    q = np.moveaxis(q, axis, -1).astype(np.uint32)
    q = np.pad(q, [(0, 0)] * (q.ndim - 1) + [(0, -q.shape[-1] % 8)])
    q = q.reshape(*q.shape[:-1], -1, 8) << (4 * np.arange(8, dtype=np.uint32))
    return np.ascontiguousarray(np.moveaxis(np.bitwise_or.reduce(q, -1), -1, axis)).view(np.int32)


def to_bf16(x):
    """float32 -> bfloat16 bits, to nearest even."""
    u = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((u + (((u >> 16) & 1) + 0x7fff)) >> 16).astype('<u2')


def bf16_value(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def quantize_groups(w, group, symmetric, bf16):
    """(q 0..15 [n, k], scale [n, groups] as stored, zero 0..15 [n, groups]), by the extremes of
    each group. group: of each input; none is empty."""
    n, n_groups = w.shape[0], int(group.max()) + 1
    order = np.argsort(group, kind='stable')
    starts = np.searchsorted(group[order], np.arange(n_groups))
    ordered = w if (order[1:] > order[:-1]).all() else w[:, order]
    high = np.maximum(np.maximum.reduceat(ordered, starts, axis=1), 0)
    low = np.minimum(np.minimum.reduceat(ordered, starts, axis=1), 0)
    if symmetric:
        scale = np.maximum(high, -low) / np.float32(7.5)
    else:
        scale = (high - low) / np.float32(15)
    scale = np.where(scale < 1e-6, np.float32(1), scale)
    # What is stored is what the numbers are chosen for.
    stored = to_bf16(scale) if bf16 else scale.astype(np.float16)
    value = bf16_value(stored) if bf16 else stored.astype(np.float32)
    zero = np.full((n, n_groups), 8)
    if not symmetric:
        zero = np.clip(np.rint(-low / value), 0, 15).astype(int)
    q = np.clip(np.rint(w / value[:, group]) + zero[:, group], 0, 15).astype(np.uint8)
    return q, stored, zero


def fp8_blocks(w):
    """(codes [n, k], scale [blocks of rows, blocks of inputs])"""
    n, k = w.shape
    rows, cols = -(-n // FP8_BLOCK), -(-k // FP8_BLOCK)
    padded = np.zeros((rows * FP8_BLOCK, cols * FP8_BLOCK), np.float32)
    padded[:n, :k] = np.abs(w)
    most = padded.reshape(rows, FP8_BLOCK, cols, FP8_BLOCK).max((1, 3))
    scale = np.maximum(most, 1e-12).astype(np.float32) / np.float32(448)
    each = np.repeat(np.repeat(scale, FP8_BLOCK, 0), FP8_BLOCK, 1)[:n, :k]
    return to_e4m3(w / each), scale


class Dialect:
    """A --dtype of make_checkpoint.py. parts(n, k) lists (suffix, dtype, shape) of a layer's
    tensors; constant() and tensors() make them."""

    def __init__(self, name, group):
        self.name = name
        self.group = group
        self.symmetric = name in ('W4A16', 'W4A16-all', 'W4A16-actorder', 'GPTQ-sym')
        self.act_order = name.endswith('-actorder')

    # Which layers: what publishers of the format leave out differs. W4A16-all has what a GGUF file
    # has, the head, kv_a_proj and kv_b_proj too.
    def covers(self, name):
        if self.name == 'W4A16-all' and name.endswith(('lm_head.weight',
                                                       'kv_a_proj_with_mqa.weight')):
            return True
        if not name.endswith('_proj.weight') or name.endswith('eh_proj.weight'):
            return False
        return not (self.name.startswith('W4A16') and self.name != 'W4A16-all' and
                    name.endswith('kv_b_proj.weight'))

    def groups(self, k):
        return -(-k // self.group) if self.group > 0 else 1

    def parts(self, n, k):
        g = self.groups(k)
        if self.name == 'FP8':
            return [('weight', 'F8_E4M3', (n, k)),
                    ('weight_scale_inv', 'F32', (-(-n // FP8_BLOCK), -(-k // FP8_BLOCK)))]
        if self.name.startswith('W4A16'):
            out = [('weight_packed', 'I32', (n, -(-k // 8))), ('weight_scale', 'BF16', (n, g)),
                   ('weight_shape', 'I64', (2,))]
            if not self.symmetric:
                out.append(('weight_zero_point', 'I32', (-(-n // 8), g)))
            if self.act_order:
                out.append(('weight_g_idx', 'I32', (k,)))
            return out
        if n % 8 or k % 8:
            raise ValueError(f'{self.name} packs eight to a word: {n} x {k} are not multiples of 8')
        if self.name == 'AWQ':
            return [('qweight', 'I32', (k, n // 8)), ('qzeros', 'I32', (g, n // 8)),
                    ('scales', 'F16', (g, n))]
        return [('qweight', 'I32', (k // 8, n)), ('qzeros', 'I32', (g, n // 8)),
                ('scales', 'F16', (g, n)), ('g_idx', 'I32', (k,))]

    def group_of_inputs(self, k):
        group = np.arange(k, dtype=np.int32) // (self.group if self.group > 0 else k)
        # With act-order, columns were taken in the order that a tool found best: any order here.
        return np.random.default_rng(k).permutation(group) if self.act_order else group

    def constant(self, suffix, n, k):
        """A tensor that does not depend on the weights, or None."""
        if suffix == 'weight_shape':
            return np.array([n, k], np.int64)
        return self.group_of_inputs(k) if suffix.endswith('g_idx') else None

    def tensors(self, w):
        """The others by suffix, the largest first."""
        if self.name == 'FP8':
            return dict(zip(('weight', 'weight_scale_inv'), fp8_blocks(w)))
        n, k = w.shape
        group, compressed = self.group_of_inputs(k), self.name.startswith('W4A16')
        q, scale, zero = quantize_groups(w, group, self.symmetric, bf16=compressed)
        if compressed:
            return {'weight_packed': pack_words(q, 1), 'weight_scale': scale,
                    'weight_zero_point': pack_words(zero, 0)}
        scale = np.ascontiguousarray(scale.T)
        if self.name == 'AWQ':
            order = (np.arange(0, n, 8)[:, None] + AWQ_ORDER).ravel()
            return {'qweight': pack_words(q.T[:, order], 1),
                    'qzeros': pack_words(zero.T[:, order], 1), 'scales': scale}
        # Version 1 stores zero points minus 1: a 0 borrows from its neighbour in the word.
        stored = pack_words(zero.T, 1).view(np.uint32) - np.uint32(0x11111111)
        return {'qweight': pack_words(q.T, 0), 'qzeros': stored.view(np.int32), 'scales': scale}

    def config(self, unquantized):
        if self.name == 'FP8':
            return {'quant_method': 'fp8', 'fmt': 'e4m3', 'activation_scheme': 'dynamic',
                    'weight_block_size': [FP8_BLOCK, FP8_BLOCK]}
        if self.name.startswith('W4A16'):
            weights = {'num_bits': 4, 'type': 'int', 'symmetric': self.symmetric, 'dynamic': False,
                       'strategy': 'group' if self.group > 0 else 'channel',
                       'group_size': self.group if self.group > 0 else None,
                       'actorder': 'group' if self.act_order else None}
            return {'quant_method': 'compressed-tensors', 'format': 'pack-quantized',
                    'quantization_status': 'compressed', 'ignore': unquantized,
                    'config_groups': {'group_0': {'targets': ['Linear'], 'weights': weights,
                                                  'input_activations': None,
                                                  'output_activations': None}}}
        if self.name == 'AWQ':
            return {'quant_method': 'awq', 'bits': 4, 'group_size': self.group, 'version': 'gemm',
                    'zero_point': True, 'modules_to_not_convert': unquantized}
        return {'quant_method': 'gptq', 'bits': 4, 'group_size': self.group, 'sym': self.symmetric,
                'desc_act': self.act_order, 'checkpoint_format': 'gptq', 'lm_head': False}


NAMES = ('FP8', 'W4A16', 'W4A16-all', 'W4A16-asym', 'W4A16-actorder', 'GPTQ', 'GPTQ-sym',
         'GPTQ-actorder', 'AWQ')
