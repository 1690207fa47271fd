/* The forward pass: embedding, layers, logits. Work between matrix products is done token by
 * token: one task adds a branch to the residual stream, norms the result and quantizes it for the
 * next product. */
#include <string.h>

#include "model/model_impl.h"

int32_t st_rows_per_task(const st_model *m, int32_t n_rows, int32_t width)
{
    enum { TASK_ELEMENTS = 4096, TASKS_PER_THREAD = 4 };
    int32_t tasks = TASKS_PER_THREAD * st_pool_threads(m->pool);
    int32_t worth = width > 0 ? TASK_ELEMENTS / width + 1 : 1;
    int32_t spread = (n_rows + tasks - 1) / tasks;
    return spread > worth ? spread : worth;
}

st_residual st_rows_norm(const st_rows *r, int32_t row, const float *norm, bool quantize)
{
    st_act a = st_rows_act(r, row, 1);
    float *y = r->x + (size_t)row * (size_t)r->k;
    return (st_residual){
        .x = y, .norm = norm, .y = y, .q = quantize ? a.q : NULL, .scale = a.scale, .sum = a.sum};
}

void st_kv_put(const st_model *m, const st_step *s, int32_t layer, int32_t row, const float *src)
{
    unsigned char *dst = s->kv->layers[layer] + m->work.kv_at[row];
    if (s->kv->dtype == ST_BF16)
        m->k->to_bf16((uint16_t *)dst, src, s->kv->row_elems);
    else if (s->kv->dtype == ST_I8)
        m->k->kv_to_i8(dst, src, s->kv->row);
    else
        memcpy(dst, src, s->kv->row_bytes);
}

st_kv_layer st_kv_layer_of(const st_step *s, int32_t layer)
{
    return (st_kv_layer){.base = s->kv->layers[layer],
                         .block_stride = s->kv->block_bytes,
                         .row_stride = s->kv->row_bytes,
                         .block_size = s->kv->block_size,
                         .dtype = s->kv->dtype};
}

void st_model_attention(st_model *m, const st_step *s, int32_t layer, float *out, const float *q)
{
    st_kv_layer kv = st_kv_layer_of(s, layer);
    st_op_attention(m->ops, m->config.attn == ST_ATTN_MLA, out, q, &m->shape, &kv, m->work.seqs,
                    m->work.n_seqs);
}

/* A loop over rows, cut into tasks. */
typedef struct row_run {
    st_model *m;
    const st_step *s;
    int32_t n, per_task;
    const st_layer *combine; /* MoE layer whose experts' outputs form the branch; else NULL */
    const float *branch_norm, *next_norm;
    bool branch, quantize;
} row_run;

static void run_rows(row_run *r, st_op_kind kind, st_task_fn *fn, int32_t width)
{
    r->per_task = st_rows_per_task(r->m, r->n, width);
    st_op_run(r->m->ops, kind, (size_t)((r->n + r->per_task - 1) / r->per_task), fn, r);
}

static int32_t end_of(const row_run *r, size_t task)
{
    int32_t end = ((int32_t)task + 1) * r->per_task;
    return end < r->n ? end : r->n;
}

static void quantize_o_task(void *arg, size_t task, int worker)
{
    const row_run *r = arg;
    int32_t row = (int32_t)task * r->per_task;
    st_act a = st_rows_act(&r->m->work.o, row, end_of(r, task) - row);
    r->m->k->quantize(&a);
}

void st_model_output_projection(st_model *m, const st_step *s, const st_layer *l,
                                const st_linear *o, bool quantized)
{
    st_work *w = &m->work;
    if (l->quantize_o && !quantized) {
        row_run run = {.m = m, .n = s->n};
        run_rows(&run, ST_OP_QUANTIZE, quantize_o_task, w->o.k);
    }
    st_matmul_job job =
        st_linear_job(o, st_rows_act(&w->o, 0, s->n), w->branch, (size_t)m->config.hidden_size);
    st_op_matmul(m->ops, &job, 1);
}

/* x += norm(branch); in = norm(x), quantized. The first call of a step has no branch, the last no
 * next. The branch of an MoE layer is the shared experts' sum, where there is any, and what the
 * token's own experts add. */
static void residual_task(void *arg, size_t task, int worker)
{
    const row_run *r = arg;
    const st_model *m = r->m;
    const st_work *w = &m->work;
    size_t d = (size_t)m->config.hidden_size, k = (size_t)m->config.experts_per_token;
    for (int32_t row = (int32_t)task * r->per_task; row < end_of(r, task); row++) {
        float *branch = w->branch + (size_t)row * d;
        st_residual n = st_rows_norm(&w->in, row, r->next_norm, r->quantize);
        n.x = w->x + (size_t)row * d;
        if (r->branch && (!r->combine || r->combine->moe.shared.gate.w.n))
            n.branch = branch;
        n.branch_sum = branch;
        n.branch_norm = r->branch_norm;
        if (r->combine) {
            n.parts = w->e_out;
            n.ld_parts = d;
            n.part_row = w->row_of_slot + (size_t)row * k;
            n.part_weight = w->choice_weight + (size_t)row * k;
            n.n_parts = (int)k;
        }
        m->k->residual_norm(&n, m->config.hidden_size, m->config.rms_norm_eps);
    }
}

static void residual(st_model *m, const st_step *s, const st_layer *combine,
                     const float *branch_norm, bool branch, const float *next_norm, bool quantize)
{
    row_run run = {.m = m,
                   .n = s->n,
                   .combine = combine,
                   .branch_norm = branch_norm,
                   .branch = branch,
                   .next_norm = next_norm,
                   .quantize = quantize};
    int32_t adds = combine ? m->config.experts_per_token : 1;
    run_rows(&run, ST_OP_NORM, residual_task, m->config.hidden_size * (2 + adds));
}

/* Per token: its embedding, its rotation, and where its KV rows go. */
static void start_task(void *arg, size_t task, int worker)
{
    const row_run *r = arg;
    const st_model *m = r->m;
    const st_work *w = &m->work;
    const st_kv_store *kv = r->s->kv;
    const st_batch *b = r->s->batch;
    int32_t row = (int32_t)task * r->per_task, d = m->config.hidden_size, seq = 0;
    size_t embed_bytes = (size_t)d * st_dtype_size(m->embed.dtype);
    for (; row < end_of(r, task); row++) {
        while (row >= b->seqs[seq].first + b->seqs[seq].count)
            seq++;
        int32_t pos = b->seqs[seq].pos0 + row - b->seqs[seq].first;
        int32_t block = b->seqs[seq].block_table[pos / kv->block_size];
        w->kv_at[row] =
            (size_t)block * kv->block_bytes + (size_t)(pos % kv->block_size) * kv->row_bytes;
        st_rope_cos_sin(&m->rope, pos, w->cos_sin + (size_t)row * (size_t)m->rope.dim);
        m->k->to_f32(w->x + (size_t)row * (size_t)d,
                     (const char *)m->embed.data + (size_t)b->tokens[row] * embed_bytes,
                     m->embed.dtype, d);
    }
}

bool st_step_ends_with_kv(const st_model *m, const st_step *s, int32_t layer)
{
    return layer == m->config.n_layers - 1 && s->batch->n_outputs == 0;
}

/* After the last attention only the output rows go on: moves them, in their order, to the front
 * of the residual stream and the branch. */
static void keep_outputs(st_model *m, st_step *s)
{
    st_work *w = &m->work;
    const st_batch *b = s->batch;
    size_t d = (size_t)m->config.hidden_size, bytes = d * sizeof(float);
    if (b->n_outputs >= s->n)
        return; /* nothing to save */
    float *const rows[] = {w->x, w->branch};
    for (int i = 0; i < 2; i++) {
        for (int32_t j = 0; j < b->n_outputs; j++)
            memcpy(w->last.x + (size_t)j * d, rows[i] + (size_t)b->output_rows[j] * d, bytes);
        memcpy(rows[i], w->last.x, (size_t)b->n_outputs * bytes);
    }
    for (int32_t j = 0; j < b->n_outputs; j++)
        w->output[j] = j;
    s->output = w->output;
    s->n = b->n_outputs;
}

static void run_layers(st_model *m, st_step *s)
{
    const st_model_config *c = &m->config;
    const st_layer *first = &m->layers[0];
    residual(m, s, NULL, NULL, false, first->input_norm, first->quantize_attn_in);
    for (int32_t i = 0; i < c->n_layers; i++) {
        const st_layer *l = &m->layers[i], *next = i + 1 < c->n_layers ? l + 1 : NULL;
        if (c->attn == ST_ATTN_MLA)
            st_mla_run(m, s, i);
        else
            st_gqa_run(m, s, i);
        if (s->batch->on_layer)
            s->batch->on_layer(s->batch->on_layer_user, i);
        if (st_step_ends_with_kv(m, s, i))
            return;
        if (!next)
            keep_outputs(m, s);
        residual(m, s, NULL, l->post_attn_norm, true, l->mlp_norm, l->quantize_mlp_in);
        if (l->is_moe)
            st_moe_run(m, s, l);
        else
            st_mlp_run(m, s, l);
        residual(m, s, l->is_moe ? l : NULL, l->post_mlp_norm, true, next ? next->input_norm : NULL,
                 next && next->quantize_attn_in);
    }
}

static void last_norm_task(void *arg, size_t task, int worker)
{
    const row_run *r = arg;
    const st_model *m = r->m;
    const st_work *w = &m->work;
    for (int32_t i = (int32_t)task * r->per_task; i < end_of(r, task); i++) {
        st_residual n = st_rows_norm(&w->last, i, m->final_norm, m->quantize_last);
        n.x = w->x + (size_t)r->s->output[i] * (size_t)m->config.hidden_size;
        m->k->residual_norm(&n, m->config.hidden_size, m->config.rms_norm_eps);
    }
}

typedef struct check_run {
    st_model *m;
    const float *logits;
} check_run;

/* A NaN or infinity has all exponent bits set: no float comparison, so the loop vectorizes. */
static void check_task(void *arg, size_t task, int worker)
{
    const check_run *r = arg;
    int32_t n = r->m->config.vocab_size, bad = 0;
    const float *x = r->logits + task * (size_t)n;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (bits & 0x7F800000u) == 0x7F800000u;
    }
    r->m->work.bad[task] = bad;
}

_Static_assert((int)ST_BATCH_BEST_MAX == (int)ST_SCREEN_BEST,
               "what a batch may ask for, the screen finds");

/* How many outputs, from the first on, need all of their logits: the best few of the others will
 * do. All of them when the two kinds are mixed: one product then serves both. */
static int32_t count_whole(const st_model *m, const st_batch *b)
{
    int32_t n = 0, few = 0;
    if (!m->screen || !b->output_best)
        return b->n_outputs;
    for (int32_t i = 0; i < b->n_outputs; i++) {
        bool whole = b->output_best[i] < 1 || b->output_best[i] > ST_SCREEN_BEST;
        if (whole && few)
            return b->n_outputs;
        n += whole;
        few += !whole;
    }
    return n;
}

/* The best logits alone of the outputs from `first` on; false: all must be computed. */
static bool run_screened(st_model *m, const st_batch *b, int32_t first, float *logits)
{
    int32_t n = b->n_outputs - first;
    size_t vocab = (size_t)m->config.vocab_size;
    st_act a = st_rows_act(&m->work.last, first, n);
    if (n < 1 || !st_op_screened(m->ops, m->screen, &a, b->output_best + first,
                                 logits + (size_t)first * vocab, vocab))
        return false;
    if (b->output_bad) /* with a logit that is not finite the screen gives up */
        memset(b->output_bad + first, 0, (size_t)n * sizeof *b->output_bad);
    return true;
}

static st_status run_head(st_model *m, const st_step *s, float *logits, st_error *err)
{
    const st_batch *b = s->batch;
    st_work *w = &m->work;
    if (b->n_outputs == 0)
        return ST_OK;
    row_run run = {.m = m, .s = s, .n = b->n_outputs};
    run_rows(&run, ST_OP_NORM, last_norm_task, m->config.hidden_size);
    int32_t whole = count_whole(m, b);
    if (!run_screened(m, b, whole, logits))
        whole = b->n_outputs;
    if (whole == 0)
        return ST_OK;
    st_matmul_job job = st_linear_job(&m->head, st_rows_act(&w->last, 0, whole), logits,
                                      (size_t)m->config.vocab_size);
    st_op_matmul(m->ops, &job, 1);
    check_run check = {.m = m, .logits = logits};
    st_op_run(m->ops, ST_OP_ELEMENTWISE, (size_t)whole, check_task, &check);
    for (int32_t i = 0; i < whole; i++) {
        if (b->output_bad)
            b->output_bad[i] = w->bad[i];
        else if (w->bad[i])
            return st_fail(err, ST_EFORMAT,
                           "%s: the logits of batch row %d are not finite: the checkpoint's values "
                           "overflow float32",
                           st_checkpoint_dir(m->ckpt), b->output_rows[i]);
    }
    return ST_OK;
}

static st_status check_batch(const st_model *m, const st_batch *b, const st_kv_store *kv,
                             st_error *err)
{
    if (b->n_tokens < 1 || b->n_tokens > m->max_batch_tokens || b->n_seqs < 1 ||
        b->n_seqs > b->n_tokens || b->n_outputs < 0 || b->n_outputs > m->max_outputs)
        return st_fail(
            err, ST_EINVAL,
            "a batch of %d tokens, %d sequences and %d outputs: expected 1 to %d tokens, "
            "as many sequences at most, and at most %d outputs",
            b->n_tokens, b->n_seqs, b->n_outputs, m->max_batch_tokens, m->max_outputs);
    if (kv->n_layers != m->config.n_layers || kv->row_elems != st_model_kv_row_elems(m))
        return st_fail(err, ST_EINVAL,
                       "KV memory of %d layers with %d elements a row: the model has %d and %d",
                       kv->n_layers, kv->row_elems, m->config.n_layers, st_model_kv_row_elems(m));
    int32_t row = 0;
    for (int32_t i = 0; i < b->n_seqs; i++) {
        const st_batch_seq *s = &b->seqs[i];
        if (s->first != row || s->count < 1 || s->count > b->n_tokens - row)
            return st_fail(err, ST_EINVAL,
                           "sequence %d of the batch takes rows %d..%d: expected it to start at "
                           "row %d and to end within %d",
                           i, s->first, s->first + s->count, row, b->n_tokens);
        if (s->pos0 < 0 || s->count > m->max_len - s->pos0)
            return st_fail(err, ST_EINVAL,
                           "sequence %d of the batch reaches position %lld: the model was loaded "
                           "for %d positions",
                           i, (long long)s->pos0 + s->count - 1, m->max_len);
        row += s->count;
    }
    if (row != b->n_tokens)
        return st_fail(err, ST_EINVAL, "the batch's sequences cover %d of its %d rows", row,
                       b->n_tokens);
    for (int32_t i = 0; i < b->n_outputs; i++)
        if (b->output_rows[i] < 0 || b->output_rows[i] >= b->n_tokens)
            return st_fail(err, ST_EINVAL, "output %d of the batch is row %d: expected 0 to %d", i,
                           b->output_rows[i], b->n_tokens - 1);
    return ST_OK;
}

/* Adds rows [first, first + count) of a sequence's part of the batch. */
static void add_rows(st_attn_seq *list, int32_t *n, const st_batch_seq *s, int32_t first,
                     int32_t count)
{
    if (count > 0)
        list[(*n)++] = (st_attn_seq){.q_row = s->first + first,
                                     .n_q = count,
                                     .pos0 = s->pos0 + first,
                                     .block_table = s->block_table};
}

/* Which rows attend expanded, and which do not. */
static void split_rows(st_model *m, const st_batch *b)
{
    st_work *w = &m->work;
    w->n_seqs = w->n_expanded_seqs = 0;
    for (int32_t i = 0; i < b->n_seqs; i++) {
        const st_batch_seq *s = &b->seqs[i];
        int32_t until = m->config.attn == ST_ATTN_MLA ? s->expanded_until : 0, n = 0;
        if (until > s->pos0)
            n = until - s->pos0 < s->count ? until - s->pos0 : s->count;
        add_rows(w->expanded_seqs, &w->n_expanded_seqs, s, 0, n);
        add_rows(w->seqs, &w->n_seqs, s, n, s->count - n);
        for (int32_t row = 0; row < s->count; row++)
            w->expanded[s->first + row] = row < n;
    }
}

st_status st_model_forward(st_model *m, const st_batch *batch, st_kv_store *kv, float *logits,
                           st_error *err)
{
    st_status status = check_batch(m, batch, kv, err);
    if (status)
        return status;
    st_step step = {.batch = batch, .n = batch->n_tokens, .output = batch->output_rows, .kv = kv};
    row_run run = {.m = m, .s = &step, .n = batch->n_tokens};
    run_rows(&run, ST_OP_ELEMENTWISE, start_task, m->config.hidden_size);
    split_rows(m, batch);
    run_layers(m, &step);
    return run_head(m, &step, logits, err);
}
