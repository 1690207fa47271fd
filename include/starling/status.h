/* Status codes and error texts shared by every Starling library.
 *
 * A library never exits and never prints: it returns an st_status (0 or negative) and, when the
 * caller passed an st_error, fills it with one sentence a person can act on: the file, the field,
 * the value found and what was expected. */
#ifndef STARLING_STATUS_H
#define STARLING_STATUS_H

#define ST_NODISCARD                    __attribute__((warn_unused_result))
#define ST_PRINTF(fmt_index, first_arg) __attribute__((format(printf, fmt_index, first_arg)))

typedef enum st_status {
    ST_OK = 0,
    ST_ENOMEM = -1,       /* memory could not be had, or would exceed a stated limit */
    ST_EINVAL = -2,       /* an argument or a request's value is not acceptable */
    ST_EIO = -3,          /* the operating system refused: open, read, map, bind */
    ST_EFORMAT = -4,      /* outside bytes (file, JSON, template) are malformed */
    ST_EUNSUPPORTED = -5, /* well-formed, but nothing here can handle it */
    ST_ENOTFOUND = -6,    /* a named thing does not exist */
    ST_EFULL = -7,        /* a bounded resource (queue, KV blocks) has no room now */
    ST_ECANCELLED = -8,   /* the caller went away */
    ST_EDEADLINE = -9,    /* time ran out */
    ST_EINTERNAL = -10    /* an invariant broke: a bug */
} st_status;

typedef struct st_error {
    st_status status;
    char text[1024]; /* NUL-terminated, no trailing newline; always valid UTF-8 */
} st_error;

/* Fills *err (may be NULL) and returns status, so that `return st_fail(err, ST_EINVAL, "...")`
 * reads as one step. Text that does not fit is cut at a character boundary. */
st_status st_fail(st_error *err, st_status status, const char *fmt, ...) ST_PRINTF(3, 4);

/* Puts "prefix: " in front of the text already in *err (may be NULL); returns err's status, or
 * `status` when err is NULL. For adding a file name on the way up. */
st_status st_fail_prefix(st_error *err, st_status status, const char *fmt, ...) ST_PRINTF(3, 4);

/* Short fixed name of a status: "invalid value", "out of memory"... Never NULL. */
const char *st_status_name(st_status status);

#endif
