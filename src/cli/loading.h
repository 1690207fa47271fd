/* What commands that talk to a model need, loaded in one go: checkpoint, engine, tokenizer, chat
 * template, sampling defaults; with progress on stderr. */
#ifndef ST_CLI_LOADING_H
#define ST_CLI_LOADING_H

#include "starling/api.h"
#include "starling/chat_template.h"
#include "starling/engine.h"
#include "starling/model.h"
#include "starling/tokenizer.h"

typedef struct st_loading {
    const char *dir;
    const char *chat_template; /* a file to use instead of the checkpoint's, or NULL */
    st_engine_options engine;
    int32_t threads;        /* 0: all */
    const char *kernels;    /* NULL: the best */
    const char *pack_cache; /* as in st_model_options */
    bool quiet;             /* no progress */
} st_loading;

typedef struct st_loaded {
    st_model *model;
    st_engine *engine;
    st_tokenizer *tok;
    st_chat_template *tmpl; /* NULL: the checkpoint has none */
    st_api_defaults defaults;
} st_loaded;

/* For --pack-cache's row of options. */
#define ST_PACK_CACHE_HELP                                                                         \
    "folder that keeps packed weights for the next start; next: MODEL's own; none "                \
    "(~/.cache/starling)"
/* A st_notice_fn: one line on stderr. */
void st_print_notice(void *user, const char *text);

ST_NODISCARD st_status st_load_all(const st_loading *how, st_loaded *out, st_error *err);
void st_loaded_free(st_loaded *l); /* safe on a zeroed one */

#endif
