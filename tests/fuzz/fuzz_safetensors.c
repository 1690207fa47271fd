/* Any bytes as a safetensors file: refused with a text that names the file, or every tensor lies
 * inside, disjoint from the others, and as large as its shape says. */
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct seen {
    const uint8_t *data, *at; /* where the next tensor must begin */
    size_t size;
} seen;

static st_status found(void *user, const st_tensor *t)
{
    seen *s = user;
    const uint8_t *p = t->data;
    size_t bytes = st_dtype_size(t->dtype);
    for (int32_t i = 0; i < t->rank; i++)
        bytes *= (size_t)t->shape[i];
    if (p < s->data || t->bytes > s->size || p > s->data + s->size - t->bytes ||
        (s->at && p != s->at) || bytes != t->bytes || t->rank > 4)
        abort();
    s->at = p + t->bytes;
    return ST_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    st_error err = {0};
    seen s = {data, NULL, size};
    st_status status = st_safetensors_parse("fuzz", data, size, found, &s, &err);
    if (status ? strncmp(err.text, "fuzz: ", 6) != 0 || err.status != status
               : s.at && s.at != data + size)
        abort();
    return 0;
}
