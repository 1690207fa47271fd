/* Error texts: see starling/status.h. */
#include "starling/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

/* Drops a character that was cut in half by the buffer's end. */
static void trim_partial(char *text)
{
    size_t n = strlen(text);
    text[n - st_utf8_incomplete_tail(text, n)] = '\0';
}

st_status st_fail(st_error *err, st_status status, const char *fmt, ...)
{
    if (!err)
        return status;
    err->status = status;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    trim_partial(err->text);
    return status;
}

st_status st_fail_prefix(st_error *err, st_status status, const char *fmt, ...)
{
    if (!err)
        return status;
    char old[sizeof err->text];
    memcpy(old, err->text, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof err->text)
        snprintf(err->text + n, sizeof err->text - (size_t)n, ": %s", old);
    trim_partial(err->text);
    return err->status;
}

const char *st_status_name(st_status status)
{
    switch (status) {
    case ST_OK:
        return "ok";
    case ST_ENOMEM:
        return "out of memory";
    case ST_EINVAL:
        return "invalid value";
    case ST_EIO:
        return "input/output error";
    case ST_EFORMAT:
        return "malformed data";
    case ST_EUNSUPPORTED:
        return "not supported";
    case ST_ENOTFOUND:
        return "not found";
    case ST_EFULL:
        return "no room";
    case ST_ECANCELLED:
        return "cancelled";
    case ST_EDEADLINE:
        return "deadline exceeded";
    case ST_EINTERNAL:
        return "internal error";
    }
    return "unknown status";
}
