"""Named shapes for make_checkpoint.py: what config.json says for each preset.

`tiny-*` presets are for correctness: a few layers, small and odd sizes on purpose (no dimension a
multiple of a vector register), every switch of every family on in one of them. The others are for
benchmarks: the shape of a real model at a size that fits a small machine.
"""


def mla(nope, rope, v, kv_lora, q_lora):
    return {'q_lora_rank': q_lora, 'kv_lora_rank': kv_lora, 'qk_nope_head_dim': nope,
            'qk_rope_head_dim': rope, 'v_head_dim': v}


def yarn(factor, original, mscale, mscale_all_dim):
    return {'type': 'yarn', 'factor': factor, 'original_max_position_embeddings': original,
            'beta_fast': 32, 'beta_slow': 1, 'mscale': mscale, 'mscale_all_dim': mscale_all_dim}


PANGU = {
    'architectures': ['PanguUltraMoEForCausalLM'], 'model_type': 'pangu_ultra_moe',
    'hidden_act': 'silu', 'attention_bias': False, 'tie_word_embeddings': False,
    'sandwich_norm': True, 'rms_norm_eps': 1e-5, 'rope_theta': 25600000.0,
    'max_position_embeddings': 1024, 'vocab_size': 269, 'hidden_size': 52,
    'intermediate_size': 76, 'moe_intermediate_size': 20, 'num_hidden_layers': 3,
    'num_attention_heads': 3, 'num_key_value_heads': 3, 'num_experts_per_tok': 3,
    'routed_scaling_factor': 2.5, 'norm_topk_prob': True,
}

# DeepSeek's names for the same things, as newer pangu checkpoints use them.
PANGU_NEW = {**mla(14, 6, 10, 26, 22), 'n_routed_experts': 11, 'n_shared_experts': 1,
             'first_k_dense_replace': 1, 'num_nextn_predict_layers': 0}

PANGU_ORIGINAL = {
    'attention_q_lora_dim': 22, 'attention_kv_lora_dim': 26, 'attention_qk_dim': 14,
    'attention_qk_rope_dim': 6, 'attention_v_dim': 10, 'num_routed_experts': 11,
    'num_shared_experts': 1, 'num_dense_layers': 1, 'num_mtp_layers': 1,
}

DEEPSEEK_V2 = {
    'architectures': ['DeepseekV2ForCausalLM'], 'model_type': 'deepseek_v2',
    'hidden_act': 'silu', 'attention_bias': False, 'tie_word_embeddings': False,
    'rms_norm_eps': 1e-6, 'rope_theta': 10000.0, 'max_position_embeddings': 163840,
    'vocab_size': 261, 'hidden_size': 44, 'intermediate_size': 84, 'moe_intermediate_size': 28,
    'num_hidden_layers': 3, 'num_attention_heads': 3, 'num_key_value_heads': 3,
    **mla(12, 8, 10, 26, None), 'n_routed_experts': 12, 'n_shared_experts': 2,
    'num_experts_per_tok': 4, 'first_k_dense_replace': 1, 'moe_layer_freq': 1,
    'routed_scaling_factor': 1.0, 'norm_topk_prob': False, 'scoring_func': 'softmax',
    'topk_method': 'greedy', 'n_group': 1, 'topk_group': 1,
    'rope_scaling': yarn(40, 4096, 0.707, 0.707),
}

DEEPSEEK_V3 = {
    'architectures': ['DeepseekV3ForCausalLM'], 'model_type': 'deepseek_v3',
    'hidden_act': 'silu', 'attention_bias': False, 'tie_word_embeddings': False,
    'rms_norm_eps': 1e-6, 'rope_theta': 10000.0, 'max_position_embeddings': 163840,
    'vocab_size': 277, 'hidden_size': 52, 'intermediate_size': 92, 'moe_intermediate_size': 20,
    'num_hidden_layers': 4, 'num_attention_heads': 5, 'num_key_value_heads': 5,
    **mla(14, 8, 10, 30, 22), 'n_routed_experts': 20, 'n_shared_experts': 1,
    'num_experts_per_tok': 3, 'first_k_dense_replace': 1, 'moe_layer_freq': 1,
    'routed_scaling_factor': 2.5, 'norm_topk_prob': True, 'scoring_func': 'sigmoid',
    'topk_method': 'noaux_tc', 'n_group': 5, 'topk_group': 2, 'num_nextn_predict_layers': 0,
    'rope_scaling': yarn(40, 4096, 1.0, 1.0),
}

KIMI_K2 = {
    **DEEPSEEK_V3, 'model_type': 'kimi_k2', 'vocab_size': 283, 'hidden_size': 36,
    'num_hidden_layers': 3, 'num_attention_heads': 2, 'num_key_value_heads': 2,
    'n_routed_experts': 24, 'num_experts_per_tok': 4, 'n_group': 1, 'topk_group': 1,
    'routed_scaling_factor': 2.827, 'rope_theta': 50000.0,
    'rope_scaling': yarn(32, 4096, 1.0, 1.0),
}

QWEN2 = {
    'architectures': ['Qwen2ForCausalLM'], 'model_type': 'qwen2', 'hidden_act': 'silu',
    'rms_norm_eps': 1e-6, 'rope_theta': 1000000.0, 'max_position_embeddings': 32768,
    'use_sliding_window': False, 'tie_word_embeddings': True, 'vocab_size': 271,
    'hidden_size': 60, 'intermediate_size': 100, 'num_hidden_layers': 3,
    'num_attention_heads': 6, 'num_key_value_heads': 2,
}

# openPangu-Embedded: dense, with biases on all four projections.
PANGU_EMBEDDED = {
    'architectures': ['PanguEmbeddedForCausalLM'], 'model_type': 'PanguEmbedded',
    'hidden_act': 'silu', 'bias': True, 'rms_norm_eps': 1e-5, 'rope_theta': 16000000.0,
    'max_position_embeddings': 32768, 'tie_word_embeddings': False, 'vocab_size': 259,
    'hidden_size': 48, 'intermediate_size': 92, 'num_hidden_layers': 3,
    'num_attention_heads': 4, 'num_key_value_heads': 2,
}

QWEN3 = {
    'architectures': ['Qwen3ForCausalLM'], 'model_type': 'qwen3', 'hidden_act': 'silu',
    'attention_bias': False, 'rms_norm_eps': 1e-6, 'rope_theta': 1000000.0,
    'max_position_embeddings': 40960, 'use_sliding_window': False, 'tie_word_embeddings': True,
    'vocab_size': 263, 'hidden_size': 36, 'intermediate_size': 68, 'num_hidden_layers': 3,
    'num_attention_heads': 6, 'num_key_value_heads': 3, 'head_dim': 14,
}

QWEN3_MOE = {
    **QWEN3, 'architectures': ['Qwen3MoeForCausalLM'], 'model_type': 'qwen3_moe',
    'tie_word_embeddings': False, 'vocab_size': 257, 'hidden_size': 44, 'num_experts': 13,
    'num_experts_per_tok': 4, 'moe_intermediate_size': 22, 'norm_topk_prob': True,
    'decoder_sparse_step': 1, 'mlp_only_layers': [],
}

PRESETS = {
    'tiny-pangu': {**PANGU, **PANGU_NEW},
    'tiny-pangu-original': {**PANGU, **PANGU_ORIGINAL},
    'tiny-pangu-bias': {**PANGU, **PANGU_NEW, 'router_enable_expert_bias': True},
    'tiny-pangu-original-bias': {**PANGU, **PANGU_ORIGINAL, 'router_enable_expert_bias': True},
    'tiny-deepseek_v2': DEEPSEEK_V2,
    'tiny-deepseek_v2-qlora': {**DEEPSEEK_V2, 'q_lora_rank': 18, 'rope_scaling': None},
    'tiny-deepseek_v2-groups': {**DEEPSEEK_V2, 'q_lora_rank': 18, 'n_group': 4, 'topk_group': 2,
                                'topk_method': 'group_limited_greedy',
                                'routed_scaling_factor': 16.0},
    'tiny-deepseek_v3': DEEPSEEK_V3,
    'tiny-deepseek_v3-mtp': {**DEEPSEEK_V3, 'num_nextn_predict_layers': 1, 'rope_scaling': None},
    'tiny-deepseek_v3-mscale': {**DEEPSEEK_V3, 'rope_scaling': yarn(8, 1024, 0.8, 1.0)},
    'tiny-kimi_k2': KIMI_K2,
    'tiny-qwen2': QWEN2,
    'tiny-qwen2-untied': {**QWEN2, 'tie_word_embeddings': False},
    'tiny-pangu_embedded': PANGU_EMBEDDED,
    'tiny-qwen3': QWEN3,
    'tiny-qwen3_moe': QWEN3_MOE,

    # Sizes that formats with groups and words of eight can have; partial blocks for FP8.
    'group-deepseek_v3': {
        **DEEPSEEK_V3, 'hidden_size': 192, 'intermediate_size': 320, 'moe_intermediate_size': 96,
        'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 4,
        **mla(24, 8, 16, 128, 96), 'n_routed_experts': 10, 'n_group': 5,
    },
    'group-qwen2': {
        **QWEN2, 'hidden_size': 160, 'intermediate_size': 288, 'num_hidden_layers': 2,
        'num_attention_heads': 5, 'num_key_value_heads': 1,
    },

    # DeepSeek-V2's shape at 1.46B parameters, 0.26B of them active per token.
    'ds2-1.5b': {
        **DEEPSEEK_V2, 'vocab_size': 102400, 'hidden_size': 1024, 'intermediate_size': 4096,
        'moe_intermediate_size': 512, 'num_hidden_layers': 12, 'num_attention_heads': 16,
        'num_key_value_heads': 16, **mla(128, 64, 128, 512, 768), 'n_routed_experts': 64,
        'num_experts_per_tok': 6,
    },
    # Qwen3-MoE's shape at 1.40B parameters.
    'qwen3moe-1.4b': {
        **QWEN3_MOE, 'tie_word_embeddings': True, 'vocab_size': 102400, 'hidden_size': 1024,
        'num_hidden_layers': 16, 'num_attention_heads': 16, 'num_key_value_heads': 4,
        'head_dim': 128, 'num_experts': 64, 'num_experts_per_tok': 8,
        'moe_intermediate_size': 384, 'intermediate_size': 3072,
    },
    # Qwen2.5-1.5B's own shape.
    'qwen2-1.5b': {
        **QWEN2, 'vocab_size': 151936, 'hidden_size': 1536, 'intermediate_size': 8960,
        'num_hidden_layers': 28, 'num_attention_heads': 12, 'num_key_value_heads': 2,
    },
}
