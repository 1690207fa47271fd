/* Logging for the program's own operation, to stderr: one line a message, with time and level.
 * Only src/server, src/engine's run loop and src/cli log; other libraries return errors. */
#ifndef ST_BASE_LOG_H
#define ST_BASE_LOG_H

#include "starling/status.h"

typedef enum st_log_level { ST_LOG_DEBUG, ST_LOG_INFO, ST_LOG_WARN, ST_LOG_ERROR } st_log_level;

/* Messages below the level are dropped. Default ST_LOG_INFO. Thread-safe. */
void st_log_set_level(st_log_level level);
void st_log(st_log_level level, const char *fmt, ...) ST_PRINTF(2, 3);

#define st_debug(...) st_log(ST_LOG_DEBUG, __VA_ARGS__)
#define st_info(...)  st_log(ST_LOG_INFO, __VA_ARGS__)
#define st_warn(...)  st_log(ST_LOG_WARN, __VA_ARGS__)
#define st_err(...)   st_log(ST_LOG_ERROR, __VA_ARGS__)

#endif
