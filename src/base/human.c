/* Numbers for people: see human.h. */
#include "base/human.h"

#include <stdio.h>

static st_human scaled(uint64_t n, uint64_t first, double step, const char *const *units,
                       const char *unit0)
{
    st_human h;
    if (n < first) {
        snprintf(h.s, sizeof h.s, "%llu%s", (unsigned long long)n, unit0);
        return h;
    }
    double v = (double)n / step;
    int u = 0;
    while (v >= 999.5 && units[u + 1]) {
        v /= step;
        u++;
    }
    snprintf(h.s, sizeof h.s, "%.*f %s", v < 9.995 ? 2 : v < 99.95 ? 1 : 0, v, units[u]);
    return h;
}

st_human st_human_bytes(uint64_t bytes)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", NULL};
    return scaled(bytes, 1024, 1024, units, " B");
}

st_human st_human_count(uint64_t n)
{
    static const char *const units[] = {"K", "M", "B", "T", NULL};
    return scaled(n, 10000, 1000, units, "");
}
