/* What a loaded tokenizer consists of; shared by loading, encoding and decoding. */
#ifndef ST_TEXT_TOKENIZER_INTERNAL_H
#define ST_TEXT_TOKENIZER_INTERNAL_H

#include <jansson.h>

#include "starling/tokenizer.h"
#include "text/bpe.h"
#include "text/bpe_vocab.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_added.h"
#include "text/tokenizer_decoder.h"

struct st_tokenizer {
    st_vocab vocab;
    st_decoder decoder;
    st_added_set raw, normalized; /* looked for before and after the normalizer */
    st_normalizer *normalizer;
    st_pretokenizer *pretokenizer;
    st_bpe *bpe;
    st_ids prefix, suffix; /* ST_ENCODE_ADD_SPECIAL */
    int32_t bos, eos;      /* -1: none */
};

/* tokenizer_config.c: reads tokenizer_config.json (json may be NULL) and the post_processor into
 * bos, eos, prefix, suffix and the special flags. The vocabulary is built. */
ST_NODISCARD st_status st_tokenizer_configure(st_tokenizer *t, const json_t *post_processor,
                                              const json_t *config, st_error *err);

/* Appends bytes to *out as valid UTF-8. *held (less than 4 bytes, *n_held of them) keeps the
 * beginning of an unfinished character between calls; finish: nothing more will come. */
typedef struct st_utf8_stream {
    char held[4];
    size_t n_held;
} st_utf8_stream;
ST_NODISCARD st_status st_utf8_stream_push(st_utf8_stream *u, const char *bytes, size_t n,
                                           st_buf *out);
ST_NODISCARD st_status st_utf8_stream_finish(st_utf8_stream *u, st_buf *out);

#endif
