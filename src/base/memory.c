/* Available memory: see memory.h. /proc/meminfo knows the machine, the cgroup files know what a
 * container or a systemd unit is allowed. */
#include "base/memory.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The number after `key` at the start of a line of path; key "" is the file's first number. */
static bool read_number(const char *path, const char *key, uint64_t *value)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    char line[256];
    bool found = false;
    size_t n = strlen(key);
    while (!found && fgets(line, sizeof line, f))
        found = strncmp(line, key, n) == 0 && sscanf(line + n, " %lu", value) == 1;
    fclose(f);
    return found;
}

static uint64_t machine_available(void)
{
    uint64_t kib;
    if (!read_number("/proc/meminfo", "MemAvailable:", &kib))
        return SIZE_MAX;
    return kib * 1024;
}

/* What one cgroup folder leaves. Its page cache counts as used but is given back under pressure,
 * hence file pages are added again: the active ones too, since a model's mapped weights are active
 * after one run and must not stand in the way of the next. */
static uint64_t folder_available(const char *folder, bool v2)
{
    char path[1200];
    uint64_t limit, used, inactive = 0, active = 0;
    snprintf(path, sizeof path, "%s/%s", folder, v2 ? "memory.max" : "memory.limit_in_bytes");
    if (!read_number(path, "", &limit)) /* absent, or "max" */
        return SIZE_MAX;
    snprintf(path, sizeof path, "%s/%s", folder, v2 ? "memory.current" : "memory.usage_in_bytes");
    if (!read_number(path, "", &used))
        return SIZE_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    (void)read_number(path, v2 ? "inactive_file " : "total_inactive_file ", &inactive);
    (void)read_number(path, v2 ? "active_file " : "total_active_file ", &active);
    uint64_t cache = inactive + active;
    used = used > cache ? used - cache : 0;
    return limit > used ? limit - used : 0;
}

/* The smallest of a cgroup and its parents: `name` is the path within the hierarchy. In a
 * container the hierarchy's root is often the container's own folder, which the walk ends with. */
static uint64_t hierarchy_available(const char *root, const char *name, bool v2)
{
    char folder[1100];
    uint64_t least = SIZE_MAX;
    int n = snprintf(folder, sizeof folder, "%s%s", root, name);
    if (n < 0 || (size_t)n >= sizeof folder)
        return least;
    size_t root_len = strlen(root);
    for (;;) {
        uint64_t here = folder_available(folder, v2);
        if (here < least)
            least = here;
        char *slash = strrchr(folder, '/');
        if (!slash || (size_t)(slash - folder) < root_len)
            return least;
        *slash = '\0';
    }
}

static uint64_t cgroup_available(void)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f)
        return SIZE_MAX;
    char line[1024];
    uint64_t least = SIZE_MAX;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *name = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!name)
            continue;
        *controllers++ = '\0';
        *name++ = '\0';
        uint64_t here = SIZE_MAX;
        if (*controllers == '\0')
            here = hierarchy_available("/sys/fs/cgroup", name, true);
        else if (strcmp(controllers, "memory") == 0)
            here = hierarchy_available("/sys/fs/cgroup/memory", name, false);
        if (here < least)
            least = here;
    }
    fclose(f);
    return least;
}

size_t st_memory_available(void)
{
    uint64_t machine = machine_available(), cgroup = cgroup_available();
    return (size_t)(machine < cgroup ? machine : cgroup);
}
