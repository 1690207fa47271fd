"""Writes a Hugging Face checkpoint as GGUF, for the comparison and the race with llama.cpp.

    gguf.py DIR OUT.gguf [--type F32|Q8_0|Q4_0]

No tokenizer goes in ("no_vocab"): both sides are given token ids. The MTP layer is left out.
F32 keeps every value; Q8_0 and Q4_0 (blocks of 32, one float16 scale) are for benchmarks and
quantize what llama.cpp's own tool would: all matrices but the router's. (For Q4_0 that tool keeps
some matrices, the head among them, at six bits; here all have four, which is faster.)
"""
import argparse
import json
import os
import struct
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from safetensors_np import Tensors  # noqa: E402

ALIGNMENT = 32
GGML_F32, GGML_Q4_0, GGML_Q8_0 = 0, 2, 8
TYPES = {'F32': GGML_F32, 'Q4_0': GGML_Q4_0, 'Q8_0': GGML_Q8_0}
ARCHITECTURES = {'deepseek_v2': 'deepseek2', 'deepseek_v3': 'deepseek2', 'kimi_k2': 'deepseek2',
                 'qwen2': 'qwen2', 'qwen3': 'qwen3', 'qwen3_moe': 'qwen3moe'}
SOFTMAX, SIGMOID = 1, 2  # expert_gating_func


# ---------------------------------------------------------------------------------------------
# The container
# ---------------------------------------------------------------------------------------------

def gguf_string(text):
    data = text.encode()
    return struct.pack('<Q', len(data)) + data


def gguf_value(value):
    """Type code and value."""
    if isinstance(value, bool):
        return struct.pack('<I?', 7, value)
    if isinstance(value, int):
        return struct.pack('<II', 4, value)
    if isinstance(value, float):
        return struct.pack('<If', 6, value)
    return struct.pack('<I', 8) + gguf_string(value)


def q8_0(x):
    """float32 [..., 32 * n] -> bytes of n blocks a row: float16 scale, 32 int8"""
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    out = np.empty(len(blocks), np.dtype([('d', '<f2'), ('q', 'i1', 32)]))
    out['d'] = scale[:, 0]
    out['q'] = np.rint(blocks * inverse)
    return out.tobytes()


def q4_0(x):
    """float32 [..., 32 * n] -> bytes of n blocks a row: float16 scale, 16 bytes of two values each,
    element j below element j + 16"""
    blocks = x.reshape(-1, 32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = extreme / np.float32(-8)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    q = np.clip(np.floor(blocks * inverse + np.float32(8.5)), 0, 15).astype(np.uint8)
    out = np.empty(len(blocks), np.dtype([('d', '<f2'), ('q', 'u1', 16)]))
    out['d'] = scale[:, 0]
    out['q'] = q[:, :16] | q[:, 16:] << 4
    return out.tobytes()


# Of a type: bytes that 32 elements take, and what makes them.
ENCODERS = {GGML_F32: (128, lambda x: x.tobytes()), GGML_Q8_0: (34, q8_0), GGML_Q4_0: (18, q4_0)}


class Writer:
    """Collects keys and tensors (made when written, so memory stays at one tensor)."""

    def __init__(self):
        self.keys = {}
        self.tensors = []  # (name, shape, type, function that returns float32)

    def add(self, name, shape, make, ggml_type):
        if ggml_type != GGML_F32 and (len(shape) < 2 or shape[-1] % 32):
            ggml_type = GGML_F32
        self.tensors.append((name, tuple(shape), ggml_type, make))

    def write(self, path):
        infos, offset = b'', 0
        for name, shape, ggml_type, _ in self.tensors:
            infos += gguf_string(name) + struct.pack('<I', len(shape))
            infos += b''.join(struct.pack('<Q', n) for n in reversed(shape))
            infos += struct.pack('<IQ', ggml_type, offset)
            n = int(np.prod(shape))
            size = n * ENCODERS[ggml_type][0] // 32
            offset += size + -size % ALIGNMENT
        head = struct.pack('<4sIQQ', b'GGUF', 3, len(self.tensors), len(self.keys))
        head += b''.join(gguf_string(k) + gguf_value(v) for k, v in self.keys.items()) + infos
        with open(path, 'wb') as f:
            f.write(head + b'\0' * (-len(head) % ALIGNMENT))
            for name, shape, ggml_type, make in self.tensors:
                x = np.ascontiguousarray(make(), np.float32)
                if x.shape != shape:
                    raise ValueError(f'{name}: {x.shape}, expected {shape}')
                for part in x.reshape(-1, shape[-1]) if x.size < 1 << 16 else np.array_split(
                        x.reshape(-1, shape[-1]), max(1, x.size >> 22)):
                    f.write(ENCODERS[ggml_type][1](part))
                f.write(b'\0' * (-f.tell() % ALIGNMENT))


# ---------------------------------------------------------------------------------------------
# The models
# ---------------------------------------------------------------------------------------------

class Converter:
    def __init__(self, folder, ggml_type):
        with open(os.path.join(folder, 'config.json'), encoding='utf-8') as f:
            self.c = json.load(f)
        self.tensors = Tensors(folder)
        self.type = ggml_type
        self.w = Writer()
        self.arch = ARCHITECTURES[self.c['model_type']]
        self.is_mla = self.arch == 'deepseek2'

    def shape(self, name):
        return tuple(self.tensors.where[name][2])

    def load(self, name):
        """float32, W8A8 scales applied"""
        x = self.tensors.f32(name)
        return x * self.tensors.f32(name + '_scale') if name + '_scale' in self.tensors else x

    def copy(self, to, name, ggml_type=None):
        self.w.add(to, self.shape(name), lambda: self.load(name),
                   self.type if ggml_type is None else ggml_type)

    def key(self, name, value):
        self.w.keys[f'{self.arch}.{name}'] = value

    def keys(self):
        c = self.c
        self.w.keys['general.architecture'] = self.arch
        self.w.keys['tokenizer.ggml.model'] = 'no_vocab'
        self.key('vocab_size', c['vocab_size'])
        self.key('context_length', min(c['max_position_embeddings'], 4096))
        self.key('embedding_length', c['hidden_size'])
        self.key('block_count', c['num_hidden_layers'])
        self.key('feed_forward_length', c['intermediate_size'])
        self.key('attention.head_count', c['num_attention_heads'])
        self.key('attention.layer_norm_rms_epsilon', float(c['rms_norm_eps']))
        self.key('rope.freq_base', float(c['rope_theta']))
        (self.mla_keys if self.is_mla else self.gqa_keys)()
        if 'moe_intermediate_size' in c:
            self.key('expert_count', c.get('n_routed_experts', c.get('num_experts')))
            self.key('expert_used_count', c['num_experts_per_tok'])
            self.key('expert_feed_forward_length', c['moe_intermediate_size'])

    def gqa_keys(self):
        c = self.c
        d = c.get('head_dim', c['hidden_size'] // c['num_attention_heads'])
        self.key('attention.head_count_kv', c['num_key_value_heads'])
        self.key('attention.key_length', d)
        self.key('attention.value_length', d)
        self.key('rope.dimension_count', d)

    def mla_keys(self):
        c = self.c
        kv_lora, rope = c['kv_lora_rank'], c['qk_rope_head_dim']
        self.key('attention.head_count_kv', 1)
        if c.get('q_lora_rank'):
            self.key('attention.q_lora_rank', c['q_lora_rank'])
        self.key('attention.kv_lora_rank', kv_lora)
        self.key('attention.key_length', kv_lora + rope)
        self.key('attention.value_length', kv_lora)
        self.key('attention.key_length_mla', c['qk_nope_head_dim'] + rope)
        self.key('attention.value_length_mla', c['v_head_dim'])
        self.key('rope.dimension_count', rope)
        self.key('leading_dense_block_count', c['first_k_dense_replace'])
        self.key('expert_shared_count', c['n_shared_experts'])
        self.key('expert_weights_scale', float(c['routed_scaling_factor']))
        self.key('expert_weights_norm', c['norm_topk_prob'])
        self.key('expert_gating_func', SIGMOID if c['scoring_func'] == 'sigmoid' else SOFTMAX)
        if c.get('n_group', 1) > 1:
            self.key('expert_group_count', c['n_group'])
            self.key('expert_group_used_count', c['topk_group'])
        y = c.get('rope_scaling')
        if y:
            self.key('rope.scaling.type', 'yarn')
            self.key('rope.scaling.factor', float(y['factor']))
            self.key('rope.scaling.original_context_length', y['original_max_position_embeddings'])
            # A tenth of mscale_all_dim, by the convention of published GGUF files.
            self.key('rope.scaling.yarn_log_multiplier', 0.1 * y['mscale_all_dim'])

    def mla(self, to, p):
        c = self.c
        heads, kv_lora = c['num_attention_heads'], c['kv_lora_rank']
        nope, v = c['qk_nope_head_dim'], c['v_head_dim']
        for a, b in (('attn_q', 'q_proj'), ('attn_q_a', 'q_a_proj'), ('attn_q_b', 'q_b_proj'),
                     ('attn_q_a_norm', 'q_a_layernorm'), ('attn_kv_a_norm', 'kv_a_layernorm'),
                     ('attn_kv_a_mqa', 'kv_a_proj_with_mqa'), ('attn_output', 'o_proj')):
            if f'{p}{b}.weight' in self.tensors:
                self.copy(f'{to}{a}.weight', f'{p}{b}.weight')

        def kv_b():
            return self.load(p + 'kv_b_proj.weight').reshape(heads, nope + v, kv_lora)

        self.w.add(to + 'attn_k_b.weight', (heads, kv_lora, nope),
                   lambda: kv_b()[:, :nope].transpose(0, 2, 1), self.type)
        self.w.add(to + 'attn_v_b.weight', (heads, v, kv_lora), lambda: kv_b()[:, nope:], self.type)

    def gqa(self, to, p):
        for a, b in (('attn_q', 'q_proj'), ('attn_k', 'k_proj'), ('attn_v', 'v_proj'),
                     ('attn_output', 'o_proj'), ('attn_q_norm', 'q_norm'),
                     ('attn_k_norm', 'k_norm')):
            for part in ('weight', 'bias'):
                if f'{p}{b}.{part}' in self.tensors:
                    self.copy(f'{to}{a}.{part}', f'{p}{b}.{part}')

    def moe(self, to, p):
        n = self.c.get('n_routed_experts', self.c.get('num_experts'))
        self.copy(to + 'ffn_gate_inp.weight', p + 'gate.weight', GGML_F32)
        if p + 'gate.e_score_correction_bias' in self.tensors:
            self.copy(to + 'exp_probs_b.bias', p + 'gate.e_score_correction_bias')
        for kind in ('gate', 'up', 'down'):
            names = [f'{p}experts.{e}.{kind}_proj.weight' for e in range(n)]
            self.w.add(f'{to}ffn_{kind}_exps.weight', (n, *self.shape(names[0])),
                       lambda names=names: np.stack([self.load(x) for x in names]), self.type)
            shared = f'{p}shared_experts.{kind}_proj.weight'
            if shared in self.tensors:
                self.copy(f'{to}ffn_{kind}_shexp.weight', shared)

    def convert(self, path):
        self.keys()
        self.copy('token_embd.weight', 'model.embed_tokens.weight')
        self.copy('output_norm.weight', 'model.norm.weight')
        if 'lm_head.weight' in self.tensors:
            self.copy('output.weight', 'lm_head.weight')
        for i in range(self.c['num_hidden_layers']):
            to, p = f'blk.{i}.', f'model.layers.{i}.'
            self.copy(to + 'attn_norm.weight', p + 'input_layernorm.weight')
            self.copy(to + 'ffn_norm.weight', p + 'post_attention_layernorm.weight')
            (self.mla if self.is_mla else self.gqa)(to, p + 'self_attn.')
            if p + 'mlp.gate.weight' in self.tensors:
                self.moe(to, p + 'mlp.')
            else:
                for kind in ('gate', 'up', 'down'):
                    self.copy(f'{to}ffn_{kind}.weight', f'{p}mlp.{kind}_proj.weight')
        self.w.write(path)


def convert(folder, path, ggml_type=GGML_F32):
    Converter(folder, ggml_type).convert(path)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('dir')
    ap.add_argument('out')
    ap.add_argument('--type', choices=sorted(TYPES), default='F32')
    args = ap.parse_args()
    convert(args.dir, args.out, TYPES[args.type])
    return 0


if __name__ == '__main__':
    sys.exit(main())
