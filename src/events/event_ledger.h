/* What the blocks of a pool hold, and a list of some of them in an order. The publisher has two:
 * the engine's thread lists the blocks that changed, the publishing thread lists all that are
 * cached, oldest first. */
#ifndef ST_EVENTS_EVENT_LEDGER_H
#define ST_EVENTS_EVENT_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

#include "starling/status.h"

typedef struct ledger_entry {
    uint64_t hash, parent;
    uint64_t sent_hash;  /* the engine's side: what was handed over last */
    int32_t prev, next;  /* in the list; entry [n] is its sentinel */
    uint16_t salt_len;   /* of a chain's first block */
    bool present, first; /* is cached; begins a chain */
    bool sent, linked;
} ledger_entry;

typedef struct event_ledger {
    int32_t n, block_size;
    ledger_entry *entries; /* [n + 1] */
    int32_t *tokens;       /* [n * block_size] */
    char *salts;           /* [n * ST_EVENT_SALT_MAX]; pages are taken when salts are used */
} event_ledger;

ST_NODISCARD st_status event_ledger_init(event_ledger *l, int32_t n_blocks, int32_t block_size);
void event_ledger_free(event_ledger *l);

int32_t *event_ledger_tokens(const event_ledger *l, int32_t block);
char *event_ledger_salt(const event_ledger *l, int32_t block);

/* Puts a block at the list's end, or moves it there. */
void event_ledger_append(event_ledger *l, int32_t block);
void event_ledger_unlink(event_ledger *l, int32_t block);

/* The first of the list; n when it is empty, or at its end. */
static inline int32_t event_ledger_first(const event_ledger *l)
{
    return l->entries[l->n].next;
}

#endif
