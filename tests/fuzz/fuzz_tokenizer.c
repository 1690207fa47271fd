/* Fuzz target: bytes as tokenizer.json. What loads must encode and decode any text, and a stream
 * must say the same as decoding at once. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "starling/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

static void check_decoding(const st_tokenizer *t, const st_ids *ids)
{
    st_buf whole = ST_BUF_INIT, pieces = ST_BUF_INIT;
    st_detokenizer *d;
    require(st_tokenizer_decode(t, ids->data, ids->len, false, &whole, NULL) == ST_OK);
    require(st_utf8_valid(whole.data ? whole.data : "", whole.len));
    require(st_detokenizer_new(t, false, &d) == ST_OK);
    for (size_t i = 0; i < ids->len; i++)
        require(st_detokenizer_push(d, ids->data[i], &pieces) == ST_OK);
    require(st_detokenizer_finish(d, &pieces) == ST_OK);
    require(pieces.len == whole.len);
    require(whole.len == 0 || memcmp(pieces.data, whole.data, whole.len) == 0);
    st_detokenizer_free(d);
    st_buf_free(&whole);
    st_buf_free(&pieces);
}

static void check_encoding(const st_tokenizer *t, const char *text, size_t len, unsigned flags)
{
    st_ids ids = ST_IDS_INIT;
    st_error err = {.status = ST_OK};
    st_status s = st_tokenizer_encode(t, text, len, flags, &ids, &err);
    require(s == err.status);
    require(s == ST_OK || ids.len == 0);
    for (size_t i = 0; i < ids.len; i++) {
        size_t n;
        require(ids.data[i] >= 0 && ids.data[i] < st_tokenizer_vocab_size(t));
        require(st_tokenizer_token_bytes(t, ids.data[i], &n) != NULL);
    }
    if (s == ST_OK)
        check_decoding(t, &ids);
    st_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char sample[] = "Hello, world! \xE4\xBD\xA0\xE5\xA5\xBD 123 don't\n\n x e\xCC\x81 "
                                 "<a><b> \xFF\xF0\x9F\x98\x80 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                                 "abababababababababababababababab";
    st_tokenizer *t;
    st_error err = {.status = ST_OK};
    st_status s = st_tokenizer_parse((const char *)data, size, NULL, 0, &t, &err);
    require((s == ST_OK) == (t != NULL));
    require(s == err.status && (s == ST_OK || err.text[0]));
    if (!t)
        return 0;
    check_encoding(t, sample, sizeof sample - 1, 0);
    check_encoding(t, sample, sizeof sample - 1, ST_ENCODE_ADD_SPECIAL | ST_ENCODE_PLAIN_SPECIAL);
    check_encoding(t, (const char *)data, size < 256 ? size : 256, 0);
    st_tokenizer_free(t);
    return 0;
}
