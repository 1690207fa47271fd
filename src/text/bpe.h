/* Byte-pair encoding of one word (pre-token) at a time: repeatedly joins the adjacent pair of
 * lowest rank, the leftmost of equals, as Sennrich et al. 2016 (arXiv:1508.07909) describe. */
#ifndef ST_TEXT_BPE_H
#define ST_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "starling/buf.h"
#include "starling/status.h"
#include "text/bpe_vocab.h"

typedef struct st_bpe st_bpe;

/* Takes the "model" object. byte_level: words are bytes, spelled in the byte-level alphabet;
 * else they are characters. vocab must outlive the result. */
ST_NODISCARD st_status st_bpe_new(const json_t *model, const st_vocab *vocab, bool byte_level,
                                  st_bpe **out, st_error *err);
void st_bpe_free(st_bpe *b); /* NULL is fine */

/* The fewest ids that a word of len bytes can become: a bound that costs nothing. */
size_t st_bpe_fewest_ids(const st_bpe *b, size_t len);

/* What one call of encode keeps between words: a cache of words seen, and work memory.
 * Zero-initialise; release with st_bpe_scratch_free. */
typedef struct st_bpe_scratch {
    struct st_bpe_cached *cache; /* NULL: none */
    void *work;
    size_t work_bytes;
    st_buf spelled;
} st_bpe_scratch;
/* Turns the cache on (for texts long enough to repeat words). Without memory it stays off. */
void st_bpe_scratch_cache(st_bpe_scratch *s);
void st_bpe_scratch_free(st_bpe_scratch *s);

/* Appends the ids of text->data[off .. off + len) to *out. The cache refers to positions in text
 * and out: both may only grow while the scratch is in use. */
ST_NODISCARD st_status st_bpe_encode(const st_bpe *b, st_bpe_scratch *scratch, const st_buf *text,
                                     size_t off, size_t len, st_ids *out, st_error *err);

#endif
