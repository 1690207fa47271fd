#!/usr/bin/python3
"""A forward pass in float64 numpy for every supported family: the oracle of the engine's logits.

    forward.py DIR --tokens 1,2,3|@FILE [--kv-dtype bf16] [--out x.npy] [--report]

Written from the published definitions of the architectures alone, without a look at the engine,
one plain formula at a time; slow and simple on purpose. Whole sequence at once, no KV cache.
Inputs of W8A8 and INT4 layers are rounded per token (absmax/127, half to even); FP8 and act-order
layers get them as they are. Those of kv_b_proj are rounded for the tokens of a prompt that attend
expanded (include/starling/model.h says which); the others attend in latent space, where no token is
multiplied with kv_b_proj. With --kv-dtype bf16, what a KV cache would hold is
rounded to bfloat16: MLA's normed latent and rotated key, GQA's rotated key and its value.
"""
import argparse
import json
import os
import sys

import numpy as np

import weights_np
from safetensors_np import Tensors


STEPS_IN_PROMPT = 32  # at least, of tokens that attend expanded


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def silu(x):
    return x / (1.0 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def round_to_bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    u = (u + (((u >> 16) & 1) + 0x7fff)) & np.uint32(0xffff0000)
    return u.view(np.float32).astype(np.float64)


def causal_attention(q, k, v, scale):
    """q, k: [heads, T, d], v: [heads, T, dv] -> [T, heads * dv]"""
    t = q.shape[1]
    scores = q @ k.transpose(0, 2, 1) * scale
    scores = np.where(np.tril(np.ones((t, t), bool)), scores, -np.inf)
    return (softmax(scores) @ v).transpose(1, 0, 2).reshape(t, -1)


def choose(scores, k):
    """Indices of the k best per row, best first, the lower index on ties; and, per row, the gap
    between the last chosen and the first left out."""
    order = np.argsort(-scores, axis=-1, kind='stable')
    ranked = np.take_along_axis(scores, order, -1)
    with np.errstate(invalid='ignore'):  # -inf - -inf: groups that are out
        gap = ranked[:, k - 1] - ranked[:, k] if k < scores.shape[1] else np.inf
    return order[:, :k], gap


class Rope:
    """cos and sin of every position, with YaRN where the config asks for it."""

    def __init__(self, config, dim, interleaved):
        self.interleaved = interleaved
        theta = config.get('rope_theta', 10000.0)
        self.inv_freq = theta ** (-np.arange(0, dim, 2) / dim)
        self.amplitude = 1.0
        self.softmax_factor = 1.0
        yarn = config.get('rope_scaling')
        if yarn:
            assert yarn.get('type', yarn.get('rope_type')) == 'yarn', yarn
            self._yarn(yarn, dim, theta)

    def _yarn(self, y, dim, theta):
        factor, original = y['factor'], y['original_max_position_embeddings']

        def correction_dim(rotations):
            return dim * np.log(original / (rotations * 2 * np.pi)) / (2 * np.log(theta))

        def m(scale):
            return 0.1 * scale * np.log(factor) + 1.0

        low = max(np.floor(correction_dim(y.get('beta_fast', 32))), 0)
        high = min(np.ceil(correction_dim(y.get('beta_slow', 1))), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
        self.inv_freq = self.inv_freq * (1 - ramp) + self.inv_freq / factor * ramp
        mscale, all_dim = y.get('mscale', 1.0), y.get('mscale_all_dim', 0.0)
        self.amplitude = m(mscale) / m(all_dim)
        self.softmax_factor = m(all_dim) ** 2

    def __call__(self, x):
        """x: [..., T, dim], rotated by position 0..T-1"""
        angle = np.arange(x.shape[-2])[:, None] * self.inv_freq
        cos, sin = np.cos(angle) * self.amplitude, np.sin(angle) * self.amplitude
        if self.interleaved:
            a, b = x[..., 0::2], x[..., 1::2]
        else:
            a, b = np.split(x, 2, -1)
        rotated = (a * cos - b * sin, b * cos + a * sin)
        if self.interleaved:
            return np.stack(rotated, -1).reshape(x.shape)
        return np.concatenate(rotated, -1)


class Shape:
    """The numbers of config.json under one name each."""

    def __init__(self, c):
        def get(*names, default=None):
            for name in names:
                if c.get(name) is not None:
                    return c[name]
            return default

        self.family = c['model_type']
        self.is_mla = self.family in ('pangu_ultra_moe', 'deepseek_v2', 'deepseek_v3', 'kimi_k2')
        self.n_layers, self.n_heads = c['num_hidden_layers'], c['num_attention_heads']
        self.n_kv_heads = get('num_key_value_heads', default=self.n_heads)
        self.head_dim = get('head_dim', default=c['hidden_size'] // self.n_heads)
        self.eps, self.sandwich = c['rms_norm_eps'], bool(c.get('sandwich_norm'))
        self.tied = bool(c.get('tie_word_embeddings'))
        self.q_lora = get('q_lora_rank', 'attention_q_lora_dim')
        self.kv_lora = get('kv_lora_rank', 'attention_kv_lora_dim')
        self.nope = get('qk_nope_head_dim', 'attention_qk_dim')
        self.rope = get('qk_rope_head_dim', 'attention_qk_rope_dim')
        self.v = get('v_head_dim', 'attention_v_dim')
        self.n_experts = get('n_routed_experts', 'num_routed_experts', 'num_experts', default=0)
        self.n_shared = get('n_shared_experts', 'num_shared_experts', default=0)
        self.top_k = get('num_experts_per_tok', default=0)
        self.n_dense = get('first_k_dense_replace', 'num_dense_layers', default=0)
        self.scoring = 'sigmoid' if self.family == 'pangu_ultra_moe' else c.get('scoring_func',
                                                                                'softmax')
        self.renorm = bool(c.get('norm_topk_prob', False))
        self.scaling = get('routed_scaling_factor', default=1.0)
        self.method = c.get('topk_method', 'greedy')
        self.n_group, self.topk_group = get('n_group', default=1), get('topk_group', default=1)


class Model:
    def __init__(self, folder, kv_dtype='f32'):
        self.stored = round_to_bf16 if kv_dtype == 'bf16' else lambda x: x
        with open(os.path.join(folder, 'config.json'), encoding='utf-8') as f:
            self.config = json.load(f)
        self.s = Shape(self.config)
        self.tensors = Tensors(folder)
        self.integer_kv_b = any(
            '.kv_b_proj.' in name
            and (name.endswith(('.weight_packed', '.qweight'))
                 or (name.endswith('.weight') and dtype == 'I8'))
            for name, (_, dtype, _) in self.tensors.where.items())
        self.cache, self.matrices = {}, {}
        dim = self.s.rope if self.s.is_mla else self.s.head_dim
        self.rope = Rope(self.config, dim, interleaved=self.s.is_mla)
        # How near each position came to another outcome, for judging a float32 result: the gap
        # between a chosen expert and one left out; the distance to a rounding tie in W8A8 layers,
        # in steps. rows: the positions of the rows that linear() is given.
        self.router_gap = self.tie_distance = self.rows = None
        self.until = 0  # positions below attend expanded

    def weight(self, name):
        if name not in self.cache:
            self.cache[name] = self.tensors.f64(name)
        return self.cache[name]

    def layer_weight(self, name):
        """(matrix, whether its inputs are rounded to 8 bits per token)"""
        if name not in self.matrices:
            known = weights_np.read(self.tensors, self.config.get('quantization_config'), name)
            if not known:
                known = self.weight(name + '.weight'), name + '.weight_scale' in self.tensors
                if known[1]:
                    known = known[0] * self.weight(name + '.weight_scale'), True
            self.matrices[name] = known
        return self.matrices[name]

    def rounded(self, x, rows):
        """x rounded to 8 bits per token; rows: its positions."""
        scale = np.maximum(np.abs(x).max(-1, keepdims=True) / 127, 1e-12)
        q = np.clip(np.rint(x / scale), -127, 127)
        distance = np.abs(np.abs(x / scale) % 1 - 0.5).min(-1)
        self.tie_distance[rows] = np.minimum(self.tie_distance[rows], distance)
        return q * scale

    def linear(self, name, x, float_inputs=False):
        w, rounds = self.layer_weight(name)
        if rounds and not float_inputs:
            x = self.rounded(x, self.rows)
        y = x @ w.T
        if name + '.bias' in self.tensors:
            y = y + self.weight(name + '.bias')
        return y

    def norm(self, name, x):
        return rms_norm(x, self.weight(name + '.weight'), self.s.eps)

    def heads(self, x, n):
        """[T, n * d] -> [n, T, d]"""
        return x.reshape(x.shape[0], n, -1).transpose(1, 0, 2)

    def expanded_until(self, n):
        """Positions below attend expanded, in a prompt of n tokens."""
        s = self.s
        if not s.is_mla or s.nope + s.v >= 2 * s.kv_lora:
            return 0
        if self.integer_kv_b and 64 <= n < 1024:
            return n - 1
        step = 16
        while step < 256 and 2 * step <= n / STEPS_IN_PROMPT:
            step *= 2
        return (n - 1) // step * step

    def mla(self, p, x):
        s = self.s
        if s.q_lora:
            q = self.linear(p + 'q_b_proj', self.norm(p + 'q_a_layernorm',
                                                      self.linear(p + 'q_a_proj', x)))
        else:
            q = self.linear(p + 'q_proj', x)
        q_nope, q_rope = np.split(self.heads(q, s.n_heads), [s.nope], -1)
        latent, k_rope = np.split(self.linear(p + 'kv_a_proj_with_mqa', x), [s.kv_lora], -1)
        latent = self.stored(self.norm(p + 'kv_a_layernorm', latent))
        k_rope = np.broadcast_to(self.stored(self.rope(k_rope)), (s.n_heads, *k_rope.shape))
        q = np.concatenate([q_nope, self.rope(q_rope)], -1)
        scale = (s.nope + s.rope) ** -0.5 * self.rope.softmax_factor

        def attend(latent):
            kv = self.linear(p + 'kv_b_proj', latent, float_inputs=True)
            k_nope, v = np.split(self.heads(kv, s.n_heads), [s.nope], -1)
            return causal_attention(q, np.concatenate([k_nope, k_rope], -1), v, scale)

        out = attend(latent)
        if self.until and self.layer_weight(p + 'kv_b_proj')[1]:
            latent[:self.until] = self.rounded(latent[:self.until], slice(self.until))
            out[:self.until] = attend(latent)[:self.until]
        return self.linear(p + 'o_proj', out)

    def gqa(self, p, x):
        s = self.s
        q = self.heads(self.linear(p + 'q_proj', x), s.n_heads)
        k = self.heads(self.linear(p + 'k_proj', x), s.n_kv_heads)
        v = self.heads(self.linear(p + 'v_proj', x), s.n_kv_heads)
        if s.family.startswith('qwen3'):
            q, k = self.norm(p + 'q_norm', q), self.norm(p + 'k_norm', k)
        group = s.n_heads // s.n_kv_heads
        k = np.repeat(self.stored(self.rope(k)), group, 0)
        v = np.repeat(self.stored(v), group, 0)
        return self.linear(p + 'o_proj',
                           causal_attention(self.rope(q), k, v, s.head_dim ** -0.5))

    def mlp(self, p, x):
        return self.linear(p + 'down_proj',
                           silu(self.linear(p + 'gate_proj', x)) * self.linear(p + 'up_proj', x))

    def route(self, p, x):
        """Returns experts [T, top_k] and their weights."""
        s = self.s
        scores = self.linear(p + 'gate', x)
        scores = sigmoid(scores) if s.scoring == 'sigmoid' else softmax(scores)
        biased = scores
        for name in (p + 'gate.e_score_correction_bias', p + 'e_score_correction_bias'):
            if name in self.tensors:
                biased = scores + self.weight(name)  # chooses; the weights stay unbiased
        if s.n_group > 1 and s.method != 'greedy':
            groups = biased.reshape(len(x), s.n_group, -1)
            if s.method == 'noaux_tc':     # V3: sum of the group's two best
                group_score = np.sort(groups, -1)[..., -2:].sum(-1)
            else:                          # V2: the group's best
                group_score = groups.max(-1)
            kept, gap = choose(group_score, s.topk_group)
            self.router_gap = np.fmin(self.router_gap, gap)
            keep = np.zeros(group_score.shape, bool)
            np.put_along_axis(keep, kept, True, -1)
            biased = np.where(keep[..., None], groups, -np.inf).reshape(biased.shape)
        chosen, gap = choose(biased, s.top_k)
        self.router_gap = np.fmin(self.router_gap, gap)
        weights = np.take_along_axis(scores, chosen, -1)
        if s.renorm:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        return chosen, weights * s.scaling

    def moe(self, p, x):
        chosen, weights = self.route(p, x)
        y = np.zeros_like(x)
        for e in np.unique(chosen):
            token, slot = np.nonzero(chosen == e)
            self.rows = token
            y[token] += weights[token, slot, None] * self.mlp(f'{p}experts.{e}.', x[token])
        self.rows = slice(None)
        if self.s.n_shared:
            y = y + self.mlp(p + 'shared_experts.', x)
        return y

    def layer(self, i, x):
        s, p = self.s, f'model.layers.{i}.'
        attention = self.mla if s.is_mla else self.gqa
        is_moe = s.n_experts and i >= s.n_dense
        feed_forward = self.moe if is_moe else self.mlp
        a = attention(p + 'self_attn.', self.norm(p + 'input_layernorm', x))
        if s.sandwich:
            h = x + self.norm(p + 'post_attention_layernorm', a)
            m = feed_forward(p + 'mlp.', self.norm(p + 'pre_mlp_layernorm', h))
            return h + self.norm(p + 'post_mlp_layernorm', m)
        h = x + a
        return h + feed_forward(p + 'mlp.', self.norm(p + 'post_attention_layernorm', h))

    def forward(self, tokens):
        """Logits [T, vocab] in float64, of a prompt."""
        self.until = self.expanded_until(len(tokens))
        self.router_gap = np.full(len(tokens), np.inf)
        self.tie_distance, self.rows = self.router_gap.copy(), slice(None)
        x = self.weight('model.embed_tokens.weight')[np.asarray(tokens)]
        for i in range(self.s.n_layers):
            x = self.layer(i, x)
        x = self.norm('model.norm', x)
        if self.s.tied:
            return x @ self.weight('model.embed_tokens.weight').T
        return self.linear('lm_head', x)


def parse_tokens(text):
    if text.startswith('@'):
        with open(text[1:], encoding='utf-8') as f:
            text = f.read()
    return [int(t) for t in text.replace(',', ' ').split()]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('dir', help='checkpoint folder')
    ap.add_argument('--tokens', required=True, help='ids separated by commas, or @FILE')
    ap.add_argument('--kv-dtype', choices=['f32', 'bf16'], default='f32')
    ap.add_argument('--out', help='write float32 [T, vocab] here')
    ap.add_argument('--report', action='store_true', help="print the logits' size and router gap")
    args = ap.parse_args()
    model = Model(args.dir, args.kv_dtype)
    logits = model.forward(parse_tokens(args.tokens))
    if args.out:
        np.save(args.out, logits.astype(np.float32))
    if args.report or not args.out:
        print(f'logits {logits.shape}, rms {np.sqrt((logits ** 2).mean()):.3f}, '
              f'argmax {logits.argmax(-1).tolist()}, min router gap {model.router_gap.min():.3g}, '
              f'min distance to a rounding tie {model.tie_distance.min():.3g}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
