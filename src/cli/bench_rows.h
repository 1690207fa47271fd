/* The results of `starling bench`: rows of a name, a shape and a value against a peak, printed as
 * a table for people, as JSON or as CSV. */
#ifndef ST_CLI_BENCH_ROWS_H
#define ST_CLI_BENCH_ROWS_H

#include <stdbool.h>
#include <stddef.h>

#include "starling/status.h"

typedef struct st_bench_row {
    char name[48], shape[64], unit[16];
    double value, peak; /* peak 0: none */
} st_bench_row;

typedef struct st_bench_rows {
    st_bench_row *rows;
    size_t n, cap;
    bool live; /* print each row as it comes, as a table */
} st_bench_rows;

ST_NODISCARD st_status st_bench_add(st_bench_rows *r, const char *name, const char *shape,
                                    double value, const char *unit, double peak);
/* A JSON array of {name, shape, value, unit, peak, ratio} on stdout; null where there is no peak.
 */
ST_NODISCARD st_status st_bench_print_json(const st_bench_rows *r);
/* The same columns with a line of names first; empty where there is no peak. */
void st_bench_print_csv(const st_bench_rows *r);
/* A heading between the rows of a live table. */
void st_bench_heading(const st_bench_rows *r, const char *text);
void st_bench_free(st_bench_rows *r);

#endif
