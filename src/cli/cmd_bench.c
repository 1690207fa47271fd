/* starling bench: what the machine can do, what the kernels reach of it, and what that makes of a
 * model. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "cli/options.h"

typedef struct bench_args {
    bool json, csv, quick, no_kernels, no_model;
    const char *kernels, *kv_dtype, *plot;
    st_bench_model_options model;
} bench_args;

static st_status add_peaks(st_bench *b)
{
    const st_peaks *p = &b->peaks;
    char all[64];
    snprintf(all, sizeof all, "%d threads", st_pool_threads(b->pool));
    const struct {
        const char *name, *shape, *unit;
        double value;
    } rows[] = {
        {"peak float32 FMA", "1 thread", "GFLOP/s", p->float_one},
        {"peak float32 FMA", all, "GFLOP/s", p->float_all},
        {"peak int8 dot product", "1 thread", "GOP/s", p->i8_one},
        {"peak int8 dot product", all, "GOP/s", p->i8_all},
        {"peak memory read", "1 thread", "GB/s", p->read_one},
        {"peak memory read", all, "GB/s", p->read_all},
    };
    st_status s = ST_OK;
    for (size_t i = 0; i < sizeof rows / sizeof *rows && !s; i++)
        if (rows[i].value > 0)
            s = st_bench_add(&b->rows, rows[i].name, rows[i].shape, rows[i].value, rows[i].unit, 0);
    return s;
}

static st_status run(st_bench *b, const bench_args *a, st_error *err)
{
    st_status s = st_kernels_select(a->kernels, &b->k, err);
    if (s || (s = st_pool_new(a->model.threads, true, &b->pool, err)))
        return s;
    if (b->rows.live)
        printf("machine (kernels: %s)\n", b->k->name);
    st_pool_pin_caller(b->pool);
    s = st_peaks_measure(b->k, b->pool, b->quick, &b->peaks, err);
    if (!s)
        s = add_peaks(b);
    if (!s && !a->no_kernels)
        s = st_bench_kernels(b, err);
    if (!s && !a->no_kernels)
        s = st_bench_moe(b, err);
    st_pool_free(b->pool); /* the model has its own */
    b->pool = NULL;
    if (!s && !a->no_model)
        s = st_bench_model(b, &a->model, err);
    return s;
}

static int check(bench_args *a)
{
    const char *wrong = a->json && a->csv ? "--json and --csv exclude each other"
                        : a->plot && a->no_model
                            ? "--plot draws the model's speed: not with --no-model"
                            : NULL;
    if (wrong) {
        fprintf(stderr, "starling bench: %s\n", wrong);
        return ST_EXIT_USAGE;
    }
    return st_opt_kv_dtype("bench", a->kv_dtype, &a->model.kv_dtype) ? ST_EXIT_OK : ST_EXIT_USAGE;
}

/* What is wrong with a checkpoint is better known before the machine is measured than after. */
static st_status look_at_model(const char *dir, st_error *err)
{
    st_buf text = ST_BUF_INIT;
    st_status s = st_model_describe(dir, true, false, &text, err);
    st_buf_free(&text);
    return s;
}

static st_status write_plot(const st_bench *b, const char *dir, const char *path, st_error *err)
{
    char heading[128];
    const char *name = strrchr(dir, '/');
    st_plot_panel panels[] = {b->by_depth, b->by_batch};
    snprintf(heading, sizeof heading, "starling bench: %.60s (kernels: %s)", name ? name + 1 : dir,
             b->k->name);
    return st_plot_write(path, heading, panels, 2, err);
}

int st_cmd_bench(int argc, char **argv)
{
    static const st_command cmd = {
        "bench", "starling bench [MODEL] [options]",
        "Measures this machine's peaks (float32 and int8 arithmetic, reading memory), the kernels\n"
        "against them, then the model's speed: prompt, generation at growing depth and batched,\n"
        "and where the time goes. Generation is set against the bound that memory sets: bytes of\n"
        "active weights per token over the read bandwidth.",
        0, 1};
    bench_args a = {.kv_dtype = "bf16",
                    .model = {.prompt = 512, .generate = 32, .depth = 8192, .batch = 16}};
    const st_opt opts[] = {
        {"--json", ST_OPT_FLAG, &a.json, NULL, "print a JSON array of rows", 0, 0},
        {"--csv", ST_OPT_FLAG, &a.csv, NULL, "print comma-separated rows", 0, 0},
        {"--plot", ST_OPT_STRING, &a.plot, "FILE.png",
         "also draw generation speed against depth and batch", 0, 0},
        {"--quick", ST_OPT_FLAG, &a.quick, NULL, "fewer repetitions", 0, 0},
        {"--no-kernels", ST_OPT_FLAG, &a.no_kernels, NULL, "skip the kernel table", 0, 0},
        {"--no-model", ST_OPT_FLAG, &a.no_model, NULL, "skip the model", 0, 0},
        {"--prompt", ST_OPT_INT, &a.model.prompt, "N", "prompt tokens (512)", 1, 1 << 20},
        {"--generate", ST_OPT_INT, &a.model.generate, "N", "generation steps (32)", 1, 64},
        {"--depth", ST_OPT_INT, &a.model.depth, "N", "deepest context, from 1024 doubling (8192)",
         0, 1 << 20},
        {"--batch", ST_OPT_INT, &a.model.batch, "N", "most sequences at once, 1, 2, 4, ... (16)", 1,
         1024},
        {"--kv-cache-dtype", ST_OPT_STRING, &a.kv_dtype, "TYPE", "bf16 (default), f32 or int8", 0,
         0},
        {"--pack-cache", ST_OPT_STRING, &a.model.pack_cache, "DIR", ST_PACK_CACHE_HELP, 0, 0},
        {"--threads", ST_OPT_INT, &a.model.threads, "N", "worker threads (0: all processors)", 0,
         1024},
        {"--kernels", ST_OPT_STRING, &a.kernels, "NAME", "kernel table (default: the best)", 0, 0},
    };
    const char *args[1] = {NULL};
    int n_args, code;
    if ((code = st_options_parse(&cmd, opts, sizeof opts / sizeof *opts, argc, argv, args,
                                 &n_args)) >= 0)
        return code;
    if ((code = check(&a)))
        return code;
    char dir[PATH_MAX] = "";
    if (!a.no_model && st_model_dir(n_args ? args[0] : NULL, dir, sizeof dir))
        return ST_EXIT_FAILED;
    a.model.dir = dir;
    st_bench b = {.quick = a.quick,
                  .rows = {.live = !a.json && !a.csv},
                  .by_depth = {"Generation, one sequence (tokens/s)", "context depth", 0, {0}, {0}},
                  .by_batch = {"Generation, batched (tokens/s)", "sequences", 0, {0}, {0}}};
    st_error err = {0};
    st_status s = a.plot ? st_plot_available(&err) : ST_OK;
    if (!s && !a.no_model)
        s = look_at_model(dir, &err);
    if (!s)
        s = run(&b, &a, &err);
    if (!s && a.json)
        s = st_bench_print_json(&b.rows);
    if (!s && a.csv)
        st_bench_print_csv(&b.rows);
    if (!s && a.plot)
        s = write_plot(&b, dir, a.plot, &err);
    if (s)
        fprintf(stderr, "starling bench: %s\n", err.text[0] ? err.text : st_status_name(s));
    st_bench_free(&b.rows);
    return s ? ST_EXIT_FAILED : ST_EXIT_OK;
}
