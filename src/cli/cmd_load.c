/* starling load: streams answers from an OpenAI server and prints how fast they came. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "cli/commands.h"
#include "cli/load.h"
#include "cli/options.h"

/* Every client is an open file. */
static void raise_file_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
}

static int check(const st_load_options *o)
{
    const char *wrong = NULL;
    if (o->requests == 0 && o->duration_s <= 0)
        wrong = "--requests 0 needs a --duration";
    else if (o->shape.shared_tokens > o->shape.prompt_tokens)
        wrong = "--shared-tokens is more than --prompt-tokens";
    if (wrong)
        fprintf(stderr, "starling load: %s\n", wrong);
    return wrong ? ST_EXIT_USAGE : ST_EXIT_OK;
}

static int run(st_load_options *o, const char *url, bool json)
{
    st_error err = {0};
    st_load_result *r = calloc(1, sizeof *r);
    st_status s = r ? st_load_url_parse(url, &o->url, &err) : ST_ENOMEM;
    if (!s) {
        raise_file_limit();
        s = st_load_run(o, r, &err);
    }
    if (!s && json)
        s = st_load_print_json(o, r);
    else if (!s)
        st_load_print(o, r);
    int code = ST_EXIT_OK;
    if (s) {
        fprintf(stderr, "starling load: %s\n", err.text[0] ? err.text : st_status_name(s));
        code = s == ST_EINVAL ? ST_EXIT_USAGE : ST_EXIT_FAILED;
    } else if (r->ok < r->started || !r->ok) {
        code = ST_EXIT_FAILED;
    }
    free(r);
    return code;
}

int st_cmd_load(int argc, char **argv)
{
    static const st_command cmd = {
        "load", "starling load [options]",
        "Sends requests to an OpenAI server (Starling, a gateway, vLLM, SGLang), streams the\n"
        "answers, and prints the time to the first token, the time between tokens and the\n"
        "throughput. Prompts are random words, about a token each, or (--ids) lists of random\n"
        "token ids. Exits with 1 when a request failed.",
        0, 0};
    st_load_options o = {.concurrency = 16,
                         .requests = 200,
                         .timeout_s = 300,
                         .seed = 1,
                         .shape = {.prompt_tokens = 200, .max_tokens = 100}};
    const char *url = "http://127.0.0.1:8000";
    bool json = false;
    const st_opt opts[] = {
        {"--url", ST_OPT_STRING, &url, "URL",
         "http://host[:port][/path] or unix:/path (http://127.0.0.1:8000)", 0, 0},
        {"--model", ST_OPT_STRING, &o.shape.model, "NAME", "model to ask for (none)", 0, 0},
        {"--api-key", ST_OPT_STRING, &o.api_key, "KEY", "sent as a Bearer token", 0, 0},
        {"--concurrency|-c", ST_OPT_INT, &o.concurrency, "N", "requests at once, at most (16)", 1,
         100000},
        {"--requests|-n", ST_OPT_INT, &o.requests, "N", "requests in all; 0: no limit (200)", 0,
         100000000},
        {"--duration", ST_OPT_FLOAT, &o.duration_s, "S",
         "start no more requests after so many seconds", 0, 1e6},
        {"--rate", ST_OPT_FLOAT, &o.rate, "R",
         "requests per second, at random times; 0: a new one when one ends (0)", 0, 1e6},
        {"--prompt-tokens", ST_OPT_INT, &o.shape.prompt_tokens, "N", "tokens of a prompt (200)", 1,
         10000000},
        {"--shared-tokens", ST_OPT_INT, &o.shape.shared_tokens, "N",
         "the first N are the same in every prompt (0)", 0, 10000000},
        {"--max-tokens", ST_OPT_INT, &o.shape.max_tokens, "N", "tokens to generate (100)", 1,
         10000000},
        {"--ignore-eos", ST_OPT_FLAG, &o.shape.ignore_eos, NULL, "generate all of them", 0, 0},
        {"--ids", ST_OPT_INT, &o.shape.id_limit, "N",
         "completions of random token ids below N, instead of chats in words", 1, 1 << 24},
        {"--timeout", ST_OPT_FLOAT, &o.timeout_s, "S",
         "give a request up after so long without a byte (300)", 0.001, 1e6},
        {"--seed", ST_OPT_U64, &o.seed, "N", "of prompts and times (1)", 0, 0},
        {"--json", ST_OPT_FLAG, &json, NULL, "print a JSON object", 0, 0},
    };
    int n_args, code;
    if ((code = st_options_parse(&cmd, opts, sizeof opts / sizeof *opts, argc, argv, NULL,
                                 &n_args)) >= 0)
        return code;
    if ((code = check(&o)))
        return code;
    return run(&o, url, json);
}
