/* `starling inspect`: what was understood of a checkpoint, as aligned text or as JSON. Parameters
 * are counted from the tensors themselves. */
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/human.h"
#include "model/checkpoint.h"
#include "model/folder_file.h"
#include "model/model_memory.h"
#include "model/pack_cache.h"
#include "model/weights.h"

/* Steps the memory figure is given for: the engine's default. */
#define BATCH_TOKENS 512

typedef struct facts {
    const st_checkpoint *ckpt;
    const st_model_config *c;
    uint64_t total, active, mtp; /* parameters; total without the MTP layers */
    size_t bytes[ST_DTYPE_COUNT], count[ST_DTYPE_COUNT];
    int32_t moe_layers;
    size_t kv_row;     /* elements a token and layer */
    uint64_t kv_bytes; /* a token, BF16 */
    uint64_t kv_i8_bytes;
    const char *tokenizer; /* file name, or NULL */
    bool template;
    const st_kernels *k;
    st_error problem;     /* why it could not be loaded; no text: it could */
    char packs[PATH_MAX]; /* the user's pack cache for it; "": packs are made in memory */
    bool packs_there;
    st_memory_need need;
    st_memory_room room;
} facts;

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcmp(s + n - m, tail) == 0;
}

/* Scales and tables belong to the format, not to the model. */
static bool is_parameter(const facts *f, const st_tensor *t)
{
    static const char *const tails[] = {"_scale",    "_offset",    "_zero_point",
                                        ".inv_freq", "_scale_inv", ".qzeros",
                                        ".scales",   "g_idx",      ".weight_shape"};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++)
        if (ends_with(t->name, tails[i]))
            return false;
    return !(f->c->tie_embeddings && strcmp(t->name, "lm_head.weight") == 0);
}

/* INT4 has eight in a word (the last of a row may not be full: published sizes are multiples). */
static uint64_t parameters_of(const st_tensor *t)
{
    bool int4 = ends_with(t->name, ".weight_packed") || ends_with(t->name, ".qweight");
    return t->bytes / st_dtype_size(t->dtype) * (int4 ? 8 : 1);
}

/* A token uses everything but the routed experts it does not choose; of an untied input embedding
 * it reads one row, which is not counted. */
static void count_parameters(facts *f, const st_tensor *t, uint64_t *routed)
{
    uint64_t n = parameters_of(t);
    if (!is_parameter(f, t))
        return;
    if (st_tensor_layer(t->name) >= f->c->n_layers) {
        f->mtp += n;
        return;
    }
    f->total += n;
    if (strstr(t->name, ".mlp.experts."))
        *routed += n;
    else if (f->c->tie_embeddings || strcmp(t->name, "model.embed_tokens.weight") != 0)
        f->active += n;
}

static bool has_template(const char *dir)
{
    if (st_folder_file_exists(dir, "chat_template.jinja"))
        return true;
    st_buf text = ST_BUF_INIT;
    json_t *root = NULL;
    if (st_folder_file_read(dir, "tokenizer_config.json", (size_t)16 << 20, &text, NULL) == ST_OK)
        root = json_loadb(text.data, text.len, 0, NULL);
    json_t *t = json_object_get(root, "chat_template");
    bool there = json_is_string(t) || json_is_array(t);
    json_decref(root);
    st_buf_free(&text);
    return there;
}

/* Where packed weights will come from, and what all of it takes. */
static st_status collect_memory(facts *f, const st_checkpoint *ckpt, st_error *err)
{
    const st_pack_choice usual = {0};
    size_t packed = st_checkpoint_total_bytes(ckpt), size = 0;
    st_status s = st_kernels_select(NULL, &f->k, err);
    if (s)
        return s;
    if (st_layers_measure(ckpt, f->k, &packed, &f->problem) == ST_OK)
        f->problem.text[0] = '\0';
    if (!st_packs_in_file(&usual, packed) ||
        st_pack_cache_path(NULL, ckpt, f->k, f->packs, sizeof f->packs, NULL))
        f->packs[0] = '\0';
    f->packs_there = f->packs[0] && st_pack_cache_exists(f->packs, ckpt, f->k, &size);
    st_memory_read_room(0, &f->room);
    const st_memory_steps steps = {.k = f->k,
                                   .threads = st_processors(),
                                   .max_batch_tokens = BATCH_TOKENS,
                                   .max_outputs = BATCH_TOKENS};
    return st_model_memory_predict(f->c, st_checkpoint_at(ckpt, 0), st_checkpoint_count(ckpt),
                                   packed, f->packs[0], &steps, &f->need, err);
}

static st_status collect(facts *f, const st_checkpoint *ckpt, st_error *err)
{
    const char *dir = st_checkpoint_dir(ckpt);
    const st_model_config *c = st_checkpoint_config(ckpt);
    uint64_t routed = 0;
    *f = (facts){.ckpt = ckpt, .c = c};
    for (size_t i = 0; i < st_checkpoint_count(ckpt); i++) {
        const st_tensor *t = st_checkpoint_at(ckpt, i);
        f->bytes[t->dtype] += t->bytes;
        f->count[t->dtype]++;
        count_parameters(f, t, &routed);
    }
    if (c->n_experts)
        f->active += routed / (uint64_t)c->n_experts * (uint64_t)c->experts_per_token;
    for (int32_t i = 0; i < c->n_layers; i++)
        f->moe_layers += st_model_layer_is_moe(c, i);
    f->kv_row = (size_t)st_kv_row_elems(st_config_kv_row(c));
    f->kv_i8_bytes = (uint64_t)c->n_layers * st_kv_i8_row_bytes(st_config_kv_row(c));
    f->kv_bytes = (uint64_t)c->n_layers * f->kv_row * st_dtype_size(ST_BF16);
    f->tokenizer = st_folder_file_exists(dir, "tokenizer.json")    ? "tokenizer.json"
                   : st_folder_file_exists(dir, "tokenizer.model") ? "tokenizer.model"
                                                                   : NULL;
    f->template = has_template(dir);
    return collect_memory(f, ckpt, err);
}

static const struct {
    const char *name, *text; /* for JSON (null: none), for people */
} quant_texts[] = {
    [ST_QUANT_NONE] = {NULL, "none"},
    [ST_QUANT_W8A8] = {"w8a8", "W8A8: INT8 weights per channel, INT8 activations per token"},
    [ST_QUANT_FP8] = {"fp8", "FP8: E4M3 weights with a scale per block, float activations"},
    [ST_QUANT_PACKED_INT4] = {"pack-quantized", "INT4 weights in groups (compressed-tensors), INT8 "
                                                "activations per token"},
    [ST_QUANT_GPTQ] = {"gptq", "INT4 weights in groups (GPTQ), INT8 activations per token"},
    [ST_QUANT_AWQ] = {"awq", "INT4 weights in groups (AWQ), INT8 activations per token"},
};

/* --- text -------------------------------------------------------------------------------- */

/* Writes lines "  label   value" and remembers the first failure to append. */
typedef struct page {
    st_buf *out;
    st_status status;
} page;

static void ST_PRINTF(2, 3) put(page *p, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (p->status == ST_OK)
        p->status = st_buf_puts(p->out, text);
}

static void label(page *p, const char *name)
{
    put(p, "  %-14s", name);
}

static void put_attention(page *p, const st_model_config *c)
{
    label(p, "attention");
    if (c->attn == ST_ATTN_MLA) {
        put(p, "MLA: %d heads of %d + %d (rotary), v %d; kv_lora %d, ", c->n_heads,
            c->qk_nope_head_dim, c->qk_rope_head_dim, c->v_head_dim, c->kv_lora_rank);
        put(p, c->q_lora_rank ? "q_lora %d" : "no q_lora", c->q_lora_rank);
    } else {
        put(p, "GQA: %d query heads, %d key/value heads of %d%s%s", c->n_heads, c->n_kv_heads,
            c->head_dim, c->qk_norm ? ", q and k normed" : "",
            c->o_bias     ? ", biases on q, k, v, o"
            : c->qkv_bias ? ", biases on q, k, v"
                          : "");
    }
    put(p, "%s; softmax scale %.6g\n", c->sandwich_norm ? "; sandwich norms" : "",
        (double)c->attn_scale);
    label(p, "rotary");
    put(p, "%s pairs, theta %g", c->rope_interleaved ? "interleaved" : "half-split", c->rope_theta);
    if (c->yarn)
        put(p, ", YaRN x%g over %d positions", c->yarn_factor, c->yarn_original_positions);
    put(p, "\n");
}

static void put_experts(page *p, const facts *f)
{
    const st_model_config *c = f->c;
    if (!c->n_experts)
        return;
    label(p, "experts");
    put(p, "%d routed of %d, %d per token, %d shared; %s router%s%s, weights x %g\n", c->n_experts,
        c->moe_intermediate_size, c->experts_per_token, c->n_shared_experts,
        c->router == ST_ROUTER_SIGMOID ? "sigmoid" : "softmax",
        c->router_bias ? " with correction bias" : "", c->norm_topk_prob ? ", normalised" : "",
        (double)c->routed_scaling_factor);
    if (c->n_group > 1) {
        label(p, "expert groups");
        put(p, "%d, the best %d per token\n", c->n_group, c->topk_group);
    }
}

static void put_shape(page *p, const facts *f)
{
    const st_model_config *c = f->c;
    label(p, "layers");
    put(p, "%d", c->n_layers);
    if (f->moe_layers)
        put(p, ": %d dense, %d with experts", c->n_layers - f->moe_layers, f->moe_layers);
    if (c->n_mtp_layers)
        put(p, "; and %d for multi-token prediction", c->n_mtp_layers);
    put(p, "\n");
    label(p, "hidden");
    put(p, "%d; dense MLP %d; RMSNorm eps %g\n", c->hidden_size, c->intermediate_size,
        (double)c->rms_norm_eps);
    put_attention(p, c);
    put_experts(p, f);
    label(p, "vocabulary");
    put(p, "%d%s; bos ", c->vocab_size, c->tie_embeddings ? ", tied to the output" : "");
    put(p, c->bos_id < 0 ? "none" : "%d", c->bos_id);
    put(p, "; eos");
    for (int32_t i = 0; i < c->n_eos; i++)
        put(p, " %d", c->eos_ids[i]);
    put(p, c->n_eos ? "\n" : " none\n");
    label(p, "context");
    put(p, "%d tokens\n", c->max_positions);
}

static void put_memory(page *p, const facts *f)
{
    label(p, "KV memory");
    put(p, "%s per token in BF16 (%s for the whole context), %s in INT8\n",
        st_human_bytes(f->kv_bytes).s,
        st_human_bytes(f->kv_bytes * (uint64_t)f->c->max_positions).s,
        st_human_bytes(f->kv_i8_bytes).s);
    label(p, "needs");
    put(p,
        "%s without KV: packed weights %s, embedding %s, prepared %s, working %s (steps of %d "
        "tokens)\n",
        st_human_bytes(f->need.total).s, st_human_bytes(f->need.packed).s,
        st_human_bytes(f->need.rows).s, st_human_bytes(f->need.prepared).s,
        st_human_bytes(f->need.working).s, BATCH_TOKENS);
    st_error no = {0};
    bool fits = st_memory_fits("", &f->need, &f->room, &no) == ST_OK;
    label(p, "available");
    put(p, "%s: %s\n",
        f->room.available == SIZE_MAX ? "unknown" : st_human_bytes(f->room.available).s,
        fits ? "it fits" : "it does NOT fit");
}

/* Paths and errors may be longer than what put() takes. */
static void put_packs(page *p, const facts *f)
{
    label(p, "packs");
    put(p, "for %s, %s", f->k->name,
        !f->packs[0]     ? "made in memory at every start"
        : f->packs_there ? "kept in "
                         : "will be kept in ");
    if (p->status == ST_OK)
        p->status = st_buf_printf(p->out, "%s\n", f->packs);
    if (!f->problem.text[0])
        return;
    label(p, "problem");
    if (p->status == ST_OK)
        p->status = st_buf_printf(p->out, "%s\n", f->problem.text);
}

static void put_tensors(page *p, const facts *f)
{
    size_t width = 0;
    for (size_t i = 0; i < st_checkpoint_count(f->ckpt); i++) {
        size_t n = strlen(st_checkpoint_at(f->ckpt, i)->name);
        width = n > width ? n : width;
    }
    width = width > 72 ? 72 : width;
    put(p, "\n");
    for (size_t i = 0; i < st_checkpoint_count(f->ckpt); i++) {
        const st_tensor *t = st_checkpoint_at(f->ckpt, i);
        if (p->status == ST_OK)
            p->status = st_buf_puts(p->out, t->name);
        put(p, "%*s  %-7s [", (int)(strlen(t->name) < width ? width - strlen(t->name) : 0), "",
            st_dtype_name(t->dtype));
        for (int32_t d = 0; d < t->rank; d++)
            put(p, "%s%" PRId64, d ? ", " : "", t->shape[d]);
        put(p, "]  %s\n", st_human_bytes(t->bytes).s);
    }
}

static st_status describe_text(const facts *f, bool tensors, st_buf *out)
{
    page p = {out, ST_OK};
    size_t total = st_checkpoint_total_bytes(f->ckpt);
    if (p.status == ST_OK)
        p.status = st_buf_printf(out, "%s\n", st_checkpoint_dir(f->ckpt));
    label(&p, "family");
    put(&p, "%s\n", f->c->model_type);
    label(&p, "parameters");
    put(&p, "%s", st_human_count(f->total).s);
    if (f->active != f->total)
        put(&p, ", %s active per token", st_human_count(f->active).s);
    if (f->mtp)
        put(&p, "; and %s in the multi-token prediction layers", st_human_count(f->mtp).s);
    put(&p, "\n");
    label(&p, "weights");
    put(&p, "%s in %zu tensors:", st_human_bytes(total).s, st_checkpoint_count(f->ckpt));
    const char *separator = "";
    for (int t = 0; t < ST_DTYPE_COUNT; t++)
        if (f->count[t]) {
            put(&p, "%s %s %s", separator, st_dtype_name((st_dtype)t),
                st_human_bytes(f->bytes[t]).s);
            separator = ",";
        }
    put(&p, "\n");
    label(&p, "quantization");
    put(&p, "%s\n", quant_texts[f->c->quant.method].text);
    put_shape(&p, f);
    label(&p, "tokenizer");
    put(&p, "%s; chat template: %s\n", f->tokenizer ? f->tokenizer : "none",
        f->template ? "yes" : "none");
    put_memory(&p, f);
    put_packs(&p, f);
    if (tensors)
        put_tensors(&p, f);
    return p.status;
}

/* --- JSON -------------------------------------------------------------------------------- */

static json_t *attention_json(const st_model_config *c)
{
    if (c->attn == ST_ATTN_MLA)
        return json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:f}", "kind", "mla", "heads",
                         c->n_heads, "q_lora_rank", c->q_lora_rank, "kv_lora_rank", c->kv_lora_rank,
                         "qk_nope_head_dim", c->qk_nope_head_dim, "qk_rope_head_dim",
                         c->qk_rope_head_dim, "v_head_dim", c->v_head_dim, "sandwich_norm",
                         c->sandwich_norm, "scale", (double)c->attn_scale);
    return json_pack("{s:s, s:i, s:i, s:i, s:b, s:b, s:b, s:f}", "kind", "gqa", "heads", c->n_heads,
                     "kv_heads", c->n_kv_heads, "head_dim", c->head_dim, "qkv_bias", c->qkv_bias,
                     "o_bias", c->o_bias, "qk_norm", c->qk_norm, "scale", (double)c->attn_scale);
}

static json_t *rope_json(const st_model_config *c)
{
    json_t *o = json_pack("{s:f, s:b}", "theta", c->rope_theta, "interleaved", c->rope_interleaved);
    if (c->yarn)
        json_object_set_new(o, "yarn",
                            json_pack("{s:f, s:i}", "factor", c->yarn_factor, "original_positions",
                                      c->yarn_original_positions));
    return o;
}

static json_t *experts_json(const facts *f)
{
    const st_model_config *c = f->c;
    if (!c->n_experts)
        return json_null();
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:s, s:b, s:b, s:f, s:i, s:i}", "routed",
                     c->n_experts, "per_token", c->experts_per_token, "shared", c->n_shared_experts,
                     "intermediate_size", c->moe_intermediate_size, "layers", f->moe_layers,
                     "router", c->router == ST_ROUTER_SIGMOID ? "sigmoid" : "softmax",
                     "correction_bias", c->router_bias, "normalised", c->norm_topk_prob, "scaling",
                     (double)c->routed_scaling_factor, "groups", c->n_group, "groups_per_token",
                     c->topk_group);
}

static json_t *memory_json(const facts *f)
{
    st_error no = {0};
    json_t *o =
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:i, s:b, s:s, s:s?, s:b, s:s?}", "packed",
                  (json_int_t)f->need.packed, "embedding", (json_int_t)f->need.rows, "prepared",
                  (json_int_t)f->need.prepared, "working", (json_int_t)f->need.working, "total",
                  (json_int_t)f->need.total, "tokens_per_step", BATCH_TOKENS, "fits",
                  st_memory_fits("", &f->need, &f->room, &no) == ST_OK, "kernels", f->k->name,
                  "pack_cache", f->packs[0] ? f->packs : NULL, "packed_already", f->packs_there,
                  "problem", f->problem.text[0] ? f->problem.text : NULL);
    if (f->room.available != SIZE_MAX)
        json_object_set_new(o, "available", json_integer((json_int_t)f->room.available));
    return o;
}

static json_t *tensors_json(const facts *f)
{
    json_t *list = json_array();
    for (size_t i = 0; i < st_checkpoint_count(f->ckpt); i++) {
        const st_tensor *t = st_checkpoint_at(f->ckpt, i);
        json_t *shape = json_array();
        for (int32_t d = 0; d < t->rank; d++)
            json_array_append_new(shape, json_integer(t->shape[d]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:I, s:s}", "name", t->name, "dtype",
                                              st_dtype_name(t->dtype), "shape", shape, "bytes",
                                              (json_int_t)t->bytes, "file", t->file));
    }
    return list;
}

static st_status describe_json(const facts *f, bool tensors, st_buf *out, st_error *err)
{
    const st_model_config *c = f->c;
    json_t *eos = json_array(), *dtypes = json_object();
    for (int32_t i = 0; i < c->n_eos; i++)
        json_array_append_new(eos, json_integer(c->eos_ids[i]));
    for (int t = 0; t < ST_DTYPE_COUNT; t++)
        if (f->count[t])
            json_object_set_new(dtypes, st_dtype_name((st_dtype)t),
                                json_integer((json_int_t)f->bytes[t]));
    json_t *root = json_pack(
        "{s:s, s:s, s:{s:I, s:I, s:I}, s:{s:I, s:I, s:o}, s:s?, s:i, s:i, s:i, s:i, s:i, s:i, s:b, "
        "s:f, s:o, s:o, s:o, s:o, s:I, s:I, s:s?, s:b, s:o}",
        "dir", st_checkpoint_dir(f->ckpt), "family", c->model_type, "parameters", "total",
        (json_int_t)f->total, "active", (json_int_t)f->active, "mtp", (json_int_t)f->mtp, "weights",
        "bytes", (json_int_t)st_checkpoint_total_bytes(f->ckpt), "tensors",
        (json_int_t)st_checkpoint_count(f->ckpt), "bytes_by_dtype", dtypes, "quantization",
        quant_texts[c->quant.method].name, "layers", c->n_layers, "mtp_layers", c->n_mtp_layers,
        "hidden_size", c->hidden_size, "intermediate_size", c->intermediate_size, "vocab_size",
        c->vocab_size, "max_positions", c->max_positions, "tied_embeddings", c->tie_embeddings,
        "rms_norm_eps", (double)c->rms_norm_eps, "eos_token_ids", eos, "attention",
        attention_json(c), "rope", rope_json(c), "experts", experts_json(f), "kv_bytes_per_token",
        (json_int_t)f->kv_bytes, "kv_bytes_per_token_int8", (json_int_t)f->kv_i8_bytes, "tokenizer",
        f->tokenizer, "chat_template", f->template, "memory", memory_json(f));
    if (root && tensors)
        json_object_set_new(root, "tensor_list", tensors_json(f));
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(7));
    json_decref(root);
    st_status s = text ? st_buf_printf(out, "%s\n", text) : ST_ENOMEM;
    free(text);
    return s ? st_fail(err, s, "%s: no memory to describe it", st_checkpoint_dir(f->ckpt)) : ST_OK;
}

st_status st_model_describe(const char *dir, bool json, bool tensors, st_buf *out, st_error *err)
{
    st_checkpoint *ckpt;
    facts f;
    st_status s = st_checkpoint_open(dir, &ckpt, err);
    if (s)
        return s;
    s = collect(&f, ckpt, err);
    if (s == ST_OK)
        s = json ? describe_json(&f, tensors, out, err) : describe_text(&f, tensors, out);
    st_checkpoint_free(ckpt);
    return s;
}
