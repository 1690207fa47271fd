/* Loading a model with everything around it: see loading.h. */
#include "cli/loading.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/human.h"

enum { BAR_CELLS = 32, REDRAW_MS = 100, LINE_MS = 5000 };

typedef struct progress {
    uint64_t start_ns, last_ns;
    bool tty, drawn;
} progress;

static void draw_bar(size_t done, size_t total)
{
    char bar[BAR_CELLS + 1];
    size_t full = total ? (size_t)((double)done / (double)total * BAR_CELLS) : BAR_CELLS;
    for (size_t i = 0; i < BAR_CELLS; i++)
        bar[i] = i < full ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    fprintf(stderr, "\rloading [%s] %s of %s ", bar, st_human_bytes(done).s,
            st_human_bytes(total).s);
}

/* A bar on a terminal, now and then a line elsewhere; nothing for what loads at once. */
static void on_progress(void *user, size_t done, size_t total)
{
    progress *p = user;
    uint64_t now = st_now_ns(), step_ms = p->tty ? REDRAW_MS : LINE_MS;
    if (now - p->last_ns < step_ms * 1000000u && !(p->drawn && done == total))
        return;
    p->last_ns = now;
    p->drawn = true;
    if (p->tty)
        draw_bar(done, total);
    else
        fprintf(stderr, "loading: %s of %s\n", st_human_bytes(done).s, st_human_bytes(total).s);
}

void st_print_notice(void *user, const char *text)
{
    fprintf(stderr, "starling: %s\n", text);
}

static void on_notice(void *user, const char *text)
{
    const progress *p = user;
    if (p->drawn && p->tty)
        fputs("\r\033[K", stderr);
    st_print_notice(NULL, text);
}

static st_status load_template(const st_loading *how, st_chat_template **out, st_error *err)
{
    if (!how->chat_template) {
        st_status s = st_chat_template_load(how->dir, out, err);
        return s == ST_ENOTFOUND ? ST_OK : s;
    }
    FILE *f = fopen(how->chat_template, "rb");
    if (!f)
        return st_fail(err, ST_EIO, "--chat-template %s: %s", how->chat_template, strerror(errno));
    st_buf text = ST_BUF_INIT;
    char block[4096];
    size_t n;
    st_status s = ST_OK;
    while (!s && (n = fread(block, 1, sizeof block, f)) > 0)
        s = st_buf_append(&text, block, n);
    if (ferror(f)) /* a folder, for one: without this it would be an empty template */
        s = st_fail(err, ST_EIO, "--chat-template %s: %s", how->chat_template, strerror(errno));
    else if (s)
        st_fail(err, s, "%s: memory is short", how->chat_template);
    fclose(f);
    if (!s)
        s = st_chat_template_parse(how->chat_template, text.data ? text.data : "", text.len, out,
                                   err);
    st_buf_free(&text);
    return s;
}

static st_status load_model(const st_loading *how, st_model **out, st_error *err)
{
    progress p = {.start_ns = st_now_ns(), .tty = isatty(STDERR_FILENO) == 1};
    p.last_ns = p.start_ns;
    st_model_options opts = {.dir = how->dir,
                             .max_batch_tokens = how->engine.max_num_batched_tokens,
                             .max_outputs = how->engine.max_num_seqs,
                             .max_model_len = how->engine.max_model_len,
                             .n_threads = how->threads,
                             .kernels = how->kernels,
                             .pack_cache = how->pack_cache,
                             .notice = on_notice,
                             .notice_user = &p,
                             .progress = how->quiet ? NULL : on_progress,
                             .progress_user = &p};
    st_status s = st_model_load(&opts, out, err);
    if (p.drawn && p.tty)
        fputs("\r\033[K", stderr);
    return s;
}

st_status st_load_all(const st_loading *how, st_loaded *out, st_error *err)
{
    memset(out, 0, sizeof *out);
    if (access(how->dir, F_OK) != 0)
        return st_fail(err, ST_EIO, "%s: no checkpoint folder there: %s", how->dir,
                       strerror(errno));
    /* The small files first: their errors come before the long wait. */
    st_status s = st_tokenizer_load(how->dir, &out->tok, err);
    if (!s)
        s = load_template(how, &out->tmpl, err);
    if (!s)
        s = st_api_defaults_load(how->dir, &out->defaults, err);
    if (!s)
        s = load_model(how, &out->model, err);
    if (!s)
        s = st_engine_new(out->model, &how->engine, &out->engine, err);
    if (s)
        st_loaded_free(out);
    return s;
}

void st_loaded_free(st_loaded *l)
{
    st_engine_free(l->engine);
    st_model_free(l->model);
    st_chat_template_free(l->tmpl);
    st_tokenizer_free(l->tok);
    memset(l, 0, sizeof *l);
}
