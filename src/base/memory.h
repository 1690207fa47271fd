/* How much memory this process may still take. */
#ifndef ST_BASE_MEMORY_H
#define ST_BASE_MEMORY_H

#include <stddef.h>

/* Bytes: the smaller of the system's MemAvailable and what the process' cgroup (v2 or v1, with all
 * its parents) leaves below its limit. SIZE_MAX when nothing could be read. Reads files: not for
 * hot paths. Thread-safe. */
size_t st_memory_available(void);

#endif
