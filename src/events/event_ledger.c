/* What the blocks of a pool hold, for the publisher (event_ledger.h). */
#include "events/event_ledger.h"

#include <stdlib.h>

#include "base/checked.h"
#include "events/event_publisher.h"

st_status event_ledger_init(event_ledger *l, int32_t n_blocks, int32_t block_size)
{
    size_t tokens;
    *l = (event_ledger){.n = n_blocks, .block_size = block_size};
    if (!st_mul_size((size_t)n_blocks, (size_t)block_size, &tokens))
        return ST_ENOMEM;
    l->entries = calloc((size_t)n_blocks + 1, sizeof *l->entries);
    l->tokens = calloc(tokens, sizeof *l->tokens);
    l->salts = calloc((size_t)n_blocks, ST_EVENT_SALT_MAX);
    if (!l->entries || !l->tokens || !l->salts) {
        event_ledger_free(l);
        return ST_ENOMEM;
    }
    l->entries[n_blocks].prev = l->entries[n_blocks].next = n_blocks;
    return ST_OK;
}

void event_ledger_free(event_ledger *l)
{
    free(l->entries);
    free(l->tokens);
    free(l->salts);
    *l = (event_ledger){0};
}

int32_t *event_ledger_tokens(const event_ledger *l, int32_t block)
{
    return l->tokens + (size_t)block * (size_t)l->block_size;
}

char *event_ledger_salt(const event_ledger *l, int32_t block)
{
    return l->salts + (size_t)block * ST_EVENT_SALT_MAX;
}

void event_ledger_append(event_ledger *l, int32_t block)
{
    event_ledger_unlink(l, block);
    ledger_entry *e = l->entries;
    int32_t last = e[l->n].prev;
    e[block].prev = last;
    e[block].next = l->n;
    e[block].linked = true;
    e[last].next = block;
    e[l->n].prev = block;
}

void event_ledger_unlink(event_ledger *l, int32_t block)
{
    ledger_entry *e = l->entries;
    if (!e[block].linked)
        return;
    e[e[block].prev].next = e[block].next;
    e[e[block].next].prev = e[block].prev;
    e[block].linked = false;
}
