/* Text to token ids and back: byte-level BPE as Hugging Face tokenizer.json files describe it
 * (added tokens, normalizer, pre-tokenizer, merges, decoder).
 *
 * A loaded st_tokenizer is immutable: any number of threads may encode and decode at once. */
#ifndef STARLING_TOKENIZER_H
#define STARLING_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/buf.h"
#include "starling/status.h"

typedef struct st_tokenizer st_tokenizer;

/* Loads DIR/tokenizer.json and, when present, DIR/tokenizer_config.json (BOS / EOS names,
 * add_bos_token, add_eos_token). On failure *out is NULL and err names file and field. */
ST_NODISCARD st_status st_tokenizer_load(const char *dir, st_tokenizer **out, st_error *err);

/* The same from memory; config may be NULL. The texts may be freed afterwards. */
ST_NODISCARD st_status st_tokenizer_parse(const char *json, size_t json_len, const char *config,
                                          size_t config_len, st_tokenizer **out, st_error *err);
void st_tokenizer_free(st_tokenizer *t); /* NULL is fine */

enum {
    ST_ENCODE_ADD_SPECIAL = 1,   /* put BOS / EOS where tokenizer_config.json asks for them */
    ST_ENCODE_PLAIN_SPECIAL = 2, /* text that spells an added token stays plain text */
};

/* Appends the ids of text[0..len) to *out. The text need not be valid UTF-8: ill-formed
 * subsequences become U+FFFD first, as the Hugging Face libraries' callers do. */
ST_NODISCARD st_status st_tokenizer_encode(const st_tokenizer *t, const char *text, size_t len,
                                           unsigned flags, st_ids *out, st_error *err);

/* The same, but ST_EFULL, with *out as it was, once it is certain that there are more than max_ids:
 * a text far too long costs little more than reading it. */
ST_NODISCARD st_status st_tokenizer_encode_limited(const st_tokenizer *t, const char *text,
                                                   size_t len, unsigned flags, size_t max_ids,
                                                   st_ids *out, st_error *err);

/* Appends the text of ids to *out; ill-formed UTF-8 becomes U+FFFD. Ids outside the vocabulary:
 * ST_EINVAL. */
ST_NODISCARD st_status st_tokenizer_decode(const st_tokenizer *t, const int32_t *ids, size_t n,
                                           bool skip_special, st_buf *out, st_error *err);

int32_t st_tokenizer_vocab_size(const st_tokenizer *t); /* largest id + 1 */
/* The raw bytes of a token (not NUL-terminated, may be part of a character); NULL when there is
 * no such token. Owned by t. */
const char *st_tokenizer_token_bytes(const st_tokenizer *t, int32_t id, size_t *len);
bool st_tokenizer_is_special(const st_tokenizer *t, int32_t id);
int32_t st_tokenizer_bos(const st_tokenizer *t); /* -1: none */
int32_t st_tokenizer_eos(const st_tokenizer *t); /* -1: none */
/* The id of a token spelled exactly so (added tokens and vocabulary), or -1. */
int32_t st_tokenizer_find(const st_tokenizer *t, const char *token, size_t len);

/* Streaming detokenizer: ids in, whole characters out. Concatenated output equals
 * st_tokenizer_decode of all the ids. One per stream, not thread-safe; t must outlive it. */
typedef struct st_detokenizer st_detokenizer;
ST_NODISCARD st_status st_detokenizer_new(const st_tokenizer *t, bool skip_special,
                                          st_detokenizer **out);
void st_detokenizer_free(st_detokenizer *d);
/* Appends the text that id completes (possibly nothing) to *out. */
ST_NODISCARD st_status st_detokenizer_push(st_detokenizer *d, int32_t id, st_buf *out);
/* Appends what was held back (U+FFFD for an unfinished character). */
ST_NODISCARD st_status st_detokenizer_finish(st_detokenizer *d, st_buf *out);

#endif
