/* Content hashes of KV blocks: XXH3 128 over (parent's hash, how many of the tokens attended
 * expanded, token ids), so that a hash names the whole prefix up to and including its block. */
#include "starling/kv_cache.h"

#define XXH_STATIC_LINKING_ONLY /* the streaming state as an automatic variable */
#include <xxhash.h>

/* Zero means "no hash" in the pool. */
static st_block_hash finish(const XXH3_state_t *state)
{
    XXH128_hash_t h = XXH3_128bits_digest(state);
    if (h.low64 == 0 && h.high64 == 0)
        h.low64 = 1;
    return (st_block_hash){.lo = h.low64, .hi = h.high64};
}

st_block_hash st_block_hash_root(uint64_t fingerprint, st_dtype dtype, const char *salt,
                                 size_t salt_len)
{
    /* Fixed-size fields come first, so that no salt can imitate another root's fields. */
    uint64_t head[3] = {fingerprint, (uint64_t)dtype, (uint64_t)salt_len};
    XXH3_state_t state;
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, head, sizeof head);
    if (salt_len > 0)
        XXH3_128bits_update(&state, salt, salt_len);
    return finish(&state);
}

st_block_hash st_block_hash_next(st_block_hash parent, const int32_t *tokens, int32_t n,
                                 int32_t n_expanded)
{
    uint64_t head[3] = {parent.lo, parent.hi, (uint64_t)n_expanded};
    XXH3_state_t state;
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, head, sizeof head);
    XXH3_128bits_update(&state, tokens, (size_t)n * sizeof *tokens);
    return finish(&state);
}
