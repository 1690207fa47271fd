/* starling logits: runs a list of token ids through the model and writes the logits. */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/loading.h"
#include "cli/npy.h"
#include "cli/options.h"
#include "starling/model.h"

typedef struct logits_args {
    const char *tokens, *out, *kv_dtype, *kernels, *pack_cache;
    int32_t chunk, threads, block_size, top;
    st_dtype kv;
} logits_args;

typedef struct id_list {
    int32_t *ids;
    int32_t n, cap;
} id_list;

static int failed(const st_error *err)
{
    fprintf(stderr, "starling logits: %s\n", err->text);
    return ST_EXIT_FAILED;
}

static st_status push_id(id_list *l, long long id, st_error *err)
{
    if (l->n == l->cap) {
        int32_t cap = l->cap ? 2 * l->cap : 256;
        int32_t *ids = l->cap <= INT32_MAX / 8 ? realloc(l->ids, (size_t)cap * sizeof *ids) : NULL;
        if (!ids)
            return st_fail(err, ST_ENOMEM, "no memory for %d token ids", l->n);
        l->ids = ids;
        l->cap = cap;
    }
    l->ids[l->n++] = (int32_t)id;
    return ST_OK;
}

/* Ids between commas, white space or brackets: "1,2,3", "1 2 3", a JSON array. */
static st_status parse_ids(const char *text, id_list *l, st_error *err)
{
    for (const char *p = text; *p;) {
        if (*p == ',' || *p == '[' || *p == ']' || isspace((unsigned char)*p)) {
            p++;
            continue;
        }
        char *end;
        errno = 0;
        long long id = strtoll(p, &end, 10);
        if (end == p || errno || id < 0 || id > INT32_MAX)
            return st_fail(err, ST_EINVAL,
                           "--tokens: '%.20s' after %d ids: expected a list of token ids such as "
                           "1,2,3",
                           p, l->n);
        st_status status = push_id(l, id, err);
        if (status)
            return status;
        p = end;
    }
    return l->n ? ST_OK : st_fail(err, ST_EINVAL, "--tokens names no token id");
}

/* The whole of a file, or of stdin for "-", as a string the caller frees. */
static char *read_text(const char *path, st_error *err)
{
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    char *text = NULL;
    size_t n = 0, cap = 0;
    if (!f) {
        (void)st_fail(err, ST_EIO, "cannot read %s: %s", path, strerror(errno));
        return NULL;
    }
    do {
        if (cap - n < 4096) {
            cap = cap ? 2 * cap : 65536;
            char *more = realloc(text, cap);
            if (!more) {
                (void)st_fail(err, ST_ENOMEM, "%s: no memory for its text", path);
                goto fail;
            }
            text = more;
        }
        n += fread(text + n, 1, cap - n - 1, f);
    } while (!feof(f) && !ferror(f));
    if (ferror(f)) {
        (void)st_fail(err, ST_EIO, "cannot read %s: %s", path, strerror(errno));
        goto fail;
    }
    text[n] = '\0';
    if (f != stdin)
        fclose(f);
    return text;
fail:
    free(text);
    if (f != stdin)
        fclose(f);
    return NULL;
}

static st_status read_ids(const char *arg, id_list *l, st_error *err)
{
    if (arg[0] != '@')
        return parse_ids(arg, l, err);
    char *text = read_text(arg + 1, err);
    if (!text)
        return err->status;
    st_status status = parse_ids(text, l, err);
    free(text);
    return status;
}

static st_status check_ids(const st_model *m, const id_list *l, st_error *err)
{
    int32_t vocab = st_model_get_config(m)->vocab_size;
    for (int32_t i = 0; i < l->n; i++)
        if (l->ids[i] >= vocab)
            return st_fail(err, ST_EINVAL,
                           "--tokens: id %d (number %d) is out of the vocabulary: expected 0 to %d",
                           l->ids[i], i, vocab - 1);
    if (l->n > st_model_max_len(m))
        return st_fail(err, ST_EINVAL,
                       "--tokens: %d ids do not fit the model's context of %d positions", l->n,
                       st_model_max_len(m));
    return ST_OK;
}

/* The `top` most likely ids of each row, for people. */
static void print_top(const float *logits, int32_t n, int32_t vocab, int32_t pos0,
                      const int32_t *ids, int32_t top)
{
    for (int32_t i = 0; i < n; i++) {
        const float *x = logits + (size_t)i * (size_t)vocab;
        double max = x[0], sum = 0;
        for (int32_t j = 1; j < vocab; j++)
            max = x[j] > max ? x[j] : max;
        for (int32_t j = 0; j < vocab; j++)
            sum += exp(x[j] - max);
        printf("%d\t%d\t", pos0 + i, ids[i]);
        float above = INFINITY;
        for (int32_t k = 0, last = -1; k < top && k < vocab; k++) {
            int32_t best = -1;
            for (int32_t j = 0; j < vocab; j++)
                if ((x[j] < above || (x[j] == above && j > last)) && (best < 0 || x[j] > x[best]))
                    best = j;
            printf("%s%d %.4f (%.1f%%)", k ? ", " : "", best, (double)x[best],
                   100 * exp(x[best] - max) / sum);
            above = x[best];
            last = best;
        }
        putchar('\n');
    }
}

typedef struct logits_run {
    st_model *m;
    st_kv_store *kv;
    const id_list *ids;
    int32_t *table; /* block table of the one sequence */
    int32_t *rows;  /* 0 .. chunk - 1 */
    float *logits;  /* [chunk, vocab] */
    int32_t chunk, top;
} logits_run;

static st_status run_chunks(const logits_run *r, st_npy_writer *npy, st_error *err)
{
    int32_t vocab = st_model_get_config(r->m)->vocab_size;
    for (int32_t pos = 0; pos < r->ids->n; pos += r->chunk) {
        int32_t n = r->ids->n - pos < r->chunk ? r->ids->n - pos : r->chunk;
        st_batch_seq seq = {.count = n,
                            .pos0 = pos,
                            .block_table = r->table,
                            .expanded_until =
                                st_model_expanded_until(st_model_get_config(r->m), r->ids->n)};
        st_batch batch = {.n_tokens = n,
                          .tokens = r->ids->ids + pos,
                          .n_seqs = 1,
                          .seqs = &seq,
                          .n_outputs = n,
                          .output_rows = r->rows};
        st_status status = st_model_forward(r->m, &batch, r->kv, r->logits, err);
        if (status)
            return status;
        if (!npy)
            print_top(r->logits, n, vocab, pos, r->ids->ids + pos, r->top);
        else if ((status = st_npy_append(npy, r->logits, (size_t)n * (size_t)vocab, err)))
            return status;
    }
    return ST_OK;
}

static st_status prepare(logits_run *r, const logits_args *a, const st_model_options *opts,
                         st_error *err)
{
    st_status status = st_model_load(opts, &r->m, err);
    if (status || (status = check_ids(r->m, r->ids, err)))
        return status;
    int32_t vocab = st_model_get_config(r->m)->vocab_size;
    int32_t blocks = (r->ids->n - 1) / a->block_size + 1;
    status = st_kv_store_new(st_model_get_config(r->m)->n_layers, blocks, a->block_size, a->kv,
                             st_model_kv_row(r->m), &r->kv, err);
    if (status)
        return status;
    r->table = malloc((size_t)blocks * sizeof *r->table);
    r->rows = malloc((size_t)r->chunk * sizeof *r->rows);
    r->logits = malloc((size_t)r->chunk * (size_t)vocab * sizeof *r->logits);
    if (!r->table || !r->rows || !r->logits)
        return st_fail(err, ST_ENOMEM, "no memory for %d rows of %d logits: try a smaller --chunk",
                       r->chunk, vocab);
    for (int32_t i = 0; i < blocks; i++)
        r->table[i] = i;
    for (int32_t i = 0; i < r->chunk; i++)
        r->rows[i] = i;
    return ST_OK;
}

static int run(const logits_args *a, const char *dir)
{
    st_error err = {0};
    id_list ids = {0};
    logits_run r = {.ids = &ids, .top = a->top};
    st_npy_writer npy = {0};
    st_status status = read_ids(a->tokens, &ids, &err);
    if (status)
        goto done;
    r.chunk = a->chunk < ids.n ? a->chunk : ids.n;
    st_model_options opts = {.dir = dir,
                             .max_batch_tokens = r.chunk,
                             .n_threads = a->threads,
                             .kernels = a->kernels,
                             .pack_cache = a->pack_cache,
                             .notice = st_print_notice};
    if ((status = prepare(&r, a, &opts, &err)))
        goto done;
    if (a->out && (status = st_npy_create(&npy, a->out, (size_t)ids.n,
                                          (size_t)st_model_get_config(r.m)->vocab_size, &err)))
        goto done;
    status = run_chunks(&r, a->out ? &npy : NULL, &err);
    if (npy.file) {
        st_error closing;
        st_status closed = st_npy_close(&npy, status == ST_OK, &closing);
        if (!status && closed) {
            status = closed;
            err = closing;
        }
    }
done:
    free(r.logits);
    free(r.rows);
    free(r.table);
    st_kv_store_free(r.kv);
    st_model_free(r.m);
    free(ids.ids);
    return status ? failed(&err) : ST_EXIT_OK;
}

int st_cmd_logits(int argc, char **argv)
{
    static const st_command cmd = {
        "logits", "starling logits [MODEL] --tokens IDS [options]",
        "Runs token ids through the model, as one sequence, and writes every position's logits:\n"
        "float32 [tokens, vocabulary] as a NumPy .npy file, or the most likely next tokens to\n"
        "stdout (position, token, candidates).",
        0, 1};
    logits_args a = {.kv_dtype = "f32", .chunk = 512, .block_size = 16, .top = 5};
    const st_opt opts[] = {
        {"--tokens", ST_OPT_STRING, &a.tokens, "IDS", "token ids 1,2,3; @FILE reads them; @- stdin",
         0, 0},
        {"--out|-o", ST_OPT_STRING, &a.out, "FILE", "write a .npy file", 0, 0},
        {"--top", ST_OPT_INT, &a.top, "N", "candidates to print without --out (5)", 1, 100},
        {"--kv-cache-dtype", ST_OPT_STRING, &a.kv_dtype, "TYPE", "f32 (default), bf16 or int8", 0,
         0},
        {"--chunk", ST_OPT_INT, &a.chunk, "N", "tokens a step (512)", 1, 1 << 20},
        {"--block-size", ST_OPT_INT, &a.block_size, "N", "rows of a KV block (16)", 1, 1 << 16},
        {"--pack-cache", ST_OPT_STRING, &a.pack_cache, "DIR", ST_PACK_CACHE_HELP, 0, 0},
        {"--threads", ST_OPT_INT, &a.threads, "N", "worker threads (0: all processors)", 0, 1024},
        {"--kernels", ST_OPT_STRING, &a.kernels, "NAME", "kernel table (default: the best)", 0, 0},
    };
    const char *args[1] = {NULL};
    int n_args, code;
    if ((code = st_options_parse(&cmd, opts, sizeof opts / sizeof *opts, argc, argv, args,
                                 &n_args)) >= 0)
        return code;
    if (!a.tokens) {
        fprintf(stderr, "starling logits: --tokens is missing: expected token ids such as 1,2,3\n");
        return ST_EXIT_USAGE;
    }
    if (!st_opt_kv_dtype("logits", a.kv_dtype, &a.kv))
        return ST_EXIT_USAGE;
    char dir[PATH_MAX];
    if (st_model_dir(n_args ? args[0] : NULL, dir, sizeof dir))
        return ST_EXIT_FAILED;
    return run(&a, dir);
}
