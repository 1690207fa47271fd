/* The names of transfers (see kv_link.h). */
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "transfer/kv_link.h"

void st_transfer_id_text(const st_transfer_id *id, char out[33])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        out[2 * i] = digits[id->bytes[i] >> 4];
        out[2 * i + 1] = digits[id->bytes[i] & 15];
    }
    out[32] = '\0';
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool parse(const char *text, size_t len, st_transfer_id *out)
{
    if (len != 32)
        return false;
    for (int i = 0; i < 16; i++) {
        int hi = digit(text[2 * i]), lo = digit(text[2 * i + 1]);
        if (hi < 0 || lo < 0)
            return false;
        out->bytes[i] = (unsigned char)(hi << 4 | lo);
    }
    return true;
}

bool st_transfer_id_parse(const char *text, st_transfer_id *out)
{
    return parse(text, strnlen(text, 33), out);
}

st_transfer_id st_transfer_id_of(const char *any_text, size_t len)
{
    st_transfer_id id;
    if (parse(any_text, len, &id))
        return id;
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, XXH3_128bits(any_text, len));
    memcpy(id.bytes, c.digest, sizeof id.bytes);
    return id;
}

st_status st_transfer_id_random(st_transfer_id *out)
{
    size_t have = 0;
    while (have < sizeof out->bytes) {
        ssize_t n = getrandom(out->bytes + have, sizeof out->bytes - have, 0);
        if (n < 0 && errno != EINTR)
            return ST_EIO;
        have += n > 0 ? (size_t)n : 0;
    }
    return ST_OK;
}
