/* What a writer does that takes over from one that died in the middle of an operation
 * (prefix_index.h): everything is made again from the pairs and the keys of their nodes. It may
 * die itself at any instruction and be run again: the truth is only read. */
#include "events/prefix_layout.h"

/* The list's order by age, as far as it can be followed, in marks: 1 seen. What was being moved
 * when the writer died is young: it goes to the front. */
static void relink_by_age(st_prefix_index *x)
{
    prefix_node *nodes = prefix_nodes(x);
    uint32_t last = 0;
    for (uint32_t node = nodes[0].next; node && node < x->nodes.fresh && !nodes[node].mark;) {
        uint32_t next = nodes[node].next;
        if (nodes[node].pairs) {
            nodes[node].mark = 1;
            nodes[last].next = node;
            nodes[node].prev = last;
            last = node;
        }
        node = next;
    }
    nodes[last].next = 0;
    nodes[0].prev = last;
    for (uint32_t node = 1; node < x->nodes.fresh; node++)
        if (nodes[node].pairs && !nodes[node].mark)
            prefix_link(x, node, 0);
}

/* Chains of pairs, and the pairs' table. */
static void rebuild_pairs(st_prefix_index *x)
{
    prefix_node *nodes = prefix_nodes(x);
    prefix_pair *pairs = prefix_pairs(x);
    x->pairs.stack = 0;
    x->n_holdings = 0;
    for (uint32_t node = 1; node < x->nodes.fresh; node++)
        nodes[node].pairs = nodes[node].mark = nodes[node].shared = 0;
    prefix_table_zero(x, x->pair_table);
    for (uint32_t p = x->pairs.fresh - 1; p > 0; p--) {
        prefix_pair *pair = &pairs[p];
        if (pair->ref && !prefix_table_add(x, x->pair_table,
                                           pair_slot_hash(pair_holder(pair), pair_hash(pair)), p))
            pair->ref = 0;
        if (!pair->ref) {
            prefix_give(&x->pairs, &pair->next, p);
            continue;
        }
        prefix_node *n = &nodes[pair_node(pair)];
        pair->prev = 0;
        pair->next = n->pairs;
        if (n->pairs)
            pairs[n->pairs].prev = p;
        n->pairs = p;
        x->n_holdings++;
    }
}

/* The holders' bits of a node, from its chain. */
static void recount_holders(st_prefix_index *x, prefix_node *n)
{
    const prefix_pair *pairs = prefix_pairs(x);
    uint64_t bits[HOLDER_WORDS] = {0};
    for (uint32_t p = n->pairs; p; p = pairs[p].next) {
        int h = pair_holder(&pairs[p]);
        uint64_t bit = (uint64_t)1 << (h % 64);
        if (bits[h / 64] & bit)
            n->shared = 1;
        else
            x->holder_blocks[h]++;
        bits[h / 64] |= bit;
    }
    for (int w = 0; w < HOLDER_WORDS; w++)
        atomic_store_explicit(&n->bits[w], bits[w], memory_order_release);
}

static void rebuild_nodes(st_prefix_index *x)
{
    prefix_node *nodes = prefix_nodes(x);
    x->nodes.stack = 0;
    x->n_blocks = 0;
    for (int h = 0; h < ST_INDEX_MAX_HOLDERS; h++)
        x->holder_blocks[h] = 0;
    prefix_table_zero(x, x->node_table);
    for (uint32_t node = x->nodes.fresh - 1; node > 0; node--) {
        prefix_node *n = &nodes[node];
        recount_holders(x, n);
        if (n->pairs) {
            /* One that finds no room is not matched, and goes when its pairs go. */
            x->n_blocks++;
            x->forgotten += !prefix_table_add(x, x->node_table, n->key, node);
            continue;
        }
        atomic_store_explicit(&n->key, 0, memory_order_release);
        prefix_give(&x->nodes, &n->next, node);
    }
}

void st_prefix_recover(st_prefix_index *x)
{
    if (!x->busy)
        return;
    rebuild_pairs(x);
    /* Before the free list, whose links are those of the list by age. */
    relink_by_age(x);
    rebuild_nodes(x);
    prefix_step();
    x->busy = 0;
}
