/* KV cache events as vLLM and SGLang publish them: msgpack, in both encodings.
 *
 *   batch   [ts, [event...], dp_rank?]          or a map {"ts", "events", "data_parallel_rank"}
 *   event   ["BlockStored", block_hashes, parent_block_hash, token_ids, block_size, lora_id,
 *            medium, lora_name, extra_keys, group_idx, ...]
 *                                               or a map {"type": "BlockStored", ...}
 *           ["BlockRemoved", block_hashes, medium, group_idx]
 *           ["AllBlocksCleared"]
 *
 * Hashes are unsigned (or negative) 64-bit integers, or bytes, of which the last eight count, big
 * endian. Fields that are unknown are skipped; trailing ones may be missing. The decoder pulls: it
 * never allocates by a length that the bytes claim. */
#ifndef ST_EVENTS_KV_EVENT_H
#define ST_EVENTS_KV_EVENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/buf.h"
#include "starling/status.h"

typedef enum st_kv_event_type {
    ST_KV_STORED,
    ST_KV_REMOVED,
    ST_KV_CLEARED,
    ST_KV_UNKNOWN /* a type this version does not know: skipped */
} st_kv_event_type;

typedef enum st_kv_medium { ST_MEDIUM_GPU, ST_MEDIUM_CPU, ST_MEDIUM_OTHER } st_kv_medium;

/* Arrays belong to the decoder and are valid during the callback. */
typedef struct st_kv_event {
    st_kv_event_type type;
    const uint64_t *hashes;
    size_t n_hashes;
    bool has_parent;
    uint64_t parent;
    const int32_t *tokens; /* n_tokens = n_hashes * block_size */
    size_t n_tokens;
    int32_t block_size;
    st_kv_medium medium; /* absent: GPU; SGLang's CPU_TIER1/2 and vLLM's "CPU": CPU */
    int32_t group;       /* group_idx of models with several kinds of KV cache; -1: not given */
    /* NULL: none; with length. An engine that gives only lora_id: "#" and the number. */
    const char *lora_name;
    size_t lora_name_len;
    /* The first text among the first block's extra_keys that is not the LoRA's name: the request's
     * cache_salt. NULL: none. */
    const char *salt;
    size_t salt_len;
} st_kv_event;

typedef struct st_kv_decoder st_kv_decoder;

ST_NODISCARD st_status st_kv_decoder_new(st_kv_decoder **out);
void st_kv_decoder_free(st_kv_decoder *d);

typedef struct st_kv_batch_info {
    int64_t dp_rank;  /* -1: not given */
    uint32_t events;  /* delivered */
    uint32_t skipped; /* unknown type, wrong arity or types, lengths that do not fit together */
} st_kv_batch_info;

/* Decodes a batch and calls on_event for each event in order. An event that is malformed within is
 * skipped and counted; ST_EFORMAT when the batch itself cannot be followed to its end (what came
 * before has been delivered). */
typedef void st_kv_event_fn(void *user, const st_kv_event *event);
ST_NODISCARD st_status st_kv_decode(st_kv_decoder *d, const void *payload, size_t len,
                                    st_kv_event_fn *on_event, void *user, st_kv_batch_info *info);

/* Encoding, as our engine publishes (maps, or arrays as vLLM had them): appends one batch. dp_rank
 * -1: none. ST_EINVAL: a type that has no encoding. */
ST_NODISCARD st_status st_kv_encode_batch(const st_kv_event *events, size_t n, double ts,
                                          int dp_rank, bool as_maps, st_buf *out);

#endif
