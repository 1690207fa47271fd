/* Inside of st_model: the layers' weights, the working memory of a step, and the functions that
 * run one part of a layer. Private to src/model. */
#ifndef ST_MODEL_IMPL_H
#define ST_MODEL_IMPL_H

#include "kernels/ops_experts.h"
#include "kernels/ops_screen.h"
#include "model/checkpoint.h"
#include "model/packs.h"
#include "model/rope.h"
#include "model/weights.h"

typedef struct st_mla_weights {
    st_linear q_a; /* w.n 0: no query compression, q_b is q_proj on the layer's input */
    const float *q_a_norm;
    st_linear q_b, kv_a, o;
    const float *kv_a_norm;
    st_kv_b kv_b;
} st_mla_weights;

typedef struct st_gqa_weights {
    st_linear q, k, v, o;
    const float *q_norm, *k_norm; /* [head_dim], NULL: none */
} st_gqa_weights;

typedef struct st_mlp_weights {
    st_linear gate, up, down;
} st_mlp_weights;

typedef struct st_moe_weights {
    st_packed router;         /* [n_experts, hidden] */
    const float *router_bias; /* [n_experts], for choosing only; NULL: none */
    st_mlp_weights *experts;  /* [n_experts] */
    st_mlp_weights shared;    /* gate.w.n 0: none */
} st_moe_weights;

typedef struct st_layer {
    const float *input_norm;
    const float *post_attn_norm; /* sandwich only: of the attention's output */
    const float *mlp_norm;       /* of the MLP's input */
    const float *post_mlp_norm;  /* sandwich only: of the MLP's output */
    st_mla_weights mla;
    st_gqa_weights gqa;
    bool is_moe;
    st_mlp_weights mlp;
    st_moe_weights moe;
    /* Whether the int8 form of these activations is needed by some weight. */
    bool quantize_attn_in, quantize_q_b, quantize_o, quantize_mlp_in, quantize_down;
} st_layer;

/* Activation rows with room for their int8 form. */
typedef struct st_rows {
    float *x;     /* [cap, k] */
    int8_t *q;    /* [cap, st_act_ldq(k)]; NULL when no weight of the model takes int8 */
    float *scale; /* [cap] */
    int32_t *sum; /* [cap, st_act_sums(k)] */
    int32_t k;
} st_rows;

enum { ST_HEAD_TASK_TOKENS = 32 }; /* tokens of one (head, group of tokens) task of MLA */

/* Working memory of a step, sized once from the options: T = max_batch_tokens, K = experts per
 * token, R = T * K rows of chosen experts. */
typedef struct st_work {
    void *memory;
    float *x;        /* [T, hidden] residual stream */
    st_rows in;      /* [T, hidden] normed input of attention, then of the MLP */
    float *branch;   /* [T, hidden] output of attention, then of the MLP */
    float *cos_sin;  /* [T, rope dim] */
    size_t *kv_at;   /* [T] byte offset of the token's KV row within a layer */
    float *q;        /* [T, n_heads * q head size] */
    float *kv;       /* [T, kv row] new KV rows, before conversion */
    st_rows o;       /* [T, n_heads * v head size] attention output, the input of o_proj */
    st_rows q_a;     /* MLA: [T, q_lora] */
    float *q_lat;    /* MLA: [T, n_heads, kv_lora + rope] */
    float *o_lat;    /* MLA: [T, n_heads, kv_lora] */
    float *scaled_q; /* MLA: [threads, ST_HEAD_TASK_TOKENS, nope] a task's queries, scaled for uk */
    _Atomic int32_t *heads_done; /* MLA: [T / ST_HEAD_TASK_TOKENS + 1] of a group of tokens */
    st_rows h;              /* [T, intermediate] silu(gate) * up of dense MLP or shared experts */
    float *router;          /* [T, n_experts] */
    int32_t *choice;        /* [T, K] experts by descending score */
    float *choice_weight;   /* [T, K] */
    int32_t *row_of_slot;   /* [T, K] row in expert order */
    int32_t *token_of_row;  /* [R] */
    int32_t *expert_first;  /* [n_experts + 1] first row of each expert */
    st_rows gathered;       /* [R, hidden] inputs in expert order, for experts with several rows */
    st_rows e_h;            /* [R, moe_intermediate] */
    float *e_out;           /* [R, hidden] */
    st_expert_job *experts; /* [n_experts + 1] of the layer that runs: shared ones first */
    st_rows last;           /* [max_outputs, hidden] normed rows for lm_head */
    st_attn_seq *seqs;      /* [T] what attends in the usual way; MLA: absorbed */
    int32_t n_seqs;
    st_attn_seq *expanded_seqs; /* MLA: [T] what attends expanded */
    int32_t n_expanded_seqs;
    bool *expanded;  /* MLA: [T] by row */
    bool *bad;       /* [max_outputs] logits not finite */
    int32_t *output; /* [max_outputs] row of each output after the last attention */
} st_work;

/* Bytes of a head in 16 bits from which on it gets a screen: what caches do not hold. */
#define ST_SCREEN_LEAST ((size_t)16 << 20)

struct st_model {
    st_model_config config;
    st_checkpoint *ckpt;
    st_arena *arena; /* layers and prepared weights */
    st_pool *pool;
    st_ops *ops;
    const st_kernels *k;
    int32_t max_batch_tokens, max_outputs, max_len;
    uint64_t fingerprint;
    st_rope rope;
    st_attn_shape shape;
    bool any_int8;
    st_packs packs;
    st_row_table embed;
    st_linear head;
    bool quantize_last;
    /* Whether the best logits can be had without the others, and how (kernels/ops_screen.h). */
    bool screened;
    size_t screen_least; /* of st_model_options */
    st_packed screen_approx, screen_bound;
    st_screen *screen;
    const float *final_norm;
    st_layer *layers;
    st_work work;
};

/* One step's batch as the layers see it. */
typedef struct st_step {
    const st_batch *batch;
    int32_t n;             /* rows still computed: all tokens until the last layer's MLP */
    const int32_t *output; /* [n_outputs] row of each output */
    st_kv_store *kv;
} st_step;

/* Looks at metadata, and reads norms and biases; st_weights_plan(w) then holds the rest. */
ST_NODISCARD st_status st_layers_load(st_model *m, st_weights *w, st_error *err);
ST_NODISCARD st_status st_work_init(st_model *m, st_error *err);

/* Whether the layer's input is needed in int8. */
static inline bool st_takes_int8(const st_linear *l)
{
    return l->w.n > 0 && st_weight_takes_int8(l->w.type);
}

/* Rows [first, first + m) as a matmul's input. */
static inline st_act st_rows_act(const st_rows *r, int32_t first, int32_t m)
{
    size_t at = (size_t)first, ldq = st_act_ldq(r->k);
    return (st_act){.x = r->x + at * (size_t)r->k,
                    .ld = (size_t)r->k,
                    .q = r->q ? r->q + at * ldq : NULL,
                    .ldq = ldq,
                    .scale = r->q ? r->scale + at : NULL,
                    .sum = r->q ? r->sum + at * st_act_sums(r->k) : NULL,
                    .m = m,
                    .k = r->k};
}

/* The same rows as room for an expert's own, k elements each; k may be less than the array's. */
static inline st_expert_rows st_rows_room(const st_rows *r, int32_t first, int32_t k)
{
    size_t at = (size_t)first, ldq = st_act_ldq(k);
    return (st_expert_rows){.x = r->x + at * (size_t)r->k,
                            .ld = (size_t)r->k,
                            .q = r->q ? r->q + at * ldq : NULL,
                            .ldq = ldq,
                            .scale = r->q ? r->scale + at : NULL,
                            .sum = r->q ? r->sum + at * st_act_sums(k) : NULL};
}

static inline st_matmul_job st_linear_job(const st_linear *l, st_act a, float *y, size_t ldy)
{
    return (st_matmul_job){.w = &l->w, .a = a, .y = y, .ldy = ldy, .bias = l->bias};
}

/* How many rows of `width` elements one task of a per-row loop takes: enough work to be worth
 * handing out, and a few tasks for each thread. Results never depend on it. */
int32_t st_rows_per_task(const st_model *m, int32_t n_rows, int32_t width);

/* What is to be done to row `row` of the residual stream before the next product: the caller adds
 * branch and norms. */
st_residual st_rows_norm(const st_rows *r, int32_t row, const float *norm, bool quantize);

st_expand_shape st_expand_shape_of(const st_model_config *c);
/* Latents that a step quantizes once for all heads (st_ops_use_expanded). */
int st_expand_shared_rows(const st_model_config *c);

/* Each reads work.in and writes work.branch. */
void st_mla_run(st_model *m, const st_step *s, int32_t layer);
void st_gqa_run(st_model *m, const st_step *s, int32_t layer);
void st_mlp_run(st_model *m, const st_step *s, const st_layer *l);
/* Writes the shared experts' sum to work.branch (when there are any) and leaves the chosen
 * experts' outputs in work.e_out, row row_of_slot of which weighs choice_weight. */
void st_moe_run(st_model *m, const st_step *s, const st_layer *l);
/* A gated MLP on n rows of in; h's rows from `first` on are its own. */
st_expert_job st_mlp_job(const st_mlp_weights *mlp, const st_act *in, int32_t n, const st_rows *h,
                         int32_t first, float *y);

/* True when nothing after this layer's KV is wanted: the last layer of a step without outputs. */
bool st_step_ends_with_kv(const st_model *m, const st_step *s, int32_t layer);
/* Converts a float KV row and stores it as token `row`'s of this layer. */
void st_kv_put(const st_model *m, const st_step *s, int32_t layer, int32_t row, const float *src);

/* A layer's KV memory. */
st_kv_layer st_kv_layer_of(const st_step *s, int32_t layer);
/* Attention in one layer of the rows in work.seqs; shapes as st_op_attention's. */
void st_model_attention(st_model *m, const st_step *s, int32_t layer, float *out, const float *q);
/* branch = o_proj(work.o). quantized: work.o has its int8 form, if the layer needs one. */
void st_model_output_projection(st_model *m, const st_step *s, const st_layer *l,
                                const st_linear *o, bool quantized);

#endif
