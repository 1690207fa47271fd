"""Linear layers of quantized checkpoints as float64 matrices, from what the formats' documentation
says of their tensors, one plain formula each.

read(tensors, quant, name) returns (W [outputs, inputs] in float64, whether inputs are rounded to 8
bits per token), or None when name is not quantized in one of these dialects.
"""
import numpy as np

AWQ_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)  # where a word holds outputs 0..7


def e4m3(codes):
    """Sign, 4 bits of exponent with bias 7, 3 bits of mantissa; no infinities."""
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7).astype(float)
    value = np.where(exponent == 0, mantissa / 8 * 2.0 ** -6,
                     (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    assert not ((codes & 0x7f) == 0x7f).any()
    return sign * value


def nibbles(words, axis, order=range(8)):
    """Eight numbers of each 32-bit word, along axis."""
    words = words.astype(np.int64) & 0xffffffff
    parts = [words >> (4 * i) & 15 for i in order]
    stacked = np.stack(parts, axis + 1)
    shape = list(words.shape)
    shape[axis] *= 8
    return stacked.reshape(shape)


def fp8(tensors, quant, name):
    codes, _ = tensors.raw(name + '.weight')
    scale = tensors.f64(name + '.weight_scale_inv')
    rows, cols = quant['weight_block_size']
    n, k = codes.shape
    return e4m3(codes) * scale[np.arange(n)[:, None] // rows, np.arange(k) // cols], False


def packed(tensors, quant, name):
    weights = quant['config_groups']['group_0']['weights']
    words, _ = tensors.raw(name + '.weight_packed')
    (n, k), _ = tensors.raw(name + '.weight_shape')
    q = nibbles(words, 1)[:, :k]
    scale = tensors.f64(name + '.weight_scale')
    zero = np.full(scale.shape, 8)
    if name + '.weight_zero_point' in tensors:
        zero = nibbles(tensors.raw(name + '.weight_zero_point')[0], 0)[:n]
    size = weights['group_size'] if weights['strategy'] == 'group' else k
    group, ordered = groups(tensors, name + '.weight_g_idx', k, size)
    return (q - zero[:, group]) * scale[:, group], not ordered


def gptq(tensors, quant, name):
    q = nibbles(tensors.raw(name + '.qweight')[0], 0).T
    stored = tensors.raw(name + '.qzeros')[0]
    if quant.get('checkpoint_format', 'gptq') == 'gptq':
        stored = stored.astype(np.int64) + 0x11111111  # with carries
    zero = nibbles(stored, 1).T
    scale = tensors.f64(name + '.scales').T
    k = q.shape[1]
    size = quant['group_size'] if quant['group_size'] > 0 else k
    group, ordered = groups(tensors, name + '.g_idx', k, size)
    w = (q - zero[:, group]) * scale[:, group]
    # The format's products in half precision work with weights rounded to it.
    return (w.astype(np.float16).astype(np.float64), False) if ordered else (w, True)


def awq(tensors, quant, name):
    q = nibbles(tensors.raw(name + '.qweight')[0], 1, AWQ_NIBBLE).T
    zero = nibbles(tensors.raw(name + '.qzeros')[0], 1, AWQ_NIBBLE).T
    scale = tensors.f64(name + '.scales').T
    k = q.shape[1]
    group = np.arange(k) // (quant['group_size'] if quant['group_size'] > 0 else k)
    return (q - zero[:, group]) * scale[:, group], True


def groups(tensors, name, k, size):
    """(group of each input, whether a group's inputs are apart)."""
    plain = np.arange(k) // size
    if name not in tensors:
        return plain, False
    group, _ = tensors.raw(name)
    return group, bool((group != group[plain * size]).any())


READERS = {'fp8': (fp8, '.weight_scale_inv'), 'compressed-tensors': (packed, '.weight_packed'),
           'gptq': (gptq, '.qweight'), 'awq': (awq, '.qweight')}


def read(tensors, quant, name):
    reader, suffix = READERS.get((quant or {}).get('quant_method'), (None, ''))
    return reader(tensors, quant, name) if reader and name + suffix in tensors else None
