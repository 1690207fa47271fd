/* Ids of prompt texts that were tokenized before: system prompts, earlier turns of a chat.
 *
 * A text may be cut where an added (special) token stands without changing its ids, since neither
 * pre-tokenizer nor BPE looks across one. The cache remembers the ids of pieces between such cuts;
 * of a new prompt it encodes only pieces that it does not know. Ids are always those of
 * st_tokenizer_encode; a test compares. Texts without added tokens, ill-formed texts, and
 * tokenizers whose added tokens look at their surroundings ("single_word") are never cut. Tokens
 * with "normalized" are places to cut at where the normalizer changes nothing.
 *
 * Bounded by bytes, least recently used first. Any thread; one lock, held for look-ups only. */
#ifndef ST_TEXT_TOKEN_CACHE_H
#define ST_TEXT_TOKEN_CACHE_H

#include "starling/tokenizer.h"

typedef struct st_token_cache st_token_cache;

typedef struct st_token_cache_stats {
    uint64_t lookups, hits;          /* texts that could be cut; those with a known piece */
    uint64_t bytes_asked, bytes_hit; /* of text */
    size_t memory, entries;
} st_token_cache_stats;

/* tok must outlive the cache. After a fork each process goes on with its own copy. */
ST_NODISCARD st_status st_token_cache_new(const st_tokenizer *tok, size_t max_bytes,
                                          st_token_cache **out);
void st_token_cache_free(st_token_cache *c); /* NULL is fine */

/* Like st_tokenizer_encode_limited, and remembers. */
ST_NODISCARD st_status st_token_cache_encode(st_token_cache *c, const char *text, size_t len,
                                             unsigned flags, size_t max_ids, st_ids *out,
                                             st_error *err);
void st_token_cache_get_stats(st_token_cache *c, st_token_cache_stats *out);

#endif
