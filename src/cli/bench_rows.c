/* Rows of benchmark results: see bench_rows.h. */
#include "cli/bench_rows.h"

#include <stdio.h>
#include <stdlib.h>

#include "starling/buf.h"

static void print_row(const st_bench_row *row)
{
    printf("  %-24s %-30s %10.*f %-9s", row->name, row->shape, row->value < 100 ? 2 : 0, row->value,
           row->unit);
    if (row->peak > 0)
        printf(" %5.1f%% of %.*f", 100 * row->value / row->peak, row->peak < 100 ? 1 : 0,
               row->peak);
    printf("\n");
    fflush(stdout);
}

st_status st_bench_add(st_bench_rows *r, const char *name, const char *shape, double value,
                       const char *unit, double peak)
{
    if (r->n == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 64;
        st_bench_row *rows = realloc(r->rows, cap * sizeof *rows);
        if (!rows)
            return ST_ENOMEM;
        r->rows = rows;
        r->cap = cap;
    }
    st_bench_row *row = &r->rows[r->n++];
    *row = (st_bench_row){.value = value, .peak = peak};
    snprintf(row->name, sizeof row->name, "%s", name);
    snprintf(row->shape, sizeof row->shape, "%s", shape);
    snprintf(row->unit, sizeof row->unit, "%s", unit);
    if (r->live)
        print_row(row);
    return ST_OK;
}

void st_bench_heading(const st_bench_rows *r, const char *text)
{
    if (r->live)
        printf("%s\n", text);
}

static st_status put_row(st_buf *b, const st_bench_row *row)
{
    st_status s = st_buf_printf(b, "  {\"name\": \"%s\", \"shape\": \"%s\", \"value\": %.6g, ",
                                row->name, row->shape, row->value);
    if (!s)
        s = st_buf_printf(b, "\"unit\": \"%s\", ", row->unit);
    if (!s && row->peak > 0)
        s = st_buf_printf(b, "\"peak\": %.6g, \"ratio\": %.4f}", row->peak, row->value / row->peak);
    else if (!s)
        s = st_buf_puts(b, "\"peak\": null, \"ratio\": null}");
    return s;
}

st_status st_bench_print_json(const st_bench_rows *r)
{
    st_buf b = ST_BUF_INIT;
    st_status s = st_buf_puts(&b, "[\n");
    for (size_t i = 0; i < r->n && !s; i++) {
        s = put_row(&b, &r->rows[i]);
        if (!s)
            s = st_buf_puts(&b, i + 1 < r->n ? ",\n" : "\n");
    }
    if (!s)
        s = st_buf_puts(&b, "]\n");
    if (!s)
        fputs(b.data, stdout);
    st_buf_free(&b);
    return s;
}

/* Names and shapes hold commas, never quotes. */
void st_bench_print_csv(const st_bench_rows *r)
{
    puts("name,shape,value,unit,peak,ratio");
    for (size_t i = 0; i < r->n; i++) {
        const st_bench_row *row = &r->rows[i];
        printf("\"%s\",\"%s\",%.6g,%s,", row->name, row->shape, row->value, row->unit);
        if (row->peak > 0)
            printf("%.6g,%.4f\n", row->peak, row->value / row->peak);
        else
            puts(",");
    }
}

void st_bench_free(st_bench_rows *r)
{
    free(r->rows);
    *r = (st_bench_rows){0};
}
