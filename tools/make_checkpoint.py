#!/usr/bin/python3
"""Writes a random checkpoint of any supported family: config.json, safetensors, tokenizer.

    make_checkpoint.py OUT_DIR --preset tiny-deepseek_v3 [--dtype BF16] [--seed 0] [--shards 1]
                       [--tokenizer DIR] [--order library|name] [--quantize-kv-a] [--quantize-kv-b]
                       [--group 128]
                       [--set key=JSON]
    make_checkpoint.py --list

Same arguments, same bytes. Weights are scaled so that activations and logits stay near 1 and the
router is decided. Memory use stays low at any size: tensors are made and written in slices. Needs
only Python 3 and numpy; the safetensors layout is written by hand.
"""
import argparse
import json
import os
import shutil
import struct
import sys
import zlib

import numpy as np

from checkpoint_quant import NAMES as DIALECTS, Dialect, to_bf16
from checkpoint_shapes import PRESETS

SLICE = 1 << 22          # elements made at a time
TILED_FROM = 50_000_000  # models with more parameters tile one random block instead of drawing all
DTYPE_BYTES = {'I64': 8, 'F32': 4, 'I32': 4, 'F16': 2, 'BF16': 2, 'I8': 1, 'F8_E4M3': 1}


class Tensor:
    """One tensor to write: name, stored dtype, shape and how to draw it."""

    def __init__(self, name, shape, std, mean=0.0, dtype=None):
        self.name, self.shape, self.std, self.mean, self.dtype = name, shape, std, mean, dtype
        self.quantized_from = None  # for X.weight_scale: the tensor X.weight
        self.dialect = None         # for those of a Dialect: itself, quantized_from and this

    def elements(self):
        return int(np.prod(self.shape))

    def bytes(self):
        return self.elements() * DTYPE_BYTES[self.dtype]


# ---------------------------------------------------------------------------------------------
# Which tensors a config asks for
# ---------------------------------------------------------------------------------------------

def linear(name, n_out, n_in, gain=1.0):
    return Tensor(name + '.weight', (n_out, n_in), gain / n_in ** 0.5)


def norm(name, n):
    return Tensor(name + '.weight', (n,), 0.15, mean=1.0)


def mlp(prefix, hidden, inter):
    return [linear(prefix + 'gate_proj', inter, hidden, 1.4),
            linear(prefix + 'up_proj', inter, hidden, 1.4),
            linear(prefix + 'down_proj', hidden, inter, 1.4)]


def mla_attention(p, c):
    h, heads = c['hidden_size'], c['num_attention_heads']
    q_lora = c.get('attention_q_lora_dim', c.get('q_lora_rank'))
    kv_lora = c.get('attention_kv_lora_dim', c.get('kv_lora_rank'))
    nope = c.get('attention_qk_dim', c.get('qk_nope_head_dim'))
    rope = c.get('attention_qk_rope_dim', c.get('qk_rope_head_dim'))
    v = c.get('attention_v_dim', c.get('v_head_dim'))
    if q_lora:
        q = [linear(p + 'q_a_proj', q_lora, h), norm(p + 'q_a_layernorm', q_lora),
             linear(p + 'q_b_proj', heads * (nope + rope), q_lora, 1.5)]
    else:
        q = [linear(p + 'q_proj', heads * (nope + rope), h, 1.5)]
    return q + [linear(p + 'kv_a_proj_with_mqa', kv_lora + rope, h, 1.2),
                norm(p + 'kv_a_layernorm', kv_lora),
                linear(p + 'kv_b_proj', heads * (nope + v), kv_lora, 1.2),
                linear(p + 'o_proj', h, heads * v)]


def gqa_attention(p, c):
    h, heads, kv = c['hidden_size'], c['num_attention_heads'], c['num_key_value_heads']
    d = c.get('head_dim', h // heads)
    out = []
    for name, n in (('q_proj', heads * d), ('k_proj', kv * d), ('v_proj', kv * d)):
        out.append(linear(p + name, n, h, 1.3))
        if c['model_type'] == 'qwen2' or c.get('bias'):
            out.append(Tensor(p + name + '.bias', (n,), 0.3))
    if c['model_type'].startswith('qwen3'):
        out += [norm(p + 'q_norm', d), norm(p + 'k_norm', d)]
    out.append(linear(p + 'o_proj', h, heads * d))
    if c.get('bias'):  # PanguEmbedded
        out.append(Tensor(p + 'o_proj.bias', (h,), 0.3))
    return out


def moe(p, c):
    h, inter = c['hidden_size'], c['moe_intermediate_size']
    n = c.get('num_routed_experts', c.get('n_routed_experts', c.get('num_experts')))
    shared = c.get('num_shared_experts', c.get('n_shared_experts', 0))
    out = [linear(p + 'gate', n, h, 2.0)]
    if c.get('topk_method') == 'noaux_tc':
        out.append(Tensor(p + 'gate.e_score_correction_bias', (n,), 0.1, dtype='F32'))
    elif c.get('router_enable_expert_bias'):
        # Both names occur in published pangu checkpoints: each key dialect here uses one.
        name = 'e_score_correction_bias'
        name = name if 'num_routed_experts' in c else 'gate.' + name
        out.append(Tensor(p + name, (n,), 0.1, dtype='F32'))
    for e in range(n):
        out += mlp(f'{p}experts.{e}.', h, inter)
    if shared:
        out += mlp(p + 'shared_experts.', h, shared * inter)
    return out


def layer(i, c, is_moe):
    p, h = f'model.layers.{i}.', c['hidden_size']
    is_mla = 'kv_lora_rank' in c or 'attention_kv_lora_dim' in c
    out = [norm(p + 'input_layernorm', h), norm(p + 'post_attention_layernorm', h)]
    if c.get('sandwich_norm'):
        out += [norm(p + 'pre_mlp_layernorm', h), norm(p + 'post_mlp_layernorm', h)]
    out += (mla_attention if is_mla else gqa_attention)(p + 'self_attn.', c)
    return out + (moe(p + 'mlp.', c) if is_moe else mlp(p + 'mlp.', h, c['intermediate_size']))


def mtp_layer(i, c):
    p, h, v = f'model.layers.{i}.', c['hidden_size'], c['vocab_size']
    return layer(i, c, True) + [
        Tensor(p + 'embed_tokens.weight', (v, h), 1.0), norm(p + 'enorm', h), norm(p + 'hnorm', h),
        linear(p + 'eh_proj', h, 2 * h), norm(p + 'shared_head.norm', h),
        linear(p + 'shared_head.head', v, h)]


def model_tensors(c):
    h, v, n = c['hidden_size'], c['vocab_size'], c['num_hidden_layers']
    has_moe = 'moe_intermediate_size' in c
    dense = c.get('num_dense_layers', c.get('first_k_dense_replace', 0)) if has_moe else n
    tied = c['tie_word_embeddings']
    # A tied embedding is the head too: small enough that logits stay near 1.
    out = [Tensor('model.embed_tokens.weight', (v, h), 1.5 / h ** 0.5 if tied else 1.0)]
    for i in range(n):
        out += layer(i, c, i >= dense)
    for i in range(c.get('num_mtp_layers', c.get('num_nextn_predict_layers', 0)) or 0):
        out += mtp_layer(n + i, c)
    out.append(norm('model.norm', h))
    if not tied:
        out.append(linear('lm_head', v, h, 1.5))
    return out


# ---------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------

class Source:
    """Normal deviates for slices of a tensor: drawn by (seed, name), or tiled for big models."""

    def __init__(self, seed, tiled):
        self.seed = seed
        self.small = {}  # quantized tensors that were made along with larger ones
        self.block = None
        if tiled:
            rng = np.random.default_rng(seed)
            self.block = rng.standard_normal(SLICE + 65536, dtype=np.float32)

    def rows(self, tensor):
        """Yields float32 row slices of the tensor, in order."""
        rng = np.random.default_rng([self.seed, zlib.crc32(tensor.name.encode())])
        n_rows = tensor.shape[0]
        width = tensor.elements() // n_rows
        step = max(1, SLICE // width)
        for first in range(0, n_rows, step):
            n = min(step, n_rows - first) * width
            if self.block is None:
                x = rng.standard_normal(n, dtype=np.float32)
            else:
                at = int(rng.integers(65536))
                x = self.block[at:at + n]
            yield (x * np.float32(tensor.std) + np.float32(tensor.mean)).reshape(-1, width)


def dialect_bytes(tensor, source):
    """The stored bytes of a tensor of a Dialect. All of a layer's are made at once, but written in
    the file's order: the small ones are kept."""
    whole, suffix = tensor.quantized_from, tensor.name.rsplit('.', 1)[1]
    constant = tensor.dialect.constant(suffix, *whole.shape)
    if constant is not None:
        return constant.tobytes()
    if tensor.name in source.small:
        return source.small.pop(tensor.name)
    parts = tensor.dialect.tensors(np.concatenate(list(source.rows(whole))))
    base = whole.name[:-len('weight')]
    for i, (other, x) in enumerate(parts.items()):
        if i > 0 and other != suffix:
            source.small[base + other] = x.tobytes()
    return parts[suffix].tobytes()


def encode(x, dtype):
    if dtype == 'BF16':
        return to_bf16(x).tobytes()
    return x.astype({'F32': '<f4', 'F16': '<f2'}[dtype]).tobytes()


def row_scales(x):
    return np.maximum(np.abs(x).max(axis=1, keepdims=True) / np.float32(127), np.float32(1e-12))


def tensor_bytes(tensor, source):
    """Yields the stored bytes of a tensor in slices."""
    if tensor.dialect:
        yield dialect_bytes(tensor, source)
        return
    if tensor.quantized_from:
        for x in source.rows(tensor.quantized_from):
            yield row_scales(x).astype('<f4').tobytes()
        return
    for x in source.rows(tensor):
        if tensor.dtype == 'I8':
            yield np.clip(np.rint(x / row_scales(x)), -127, 127).astype(np.int8).tobytes()
        else:
            yield encode(x, tensor.dtype)


# ---------------------------------------------------------------------------------------------
# Dtypes and quantization
# ---------------------------------------------------------------------------------------------

def is_quantized(name, kv_a, kv_b):
    """Which linear layers openPangu's W8A8 release stores as INT8, and what others do too."""
    if name.endswith('kv_a_proj_with_mqa.weight'):
        return kv_a
    if name.endswith('kv_b_proj.weight'):
        return kv_b
    return name.endswith('_proj.weight') and not name.endswith('eh_proj.weight')


def dialect_parts(t, dialect):
    """What a layer's weight is stored as."""
    out = []
    for suffix, dtype, shape in dialect.parts(*t.shape):
        part = Tensor(t.name[:-len('weight')] + suffix, shape, 0.0, dtype=dtype)
        part.quantized_from, part.dialect = t, dialect
        out.append(part)
    return out


def assign_dtypes(tensors, dtype, kv_a=False, kv_b=False, dialect=None):
    """Sets every tensor's dtype; for W8A8 adds the scales, for a Dialect puts its tensors in place
    of the layers'."""
    out = []
    for t in tensors:
        if dialect and dialect.covers(t.name):
            out += dialect_parts(t, dialect)
            continue
        out.append(t)
        if dtype == 'W8A8' and is_quantized(t.name, kv_a, kv_b):
            t.dtype = 'I8'
            scale = Tensor(t.name + '_scale', (t.shape[0], 1), 0.0, dtype='F32')
            scale.quantized_from = t
            out.append(scale)
        elif t.dtype is None:
            t.dtype = 'BF16' if dtype == 'W8A8' or dialect else dtype
    return out


def unquantized(tensors):
    return sorted(t.name[:-len('.weight')] for t in tensors
                  if len(t.shape) == 2 and t.dtype not in ('I8', 'F8_E4M3')
                  and t.name.endswith('.weight') and 'embed_tokens' not in t.name)


def quantization_config(tensors):
    bits = {'num_bits': 8, 'type': 'int', 'symmetric': True}
    return {
        'quant_method': 'compressed-tensors', 'format': 'int-quantized',
        'quantization_status': 'compressed', 'ignore': unquantized(tensors),
        'config_groups': {'group_0': {
            'targets': ['Linear'],
            'weights': {**bits, 'strategy': 'channel', 'dynamic': False},
            'input_activations': {**bits, 'strategy': 'token', 'dynamic': True}}},
    }


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------

def write_safetensors(path, tensors, source):
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for t in tensors:
        header[t.name] = {'dtype': t.dtype, 'shape': list(t.shape),
                          'data_offsets': [offset, offset + t.bytes()]}
        offset += t.bytes()
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(text)))
        f.write(text)
        for t in tensors:
            for chunk in tensor_bytes(t, source):
                f.write(chunk)


def split_shards(tensors, n):
    """n runs of tensors of about equal size, none empty."""
    total, shards, done = sum(t.bytes() for t in tensors), [[] for _ in range(n)], 0
    for i, t in enumerate(tensors):
        at = min(n - 1, done * n // total)
        at = max(at, n - (len(tensors) - i)) if len(tensors) >= n else at
        shards[at].append(t)
        done += t.bytes()
    return [s for s in shards if s]


def write_weights(out, tensors, n_shards, order, source):
    def library_order(t):  # as the safetensors library does: widest dtype first, then by name
        return (-DTYPE_BYTES[t.dtype], t.name)

    def name_order(t):
        return t.name

    key = library_order if order == 'library' else name_order
    if n_shards == 1:
        write_safetensors(os.path.join(out, 'model.safetensors'), sorted(tensors, key=key), source)
        return
    shards = split_shards(tensors, n_shards)
    weight_map = {}
    for i, shard in enumerate(shards):
        name = f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
        write_safetensors(os.path.join(out, name), sorted(shard, key=key), source)
        weight_map.update({t.name: name for t in shard})
    total = sum(t.bytes() for t in tensors)
    write_json(os.path.join(out, 'model.safetensors.index.json'),
               {'metadata': {'total_size': total}, 'weight_map': weight_map})


def write_json(path, value):
    with open(path, 'w', encoding='utf-8') as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.write('\n')


def add_tokenizer(out, source_dir, config):
    """Copies a tokenizer, grows the vocabulary to hold it, and takes over its special ids."""
    with open(os.path.join(source_dir, 'tokenizer.json'), encoding='utf-8') as f:
        tok = json.load(f)
    ids = list(tok['model']['vocab'].values()) + [a['id'] for a in tok['added_tokens']]
    config['vocab_size'] = max(config['vocab_size'], (max(ids) + 64) // 64 * 64)
    for name in ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json'):
        path = os.path.join(source_dir, name)
        if os.path.exists(path):
            shutil.copy(path, out)
    path = os.path.join(source_dir, 'generation_config.json')
    if os.path.exists(path):
        with open(path, encoding='utf-8') as f:
            generation = json.load(f)
        config.update({k: v for k, v in generation.items() if k.endswith('_token_id')})


def make(out, preset, dtype='BF16', seed=0, shards=1, tokenizer=None, order='library',
         quantize_kv_a=False, overrides=None, group=128, quantize_kv_b=False):
    """Writes the checkpoint folder `out`; returns the config."""
    config = {**PRESETS[preset], **(overrides or {})}
    config['torch_dtype'] = {'F32': 'float32', 'F16': 'float16'}.get(dtype, 'bfloat16')
    config.update({'bos_token_id': None, 'eos_token_id': config['vocab_size'] - 1})
    os.makedirs(out, exist_ok=True)
    if tokenizer:
        add_tokenizer(out, tokenizer, config)
    dialect = Dialect(dtype, group) if dtype in DIALECTS else None
    tensors = assign_dtypes(model_tensors(config), dtype, quantize_kv_a, quantize_kv_b, dialect)
    if dtype == 'W8A8':
        config['quantization_config'] = quantization_config(tensors)
    elif dialect:
        config['quantization_config'] = dialect.config(unquantized(tensors))
    n = sum(t.elements() for t in model_tensors(config))
    write_weights(out, tensors, shards, order, Source(seed, n > TILED_FROM))
    write_json(os.path.join(out, 'config.json'), config)
    return config


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('out', nargs='?', help='folder to write')
    ap.add_argument('--list', action='store_true', help='print the presets')
    ap.add_argument('--preset', choices=sorted(PRESETS))
    ap.add_argument('--dtype', default='BF16', choices=['F32', 'F16', 'BF16', 'W8A8', *DIALECTS])
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--shards', type=int, default=1, help='files to split the weights into')
    ap.add_argument('--tokenizer', metavar='DIR', help='copy the tokenizer files of DIR')
    ap.add_argument('--order', default='library', choices=['library', 'name'],
                    help='of tensors in a file; name order leaves some of them unaligned')
    ap.add_argument('--quantize-kv-a', action='store_true',
                    help='W8A8: kv_a_proj_with_mqa in INT8 too')
    ap.add_argument('--quantize-kv-b', action='store_true', help='W8A8: kv_b_proj in INT8 too')
    ap.add_argument('--group', type=int, default=128,
                    help='INT4: inputs per scale; -1: all of a row')
    ap.add_argument('--set', action='append', default=[], metavar='KEY=JSON',
                    help='override a config value')
    args = ap.parse_args()
    if args.list:
        for name, config in PRESETS.items():
            n = sum(t.elements() for t in model_tensors(config))
            print(f'{name:26} {n / 1e6:10.2f}M parameters')
        return 0
    if not args.out or not args.preset:
        ap.error('OUT_DIR and --preset are needed (or --list)')
    if args.shards < 1:
        ap.error('--shards: at least 1')
    overrides = {k: json.loads(v) for k, v in (s.split('=', 1) for s in args.set)}
    make(args.out, args.preset, args.dtype, args.seed, args.shards, args.tokenizer, args.order,
         args.quantize_kv_a, overrides, args.group, args.quantize_kv_b)
    return 0


if __name__ == '__main__':
    sys.exit(main())
