/* Working memory of a step: one allocation, cut into the arrays of st_work. Measured first, then
 * cut, by the same list, so that the two cannot disagree. */
#include <stdlib.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "model/model_impl.h"

/* Hands out the block's bytes; with base NULL it only counts. */
typedef struct cutter {
    char *base;
    size_t at;
    bool overflow;
} cutter;

static void *cut(cutter *c, size_t rows, size_t k, size_t size)
{
    size_t bytes = 0;
    if (!st_mul_size(rows, k, &bytes) || !st_mul_size(bytes, size, &bytes) ||
        !st_add_size(bytes, 63, &bytes))
        c->overflow = true;
    void *p = c->base ? c->base + c->at : NULL;
    if (!st_add_size(c->at, bytes / 64 * 64, &c->at))
        c->overflow = true;
    return p;
}

static st_rows cut_rows(cutter *c, size_t rows, int32_t k, bool int8)
{
    st_rows r = {.k = k};
    r.x = cut(c, rows, (size_t)k, sizeof(float));
    if (int8) {
        r.q = cut(c, rows, st_act_ldq(k), 1);
        r.scale = cut(c, rows, 1, sizeof(float));
        r.sum = cut(c, rows, st_act_sums(k), sizeof(int32_t));
    }
    return r;
}

static void cut_attention(const st_model *m, cutter *c, st_work *w, size_t t)
{
    const st_model_config *f = &m->config;
    size_t heads = (size_t)f->n_heads;
    w->kv = cut(c, t, (size_t)st_model_kv_row_elems(m), sizeof(float));
    if (f->attn == ST_ATTN_GQA) {
        w->q = cut(c, t, heads * (size_t)f->head_dim, sizeof(float));
        w->o = cut_rows(c, t, f->n_heads * f->head_dim, m->any_int8);
        return;
    }
    size_t lora = (size_t)f->kv_lora_rank, rope = (size_t)f->qk_rope_head_dim;
    w->q = cut(c, t, heads * ((size_t)f->qk_nope_head_dim + rope), sizeof(float));
    if (f->q_lora_rank)
        w->q_a = cut_rows(c, t, f->q_lora_rank, m->any_int8);
    w->q_lat = cut(c, t, heads * (lora + rope), sizeof(float));
    w->o_lat = cut(c, t, heads * lora, sizeof(float));
    w->scaled_q = cut(c, (size_t)st_pool_threads(m->pool) * ST_HEAD_TASK_TOKENS,
                      (size_t)f->qk_nope_head_dim, sizeof(float));
    w->heads_done = cut(c, t / ST_HEAD_TASK_TOKENS + 1, 1, sizeof *w->heads_done);
    w->o = cut_rows(c, t, f->n_heads * f->v_head_dim, m->any_int8);
}

/* Floats in a row that is written block of columns by block of columns: an odd number of cache
 * lines, so that rows do not fall into the same sets. */
static int32_t odd_lines(int32_t k)
{
    return ((k + 15) / 16 | 1) * 16;
}

static void cut_experts(const st_model *m, cutter *c, st_work *w, size_t t)
{
    const st_model_config *f = &m->config;
    size_t n = (size_t)f->n_experts, k = (size_t)f->experts_per_token, rows = t * k;
    w->router = cut(c, t, n, sizeof(float));
    w->choice = cut(c, t, k, sizeof(int32_t));
    w->choice_weight = cut(c, t, k, sizeof(float));
    w->row_of_slot = cut(c, t, k, sizeof(int32_t));
    w->token_of_row = cut(c, t, k, sizeof(int32_t));
    w->expert_first = cut(c, n + 1, 1, sizeof(int32_t));
    w->gathered = cut_rows(c, rows, f->hidden_size, m->any_int8);
    w->e_h = cut_rows(c, rows, odd_lines(f->moe_intermediate_size), m->any_int8);
    w->e_out = cut(c, rows, (size_t)f->hidden_size, sizeof(float));
}

/* The widest dense MLP of any layer, shared experts included. */
static int32_t widest_mlp(const st_model *m)
{
    int32_t width = 0;
    for (int32_t i = 0; i < m->config.n_layers; i++) {
        const st_layer *l = &m->layers[i];
        int32_t n = l->is_moe ? l->moe.shared.gate.w.n : l->mlp.gate.w.n;
        width = n > width ? n : width;
    }
    return width;
}

static void cut_all(const st_model *m, cutter *c, st_work *w)
{
    size_t t = (size_t)m->max_batch_tokens, hidden = (size_t)m->config.hidden_size;
    int32_t mlp = widest_mlp(m);
    w->x = cut(c, t, hidden, sizeof(float));
    w->in = cut_rows(c, t, m->config.hidden_size, m->any_int8);
    w->branch = cut(c, t, hidden, sizeof(float));
    w->cos_sin = cut(c, t, (size_t)m->rope.dim, sizeof(float));
    w->kv_at = cut(c, t, 1, sizeof(size_t));
    cut_attention(m, c, w, t);
    w->h = cut_rows(c, t, odd_lines(mlp), m->any_int8);
    w->experts = cut(c, (size_t)m->config.n_experts + 1, 1, sizeof(st_expert_job));
    if (m->config.n_experts)
        cut_experts(m, c, w, t);
    w->last = cut_rows(c, (size_t)m->max_outputs, m->config.hidden_size, m->quantize_last);
    w->seqs = cut(c, t, 1, sizeof(st_attn_seq));
    w->expanded_seqs = cut(c, t, 1, sizeof(st_attn_seq));
    w->expanded = cut(c, t, 1, sizeof(bool));
    w->bad = cut(c, (size_t)m->max_outputs, 1, sizeof(bool));
    w->output = cut(c, (size_t)m->max_outputs, 1, sizeof(int32_t));
}

st_status st_work_init(st_model *m, st_error *err)
{
    cutter c = {0};
    cut_all(m, &c, &m->work);
    const size_t page = 2 << 20; /* rows lie far apart: large pages where there are some */
    size_t align = c.at < page ? 64 : page;
    if (c.overflow || c.at > SIZE_MAX / 2 || posix_memalign(&m->work.memory, align, c.at)) {
        m->work.memory = NULL;
        return st_fail(err, ST_ENOMEM,
                       "no memory for the working arrays of steps of %d tokens: lower the number "
                       "of tokens a step",
                       m->max_batch_tokens);
    }
    if (align == page)
        (void)madvise(m->work.memory, c.at / page * page, MADV_HUGEPAGE);
    c = (cutter){.base = m->work.memory};
    cut_all(m, &c, &m->work);
    return ST_OK;
}
