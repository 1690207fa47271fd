/* What config.json of each model family may say, as data: one row per family, one row per key. The
 * code that applies the rows is model_config.c. */
#ifndef ST_MODEL_CONFIG_TABLE_H
#define ST_MODEL_CONFIG_TABLE_H

#include "starling/model.h"

/* Traits of a family: which keys apply to it. */
enum {
    ST_TRAIT_GQA = 1,
    ST_TRAIT_MLA = 2,
    ST_TRAIT_MOE = 4,
    ST_TRAIT_PANGU = 8,         /* sandwich norms, router bias by a key of its own */
    ST_TRAIT_QWEN_MOE = 16,     /* decoder_sparse_step, mlp_only_layers */
    ST_TRAIT_O_BIAS = 32,       /* attention_bias: q, k, v and o (MLA: q_a, kv_a and o) */
    ST_TRAIT_DEEPSEEK = 64,     /* scoring_func, topk_method */
    ST_TRAIT_HEAD_DIM_128 = 128 /* head_dim is 128 when absent, not hidden_size / heads */
};

typedef struct st_family {
    const char *model_type;
    const char *architecture; /* used when model_type is absent */
    unsigned traits;
    st_model_config defaults; /* what the published configuration class takes for absent keys */
} st_family;

extern const st_family st_families[];
extern const size_t st_n_families;

typedef enum st_key_type { ST_KEY_INT, ST_KEY_FLOAT, ST_KEY_DOUBLE, ST_KEY_BOOL } st_key_type;

typedef struct st_config_key {
    const char *names; /* spellings in different dialects, separated by '|' */
    st_key_type type;
    unsigned traits; /* 0: every family; else those with one of these traits */
    bool required;
    size_t offset;   /* in st_model_config */
    double min, max; /* inclusive; for ST_KEY_FLOAT and ST_KEY_DOUBLE min is exclusive */
} st_config_key;

extern const st_config_key st_config_keys[];
extern const size_t st_n_config_keys;

#endif
