/* Numbers for people: sizes in KiB, MiB, ..., counts in K, M, B. */
#ifndef ST_BASE_HUMAN_H
#define ST_BASE_HUMAN_H

#include <stddef.h>
#include <stdint.h>

typedef struct st_human {
    char s[24];
} st_human;

/* "960 B", "25.5 MiB", "671 GiB"; three digits. */
st_human st_human_bytes(uint64_t bytes);
/* "4096", "23.6 M", "671 B" (thousands of millions, as models are named). */
st_human st_human_count(uint64_t n);

#endif
