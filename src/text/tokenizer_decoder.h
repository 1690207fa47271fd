/* The "decoder" of tokenizer.json, worked out once for every token: what bytes each stands for. */
#ifndef ST_TEXT_TOKENIZER_DECODER_H
#define ST_TEXT_TOKENIZER_DECODER_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "starling/status.h"
#include "text/bpe_vocab.h"

typedef struct st_decoder {
    char *bytes; /* the tokens' bytes, where they differ from their spelling */
    /* Taken off the front of the whole text, up to strip_max times (Strip behind Fuse). */
    char strip[8];
    size_t strip_len, strip_max;
} st_decoder;

/* Fills tokens[].bytes of vocab. json: the component, or NULL / null: spellings are the text. */
ST_NODISCARD st_status st_decoder_build(st_decoder *d, const json_t *json, st_vocab *vocab,
                                        st_error *err);
void st_decoder_free(st_decoder *d);

#endif
