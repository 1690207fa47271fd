/* A checkpoint small enough to be loaded a hundred times in a test: one layer of Qwen3, random
 * BF16 weights. */
#ifndef ST_TESTS_TINY_CHECKPOINT_H
#define ST_TESTS_TINY_CHECKPOINT_H

#include "cmocka_all.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { TINY_VOCAB = 96, TINY_HIDDEN = 64 };

static const char tiny_config[] =
    "{\"model_type\": \"qwen3\", \"vocab_size\": 96, \"hidden_size\": 64, \"num_hidden_layers\": 1,"
    " \"intermediate_size\": 72, \"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-6,"
    " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 16,"
    " \"rope_theta\": 10000.0, \"tie_word_embeddings\": false, \"hidden_act\": \"silu\"}";

typedef struct tiny_tensor {
    const char *name;
    int n, k; /* k 0: a norm */
} tiny_tensor;

static const tiny_tensor tiny_tensors[] = {
    {"model.embed_tokens.weight", 96, 64},
    {"lm_head.weight", 96, 64},
    {"model.norm.weight", 64, 0},
    {"model.layers.0.input_layernorm.weight", 64, 0},
    {"model.layers.0.post_attention_layernorm.weight", 64, 0},
    {"model.layers.0.self_attn.q_proj.weight", 64, 64},
    {"model.layers.0.self_attn.k_proj.weight", 32, 64},
    {"model.layers.0.self_attn.v_proj.weight", 32, 64},
    {"model.layers.0.self_attn.o_proj.weight", 64, 64},
    {"model.layers.0.self_attn.q_norm.weight", 16, 0},
    {"model.layers.0.self_attn.k_norm.weight", 16, 0},
    {"model.layers.0.mlp.gate_proj.weight", 72, 64},
    {"model.layers.0.mlp.up_proj.weight", 72, 64},
    {"model.layers.0.mlp.down_proj.weight", 64, 72},
};

/* Near 0.1 in size, any sign; norms are near 1. */
static inline uint16_t tiny_value(uint32_t *state, bool norm)
{
    *state = *state * 1664525u + 1013904223u;
    uint32_t r = *state >> 16;
    return (uint16_t)(norm ? 0x3F80 + (r & 15) : ((r & 1) << 15 | 0x3D80) + (r >> 4 & 0xFF));
}

/* Writes the checkpoint into the folder dir, which exists; nan: its last weight is not a number. */
static inline void tiny_write(const char *dir, uint32_t seed, bool nan)
{
    enum { N = sizeof tiny_tensors / sizeof *tiny_tensors };
    char path[512], header[4096];
    size_t at = 0, offset = 0;
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_true(fputs(tiny_config, f) >= 0);
    assert_int_equal(fclose(f), 0);
    for (int i = 0; i < N; i++) {
        const tiny_tensor *t = &tiny_tensors[i];
        size_t bytes = 2 * (size_t)t->n * (size_t)(t->k ? t->k : 1);
        char shape[32];
        snprintf(shape, sizeof shape, t->k ? "%d,%d" : "%d", t->n, t->k);
        at += (size_t)snprintf(header + at, sizeof header - at,
                               "%c\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],"
                               "\"data_offsets\":[%zu,%zu]}",
                               i ? ',' : '{', t->name, shape, offset, offset + bytes);
        offset += bytes;
    }
    header[at++] = '}';
    while (at % 8)
        header[at++] = ' ';
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_non_null(f = fopen(path, "wb"));
    uint64_t n_header = at;
    assert_int_equal(fwrite(&n_header, 8, 1, f), 1);
    assert_int_equal(fwrite(header, 1, at, f), at);
    for (int i = 0; i < N; i++) {
        const tiny_tensor *t = &tiny_tensors[i];
        int n = t->n * (t->k ? t->k : 1);
        for (int e = 0; e < n; e++) {
            uint16_t v = tiny_value(&seed, t->k == 0);
            if (nan && i == N - 1 && e == n - 1)
                v = 0x7FC0;
            assert_int_equal(fwrite(&v, 2, 1, f), 1);
        }
    }
    assert_int_equal(fclose(f), 0);
}

#endif
