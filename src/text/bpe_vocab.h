/* The vocabulary: spelling -> id and id -> spelling and bytes, for model.vocab and added_tokens
 * together. Immutable once built. */
#ifndef ST_TEXT_BPE_VOCAB_H
#define ST_TEXT_BPE_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "starling/status.h"

/* One more than the largest id accepted: far above any published vocabulary, and small enough
 * that a lying file cannot make the table of ids exhaust memory. */
#define ST_VOCAB_MAX_ID (1 << 22)

typedef struct st_token {
    const char *text;  /* as spelled in the file; NULL: no token has this id */
    const char *bytes; /* what it decodes to; set by the decoder (tokenizer_decoder.c) */
    uint32_t text_len, bytes_len;
    bool added;
    bool special;
} st_token;

typedef struct st_vocab {
    st_token *tokens; /* [size] */
    int32_t size;     /* largest id + 1 */
    uint32_t *slots;  /* open addressing by hash of the spelling: id + 1, 0: empty */
    size_t slot_mask;
    char *texts; /* every spelling, back to back */
} st_vocab;

/* Takes model.vocab (an object) and added_tokens (an array or NULL). Fails on ids that are no
 * whole numbers, out of range, or shared by two spellings. */
ST_NODISCARD st_status st_vocab_build(st_vocab *v, const json_t *vocab, const json_t *added,
                                      st_error *err);
void st_vocab_free(st_vocab *v);

/* The id of a spelling, or -1. */
int32_t st_vocab_find(const st_vocab *v, const char *text, size_t len);

/* The byte-level alphabet of GPT-2: every byte as a printable character. Printable Latin-1 bytes
 * stand for themselves, the other 68 for U+0100 and up, in order. */
uint32_t st_byte_to_char(unsigned char byte);
/* The byte that a character stands for, or -1. */
int st_char_to_byte(uint32_t cp);

#endif
