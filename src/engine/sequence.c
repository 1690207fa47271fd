/* Requests inside the engine: see sequence.h. */
#include "engine/sequence.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* Adds room for n elements to *total; returns the offset of the first. */
static bool add_array(size_t *total, int32_t n, size_t elem, size_t *offset)
{
    size_t bytes;
    *offset = *total;
    return st_mul_size((size_t)n, elem, &bytes) && st_add_size(bytes, 15, &bytes) &&
           st_add_size(*total, bytes & ~(size_t)15, total);
}

st_status st_seq_new(const st_request *r, const st_seq_setting *setting, st_seq **out)
{
    *out = NULL;
    int32_t max_model_len = setting->max_model_len, block_size = setting->block_size;
    int64_t most = (int64_t)r->n_prompt + r->sampling.max_tokens;
    int32_t max_total = most < max_model_len ? (int32_t)most : max_model_len;
    size_t total = (sizeof(st_seq) + 15) & ~(size_t)15;
    size_t tokens, blocks, hashes, stops, biases, remote, host, salt;
    const st_sampling *s = &r->sampling;
    const st_handover_request *h = &r->handover;
    bool fetch = h->what == ST_HANDOVER_FETCH;
    int32_t n_remote = fetch && h->remote_blocks ? h->n_remote_blocks : 0;
    size_t salt_len = r->cache_salt ? strlen(r->cache_salt) : 0;
    size_t host_len = fetch ? strlen(h->host) + 1 : 0;
    if (!add_array(&total, max_total, sizeof(int32_t), &tokens) ||
        !add_array(&total, st_sched_blocks(max_total, block_size), sizeof(int32_t), &blocks) ||
        !add_array(&total, max_total / block_size, sizeof(st_block_hash), &hashes) ||
        !add_array(&total, s->n_stop_ids, sizeof *s->stop_ids, &stops) ||
        !add_array(&total, s->n_logit_bias, sizeof *s->logit_bias, &biases) ||
        !add_array(&total, n_remote, sizeof(int32_t), &remote) ||
        !add_array(&total, 1, host_len, &host) || !add_array(&total, 1, salt_len, &salt))
        return ST_ENOMEM;
    unsigned char *p = malloc(total);
    if (!p)
        return ST_ENOMEM;
    st_seq *seq = (st_seq *)p;
    *seq = (st_seq){.priority = r->priority,
                    .sampling = *s,
                    .on_token = r->on_token,
                    .user = r->user,
                    .n_prompt = r->n_prompt,
                    .n_tokens = r->n_prompt,
                    .max_total = max_total,
                    .tokens = (int32_t *)(p + tokens),
                    .blocks = (int32_t *)(p + blocks),
                    .hashes = (st_block_hash *)(p + hashes),
                    .root = setting->root,
                    .expanded_until = setting->expanded_until,
                    .hashed_until = setting->hashed_until};
    memcpy(seq->tokens, r->prompt, (size_t)r->n_prompt * sizeof *seq->tokens);
    if (s->n_stop_ids > 0)
        memcpy(p + stops, s->stop_ids, (size_t)s->n_stop_ids * sizeof *s->stop_ids);
    if (s->n_logit_bias > 0)
        memcpy(p + biases, s->logit_bias, (size_t)s->n_logit_bias * sizeof *s->logit_bias);
    if (n_remote > 0)
        memcpy(p + remote, h->remote_blocks, (size_t)n_remote * sizeof(int32_t));
    if (fetch)
        memcpy(p + host, h->host, host_len);
    if (salt_len > 0)
        memcpy(p + salt, r->cache_salt, salt_len);
    seq->salt = (const char *)(p + salt);
    seq->salt_len = salt_len;
    seq->handover = *h;
    seq->handover.host = fetch ? (const char *)(p + host) : NULL;
    seq->handover.remote_blocks = n_remote > 0 ? (const int32_t *)(p + remote) : NULL;
    seq->handover.n_remote_blocks = n_remote;
    seq->sampling.stop_ids = (const int32_t *)(p + stops);
    seq->sampling.logit_bias = (const st_logit_bias *)(p + biases);
    *out = seq;
    return ST_OK;
}

void st_seq_free(st_seq *seq)
{
    free(seq);
}

void st_seq_extend_hashes(st_seq *seq, int32_t block_size)
{
    int32_t full = seq->n_tokens / block_size;
    for (int32_t i = seq->n_hashes; i < full; i++) {
        st_block_hash parent = i > 0 ? seq->hashes[i - 1] : seq->root;
        int32_t first = i * block_size, n_expanded = seq->hashed_until - first;
        n_expanded = n_expanded < 0 ? 0 : n_expanded > block_size ? block_size : n_expanded;
        seq->hashes[i] =
            st_block_hash_next(parent, seq->tokens + (size_t)first, block_size, n_expanded);
    }
    if (full > seq->n_hashes)
        seq->n_hashes = full;
}

st_sched_seq st_seq_for_scheduler(const st_seq *seq)
{
    return (st_sched_seq){.n_tokens = seq->n_tokens,
                          .n_computed = seq->n_computed,
                          .n_blocks = seq->n_blocks,
                          .priority = seq->priority,
                          .arrival = seq->id};
}

/* ---- lists ---- */

static void link_after(st_seq_list *list, st_seq *before, st_seq *seq)
{
    st_seq *after = before ? before->next : list->head;
    seq->prev = before;
    seq->next = after;
    *(before ? &before->next : &list->head) = seq;
    *(after ? &after->prev : &list->tail) = seq;
    list->count++;
}

void st_seq_list_append(st_seq_list *list, st_seq *seq)
{
    link_after(list, list->tail, seq);
}

void st_seq_list_insert(st_seq_list *list, st_seq *seq)
{
    st_sched_seq rank = st_seq_for_scheduler(seq);
    st_seq *before = list->tail;
    for (; before; before = before->prev) {
        st_sched_seq other = st_seq_for_scheduler(before);
        if (!st_sched_before(&rank, &other))
            break;
    }
    link_after(list, before, seq);
}

void st_seq_list_remove(st_seq_list *list, st_seq *seq)
{
    *(seq->prev ? &seq->prev->next : &list->head) = seq->next;
    *(seq->next ? &seq->next->prev : &list->tail) = seq->prev;
    seq->prev = seq->next = NULL;
    list->count--;
}

/* ---- id table: chains in a fixed number of buckets ---- */

st_status st_seq_table_init(st_seq_table *t, int32_t expected)
{
    uint64_t n = 64;
    while (n < (uint64_t)expected && n < 1u << 16)
        n *= 2;
    t->mask = n - 1;
    t->buckets = calloc(n, sizeof(st_seq *));
    return t->buckets ? ST_OK : ST_ENOMEM;
}

void st_seq_table_free(st_seq_table *t)
{
    free(t->buckets);
    t->buckets = NULL;
}

void st_seq_table_add(st_seq_table *t, st_seq *seq)
{
    st_seq **bucket = &t->buckets[seq->id & t->mask];
    seq->bucket_next = *bucket;
    *bucket = seq;
}

void st_seq_table_remove(st_seq_table *t, st_seq *seq)
{
    st_seq **at = &t->buckets[seq->id & t->mask];
    while (*at != seq)
        at = &(*at)->bucket_next;
    *at = seq->bucket_next;
}

st_seq *st_seq_table_find(const st_seq_table *t, uint64_t id)
{
    st_seq *seq = t->buckets[id & t->mask];
    while (seq && seq->id != id)
        seq = seq->bucket_next;
    return seq;
}
