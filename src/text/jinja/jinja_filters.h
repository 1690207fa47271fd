/* What the files of filters share. */
#ifndef ST_TEXT_JINJA_FILTERS_H
#define ST_TEXT_JINJA_FILTERS_H

#include "text/jinja/jinja_eval.h"

#define JFILTER(name) jval name(jrt *rt, jval in, const jcall *c, const jval *arg)

extern const jfilter_def jinja_filters_seq[]; /* on sequences; ends with a NULL name */

static inline bool jgiven(jval v)
{
    return v.type != J_MISSING;
}

/* An integer argument; fails for other types. */
int64_t jarg_int(jrt *rt, jval v, int64_t missing, const char *what);
bool jarg_bool(jrt *rt, jval v, bool missing);

#endif
