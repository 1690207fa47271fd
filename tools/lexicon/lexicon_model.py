"""The lexicon's architecture in PyTorch: pangu_ultra_moe at 1/30,000 of its size.

MLA attention with interleaved RoPE, sandwich norms, a sigmoid router, one shared expert, and one
MTP layer that shares embedding and head with the trunk. Module names are the checkpoint's.
"""
import torch
from torch import nn
from torch.nn import functional as F

CONFIG = {
    'vocab_size': 4096, 'hidden_size': 256, 'num_hidden_layers': 6, 'num_nextn_predict_layers': 1,
    'intermediate_size': 768, 'moe_intermediate_size': 128, 'num_attention_heads': 8,
    'q_lora_rank': 96, 'kv_lora_rank': 64, 'qk_nope_head_dim': 32, 'qk_rope_head_dim': 16,
    'v_head_dim': 32, 'n_routed_experts': 32, 'n_shared_experts': 1, 'num_experts_per_tok': 4,
    'first_k_dense_replace': 1, 'routed_scaling_factor': 2.5, 'norm_topk_prob': True,
    'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'max_position_embeddings': 2048,
}


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


def rope(x, cos, sin):
    """x [..., T, d], pairs (2i, 2i + 1)"""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, h, eps = c['num_attention_heads'], c['hidden_size'], c['rms_norm_eps']
        self.nope, self.rope_dim = c['qk_nope_head_dim'], c['qk_rope_head_dim']
        self.v, self.kv_lora = c['v_head_dim'], c['kv_lora_rank']
        self.q_a_proj = linear(h, c['q_lora_rank'])
        self.q_a_layernorm = RMSNorm(c['q_lora_rank'], eps)
        self.q_b_proj = linear(c['q_lora_rank'], self.heads * (self.nope + self.rope_dim))
        self.kv_a_proj_with_mqa = linear(h, self.kv_lora + self.rope_dim)
        self.kv_a_layernorm = RMSNorm(self.kv_lora, eps)
        self.kv_b_proj = linear(self.kv_lora, self.heads * (self.nope + self.v))
        self.o_proj = linear(self.heads * self.v, h)

    def split_heads(self, x, width):
        """[B, T, heads * width] -> [B, heads, T, width]"""
        return x.view(*x.shape[:2], self.heads, width).transpose(1, 2)

    def forward(self, x, cos, sin, mask):
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_nope, q_rope = self.split_heads(q, self.nope + self.rope_dim).split(
            [self.nope, self.rope_dim], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.kv_lora, self.rope_dim], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent))
        k_nope, v = self.split_heads(kv, self.nope + self.v).split([self.nope, self.v], -1)
        k_rope = rope(k_rope[:, None], cos, sin).expand(-1, self.heads, -1, -1)
        q = torch.cat([q_nope, rope(q_rope, cos, sin)], -1)
        k = torch.cat([k_nope, k_rope], -1)
        scores = q @ k.transpose(-1, -2) * (self.nope + self.rope_dim) ** -0.5 + mask
        y = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.o_proj(y.reshape(*x.shape[:2], -1))


class MLP(nn.Module):
    def __init__(self, hidden, inter):
        super().__init__()
        self.gate_proj = linear(hidden, inter)
        self.up_proj = linear(hidden, inter)
        self.down_proj = linear(inter, hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """Routed and shared experts. In training, .aux is the load balancing loss of the last batch."""

    def __init__(self, c):
        super().__init__()
        h, inter, self.n = c['hidden_size'], c['moe_intermediate_size'], c['n_routed_experts']
        self.top_k, self.scaling = c['num_experts_per_tok'], c['routed_scaling_factor']
        self.gate = linear(h, self.n)
        self.experts = nn.ModuleList([MLP(h, inter) for _ in range(self.n)])
        self.shared_experts = MLP(h, inter * c['n_shared_experts'])
        self.aux = 0.0

    def balance_loss(self, scores, chosen):
        share = torch.bincount(chosen.reshape(-1), minlength=self.n).float()
        share = share * self.n / (self.top_k * scores.shape[0])
        return (share * (scores / (scores.sum(-1, keepdim=True) + 1e-9)).mean(0)).sum()

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        scores = torch.sigmoid(self.gate(x))
        weights, chosen = scores.topk(self.top_k, -1)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.scaling
        if self.training:
            self.aux = self.balance_loss(scores, chosen)
        # Rows grouped by expert, computed a group at a time, added back weighted.
        flat = chosen.reshape(-1)
        order = flat.argsort()
        token = order // self.top_k
        groups = x[token].split(torch.bincount(flat, minlength=self.n).tolist())
        y = torch.cat([self.experts[e](g) for e, g in enumerate(groups) if len(g)])
        y = y * weights.reshape(-1)[order][:, None]
        return self.shared_experts(x).index_add(0, token, y).reshape(shape)


class Layer(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        h, eps = c['hidden_size'], c['rms_norm_eps']
        self.self_attn = Attention(c)
        self.mlp = MLP(h, c['intermediate_size']) if dense else MoE(c)
        self.input_layernorm = RMSNorm(h, eps)
        self.post_attention_layernorm = RMSNorm(h, eps)
        self.pre_mlp_layernorm = RMSNorm(h, eps)
        self.post_mlp_layernorm = RMSNorm(h, eps)

    def forward(self, x, cos, sin, mask):
        a = self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = x + self.post_attention_layernorm(a)
        return x + self.post_mlp_layernorm(self.mlp(self.pre_mlp_layernorm(x)))


class MTPLayer(Layer):
    def __init__(self, c):
        super().__init__(c, dense=False)
        h, eps = c['hidden_size'], c['rms_norm_eps']
        self.enorm = RMSNorm(h, eps)
        self.hnorm = RMSNorm(h, eps)
        self.eh_proj = linear(2 * h, h)
        self.shared_head = nn.Module()
        self.shared_head.norm = RMSNorm(h, eps)


class Lexicon(nn.Module):
    def __init__(self, c=None):
        super().__init__()
        self.c = c = c or CONFIG
        self.n_layers = c['num_hidden_layers']
        self.embed_tokens = nn.Embedding(c['vocab_size'], c['hidden_size'])
        self.layers = nn.ModuleList(
            [Layer(c, i < c['first_k_dense_replace']) for i in range(self.n_layers)]
            + [MTPLayer(c)])
        self.norm = RMSNorm(c['hidden_size'], c['rms_norm_eps'])
        self.lm_head = linear(c['hidden_size'], c['vocab_size'])
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0, 0.02 if 'embed' in name else p.shape[1] ** -0.5 * 0.7)

    def rope_tables(self, n):
        d = self.c['qk_rope_head_dim']
        frequency = self.c['rope_theta'] ** (-torch.arange(0, d, 2).float() / d)
        angle = torch.arange(n).float()[:, None] * frequency
        return angle.cos(), angle.sin()

    def forward(self, ids):
        """ids [B, T] -> logits [B, T, vocab] and the MTP layer's [B, T - 1, vocab]: its row t is
        made of hidden state t (before the final norm) and token t + 1, and predicts token t + 2."""
        t = ids.shape[1]
        cos, sin = self.rope_tables(t)
        causal = torch.ones(t, t, dtype=torch.bool).tril()
        mask = torch.zeros(t, t).masked_fill(~causal, -1e30)
        x = self.embed_tokens(ids)
        for layer in self.layers[:self.n_layers]:
            x = layer(x, cos, sin, mask)
        mtp = self.layers[self.n_layers]
        e = self.embed_tokens(ids[:, 1:])
        y = mtp.eh_proj(torch.cat([mtp.enorm(e), mtp.hnorm(x[:, :-1])], -1))
        y = mtp(y, cos[:t - 1], sin[:t - 1], mask[:t - 1, :t - 1])
        return self.lm_head(self.norm(x)), self.lm_head(mtp.shared_head.norm(y))
