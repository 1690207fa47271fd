/* Which kernel table runs: by processor feature, or by name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/kernels.h"
#include "kernels/ref/ref.h"

#if defined(__x86_64__)
#include "kernels/avx2/avx2.h"
#include "kernels/avx512/avx512.h"
#elif defined(__aarch64__)
#include "kernels/neon/neon.h"
#endif

enum { MAX_TABLES = 8 };

int st_kernels_list(const st_kernels **out, int cap)
{
    const st_kernels *tables[MAX_TABLES];
    int n = 0;
    tables[n++] = &st_kernels_ref;
#if defined(__x86_64__)
    const st_cpu *cpu = st_cpu_features();
    if (cpu->avx2)
        tables[n++] = &st_kernels_avx2;
    if (cpu->avx512)
        tables[n++] = &st_kernels_avx512;
    if (cpu->avx512_vnni)
        tables[n++] = &st_kernels_avx512vnni;
#elif defined(__aarch64__)
    const st_cpu *cpu = st_cpu_features();
    if (cpu->neon)
        tables[n++] = &st_kernels_neon;
    if (cpu->neon_dot)
        tables[n++] = &st_kernels_neondot;
#endif
    for (int i = 0; i < n && i < cap; i++)
        out[i] = tables[i];
    return n < cap ? n : cap;
}

st_status st_kernels_select(const char *name, const st_kernels **out, st_error *err)
{
    const st_kernels *tables[MAX_TABLES];
    int n = st_kernels_list(tables, MAX_TABLES);
    const char *source = "kernels";
    if (!name || !*name) {
        name = getenv("STARLING_CPU");
        source = "STARLING_CPU";
    }
    *out = tables[n - 1];
    if (!name || !*name || strcmp(name, "auto") == 0)
        return ST_OK;
    char names[128] = "auto";
    for (int i = 0; i < n; i++) {
        if (strcmp(tables[i]->name, name) == 0) {
            *out = tables[i];
            return ST_OK;
        }
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, ", %s", tables[i]->name);
    }
    return st_fail(err, ST_EUNSUPPORTED, "%s: '%s' cannot run here; this processor offers: %s",
                   source, name, names);
}
