/* A model: a published checkpoint, mapped, understood, and ready to run.
 *
 *   folder --st_checkpoint_open--> tensors by name (mapped) + st_model_config
 *          --st_model_load-------> st_model (layers of packed matrices, mapped from a cache)
 *   st_model_forward(batch of token chunks, KV memory) -> logits
 *
 * Layer formulas: docs/SOURCES.md names the papers and published classes they come from. */
#ifndef STARLING_MODEL_H
#define STARLING_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/buf.h"
#include "starling/dtype.h"
#include "starling/kv_cache.h"
#include "starling/status.h"

typedef enum st_attn_kind { ST_ATTN_GQA, ST_ATTN_MLA } st_attn_kind;
typedef enum st_router_kind { ST_ROUTER_SOFTMAX, ST_ROUTER_SIGMOID } st_router_kind;

#define ST_MAX_EOS      8
#define ST_MAX_MLP_ONLY 64

typedef enum st_quant_method {
    ST_QUANT_NONE,
    ST_QUANT_W8A8,        /* INT8, a scale per output; activations INT8 per token */
    ST_QUANT_FP8,         /* E4M3 with a scale per block (DeepSeek, float-quantized) */
    ST_QUANT_PACKED_INT4, /* compressed-tensors pack-quantized */
    ST_QUANT_GPTQ,        /* INT4 */
    ST_QUANT_AWQ          /* INT4, gemm layout */
} st_quant_method;

/* What quantization_config says. Which layers are quantized the tensors themselves tell. */
typedef struct st_quant_config {
    st_quant_method method;
    int32_t block_rows, block_inputs; /* FP8: a scale's block */
    int32_t group;      /* INT4: inputs per scale; 0: all of a row; -1: differs by layer */
    bool symmetric;     /* INT4: zero points are not stored, or all 8 */
    bool zeros_minus_1; /* GPTQ: zero points are stored minus 1 (its version 1) */
} st_quant_config;

/* Everything config.json says, in one vocabulary for all families. Counts are per model. */
typedef struct st_model_config {
    char model_type[64]; /* as published: "deepseek_v3", "pangu_ultra_moe", ... */
    int32_t vocab_size, hidden_size, n_layers, intermediate_size, max_positions;
    float rms_norm_eps;
    bool tie_embeddings;
    int32_t bos_id;                     /* -1: none */
    int32_t eos_ids[ST_MAX_EOS], n_eos; /* generation_config.json's, else config.json's */

    /* Attention */
    st_attn_kind attn;
    int32_t n_heads, n_kv_heads;
    int32_t head_dim;                                       /* GQA */
    int32_t q_lora_rank, kv_lora_rank;                      /* MLA; q_lora_rank 0: plain q_proj */
    int32_t qk_nope_head_dim, qk_rope_head_dim, v_head_dim; /* MLA */
    bool qkv_bias, o_bias;                                  /* MLA: qkv_bias means q_a and kv_a */
    bool qk_norm;       /* per-head RMSNorm of q and k before RoPE (Qwen3) */
    bool sandwich_norm; /* norms after attention and after the MLP too (openPangu) */
    float attn_scale;   /* softmax scale, YaRN's factor included */

    /* Rotary embedding */
    bool rope_interleaved; /* pairs (2i, 2i+1); else (i, i + d/2) */
    double rope_theta;
    bool yarn;
    double yarn_factor, yarn_beta_fast, yarn_beta_slow, yarn_mscale, yarn_mscale_all_dim;
    int32_t yarn_original_positions;
    float rope_attention_factor; /* cosines and sines are multiplied by it; 1 without YaRN */

    /* Mixture of experts; n_experts 0: none */
    int32_t n_experts, n_shared_experts, experts_per_token, moe_intermediate_size;
    int32_t first_dense_layers; /* layers below have a dense MLP */
    int32_t moe_layer_freq;     /* the others are MoE where (layer + moe_layer_phase) is a */
    int32_t moe_layer_phase;    /* multiple of moe_layer_freq (1: all), except the layers */
    int32_t mlp_only_layers[ST_MAX_MLP_ONLY], n_mlp_only_layers; /* listed here */
    st_router_kind router;
    bool router_bias; /* e_score_correction_bias, used for choosing only */
    bool norm_topk_prob;
    float routed_scaling_factor;
    int32_t n_group, topk_group; /* 1/1: no group limit. A group's score is the sum of its two
                                    best with router_bias, else its best (DeepSeek-V2) */

    int32_t n_mtp_layers; /* present in the checkpoint; not run yet */
    st_quant_config quant;
    bool int8_activations; /* some weights are INT8 or INT4: what meets them becomes INT8 */
    bool integer_kv_b;     /* MLA: so are kv_b_proj's */
} st_model_config;

/* True when layer has routed experts. */
bool st_model_layer_is_moe(const st_model_config *c, int32_t layer);

/* One token's KV row in one layer. */
st_kv_row_shape st_config_kv_row(const st_model_config *c);

/* Loading in steps, for progress bars: called from the loading thread; done <= total, bytes. */
typedef void st_progress_fn(void *user, size_t done, size_t total);

/* Something went another way than expected, and loading goes on: one sentence. */
typedef void st_notice_fn(void *user, const char *text);

typedef struct st_model_options {
    const char *dir;
    int32_t max_batch_tokens; /* largest st_batch.n_tokens; 0: 512 */
    int32_t max_outputs;      /* largest st_batch.n_outputs; 0: max_batch_tokens */
    int32_t max_model_len; /* positions a sequence may reach; 0: the checkpoint's max_positions */
    int32_t n_threads;     /* 0: all */
    const char *kernels;   /* NULL: STARLING_CPU, else the best */
    size_t memory_limit;   /* bytes the model may take; 0: what the machine has available */
    size_t screen_least;   /* bytes of a head in 16 bits from which on st_batch.output_best
                              saves anything; 0: 16 MiB */
    st_progress_fn *progress; /* may be NULL */
    void *progress_user;
    /* Weights are packed for the kernels when a model is loaded. Where packs are kept for the next
     * time: a folder, "next" (in the checkpoint's own), "none" (nowhere), or NULL:
     * $XDG_CACHE_HOME/starling, else ~/.cache/starling. A cache that cannot be used is a notice;
     * the packs are then made in memory. */
    const char *pack_cache;
    size_t pack_cache_least; /* packs of fewer bytes are made in memory each time; 0: 64 MiB */
    st_notice_fn *notice;    /* may be NULL */
    void *notice_user;
} st_model_options;

typedef struct st_model st_model;

/* Maps and checks the checkpoint, builds the layers. Predicts its memory first and fails with
 * ST_ENOMEM and both numbers when it cannot fit. opts->dir may be freed afterwards. */
ST_NODISCARD st_status st_model_load(const st_model_options *opts, st_model **out, st_error *err);
void st_model_free(st_model *m); /* NULL is fine */
/* Binds the calling thread to the first processor, beside which the model's own threads have
 * theirs: for the thread that will run st_model_forward, when it starts no other threads. */
void st_model_pin_thread(const st_model *m);
const st_model_config *st_model_get_config(const st_model *m);
const char *st_model_kernels_name(const st_model *m);
int32_t st_model_max_len(const st_model *m);
int32_t st_model_max_batch_tokens(const st_model *m); /* largest st_batch.n_tokens */
int32_t st_model_max_outputs(const st_model *m);      /* largest st_batch.n_outputs */
/* One token's KV row in one layer, and its number of elements (MLA: kv_lora + rope; GQA:
 * 2 * n_kv_heads * head_dim). */
st_kv_row_shape st_model_kv_row(const st_model *m);
int32_t st_model_kv_row_elems(const st_model *m);
/* A 64-bit digest of config, tensor metadata and the version of our arithmetic: part of the prefix
 * cache's root hash, so that KV of different checkpoints, or of sums in another order, never
 * mixes. */
uint64_t st_model_fingerprint(const st_model *m);

/* MLA has two forms that round differently. Absorbed, a query attends to the latent rows as they
 * lie in memory: least work for one query. Expanded, each head's keys and values are made of the
 * latent rows first: least work where many queries share them. Which one a token takes is part of
 * what its request means, never of how it is run: in a prompt of L tokens those at positions below
 *
 *     E(L) = (L - 1) / G * G      G = the largest power of two <= L / 32, within 16 .. 256
 *                                 G = 1 where kv_b_proj is of integers and 64 <= L < 1024
 *
 * attend expanded; the prompt's tail, its last token always, and all that is generated attend
 * absorbed. So the same request gives the same bits however it is chunked, batched, cached,
 * preempted or split over engines, and a prefix is shared between prompts as long as both put it
 * below their E. Steps grow with the prompt: a short one has little tail, a long one keeps its E
 * while a conversation's turns come and go, and makes steps of 256 worth what expanding costs
 * (about 170 queries' gain, or 45 where kv_b_proj is of integers). E is 0 for models without MLA
 * and where it does not pay. */
int32_t st_model_expanded_until(const st_model_config *c, int32_t n_prompt);

/* One sequence's tokens within a batch. */
typedef struct st_batch_seq {
    int32_t first, count;       /* rows [first, first + count) of the batch */
    int32_t pos0;               /* position of the first; KV of positions < pos0 is present */
    const int32_t *block_table; /* covers positions < pos0 + count */
    int32_t expanded_until;     /* st_model_expanded_until of the request's prompt; 0: none */
} st_batch_seq;

/* The most that st_batch.output_best counts. */
enum { ST_BATCH_BEST_MAX = 64 };

typedef struct st_batch {
    int32_t n_tokens;
    const int32_t *tokens; /* [n_tokens], in vocabulary (checked by the caller) */
    int32_t n_seqs;
    const st_batch_seq *seqs; /* cover the rows in order, without gaps */
    int32_t n_outputs;
    const int32_t *output_rows; /* [n_outputs]: rows whose logits are wanted */
    /* [n_outputs]: how many of the row's largest logits decide what it is for; the others may be
     * -FLT_MAX instead, which saves reading most of a large head. 0 or more than ST_BATCH_BEST_MAX:
     * all are wanted; such outputs come first, or nothing is saved. NULL: of all rows. */
    const int32_t *output_best;
    /* [n_outputs], filled: true where a row's logits are not all finite, so that the caller can
     * fail that request alone. NULL: such a row fails the call with ST_EFORMAT. */
    bool *output_bad;
    /* Called on the calling thread after a layer has written the KV of all the batch's tokens,
     * while later layers are still to come: for sending it on. NULL: nobody. */
    void (*on_layer)(void *user, int32_t layer);
    void *on_layer_user;
} st_batch;

/* Runs the batch through all layers: writes the tokens' KV into kv and the wanted logits to
 * logits [n_outputs, vocab_size] float32. The result for a row depends only on its sequence's
 * tokens 0..pos and its expanded_until, bit for bit (on one ISA and KV dtype). One call at a time
 * per model. No allocation. ST_EINVAL when the batch exceeds the options' limits. */
ST_NODISCARD st_status st_model_forward(st_model *m, const st_batch *batch, st_kv_store *kv,
                                        float *logits, st_error *err);

/* A description for people (starling inspect), appended to out; json: as one JSON object; tensors:
 * with the list of all tensors. Opens the checkpoint but loads nothing. */
ST_NODISCARD st_status st_model_describe(const char *dir, bool json, bool tensors, st_buf *out,
                                         st_error *err);

#endif
