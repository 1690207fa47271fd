/* The pack cache: the same logits from memory, from a file just written and from one found; every
 * kind of damage noticed once and repaired; several processes; no room; no folder. */
#include "lexicon_model.h"
#include "tiny_checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <xxhash.h>

#include "model/pack_cache.h"

/* The file's layout, as pack_cache.h draws it: offsets of the header's fields. */
enum {
    AT_VERSION = 8,
    AT_KERNELS = 16,
    AT_STAMP = 56,
    AT_N_ENTRIES = 64,
    AT_TABLE_SIZE = 72,
    AT_DATA_OFFSET = 80,
    AT_TABLE_HASH = 96,
    AT_HEADER_HASH = 104,
    HEADER_SIZE = 112,
    ENTRY_SIZE = 48
};

/* --- folders and files --- */

typedef struct place {
    char root[64], model[80], cache[80];
} place;

static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    if (!d) {
        unlink(path);
        return;
    }
    for (struct dirent *e; (e = readdir(d));) {
        char inner[600];
        snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            remove_tree(inner);
    }
    closedir(d);
    rmdir(path);
}

static place new_place(void)
{
    place p = {.root = "/tmp/test_pack_cache.XXXXXX"};
    assert_non_null(mkdtemp(p.root));
    snprintf(p.model, sizeof p.model, "%s/model", p.root);
    snprintf(p.cache, sizeof p.cache, "%s/cache", p.root);
    assert_int_equal(mkdir(p.model, 0777), 0);
    tiny_write(p.model, 1, false);
    return p;
}

/* The one file in dir, or NULL when there is none; more than one fails. */
static const char *only_file(const char *dir)
{
    static char path[600];
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') {
            snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
            n++;
        }
    if (d)
        closedir(d);
    assert_true(n <= 1);
    return n ? path : NULL;
}

typedef struct bytes {
    unsigned char *p;
    size_t n;
} bytes;

static bytes read_all(const char *path)
{
    struct stat sb;
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fstat(fileno(f), &sb), 0);
    bytes b = {malloc((size_t)sb.st_size + 1), (size_t)sb.st_size};
    assert_non_null(b.p);
    assert_int_equal(fread(b.p, 1, b.n, f), b.n);
    fclose(f);
    return b;
}

static void write_all(const char *path, const unsigned char *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static uint64_t u64_at(const unsigned char *p, size_t at)
{
    uint64_t v;
    memcpy(&v, p + at, sizeof v);
    return v;
}

/* --- loading --- */

typedef struct notices {
    int n;
    char last[1500];
} notices;

static void note(void *user, const char *text)
{
    notices *x = user;
    x->n++;
    snprintf(x->last, sizeof x->last, "%s", text);
}

static float *logits_of(st_model *m)
{
    static const int32_t tokens[] = {5, 77, 31};
    test_kv kv = new_kv(m, ST_F32, 16);
    test_seq s = new_seq(m, &kv, tokens, 3);
    run_step(m, &kv, &s, &(int32_t){3}, 1);
    st_kv_store_free(kv.store);
    return s.logits;
}

/* Loads with the options' cache and returns three tokens' logits. */
static float *load_and_run(const st_model_options *how, notices *seen)
{
    st_model_options o = *how;
    st_model *m;
    st_error err;
    *seen = (notices){0};
    o.max_batch_tokens = 16;
    o.n_threads = o.n_threads ? o.n_threads : 2;
    o.pack_cache_least = o.pack_cache_least ? o.pack_cache_least : 1;
    o.notice = note;
    o.notice_user = seen;
    if (st_model_load(&o, &m, &err))
        fail_msg("%s", err.text);
    float *logits = logits_of(m);
    st_model_free(m);
    return logits;
}

static void expect_same(float *got, const float *want, size_t vocab)
{
    assert_memory_equal(got, want, 3 * vocab * sizeof *got);
    free(got);
}

static void expect_notice(const notices *seen, const char *words)
{
    if (seen->n != 1 || !strstr(seen->last, words))
        fail_msg("%d notices, the last '%s': expected one with '%s'", seen->n, seen->last, words);
}

static void expect_none(const notices *seen)
{
    if (seen->n)
        fail_msg("unexpected: '%s'", seen->last);
}

/* --- tests --- */

static void a_file_is_written_once_and_gives_the_same_bits(void **state)
{
    place p = new_place();
    notices seen;
    struct stat first, again;
    st_model_options o = {.dir = p.model, .pack_cache = "none"};
    float *want = load_and_run(&o, &seen);
    expect_none(&seen);
    o.pack_cache = p.cache;
    o.n_threads = 1;
    expect_same(load_and_run(&o, &seen), want, TINY_VOCAB);
    expect_none(&seen);
    assert_int_equal(stat(only_file(p.cache), &first), 0);
    o.n_threads = 3;
    expect_same(load_and_run(&o, &seen), want, TINY_VOCAB);
    expect_none(&seen);
    assert_int_equal(stat(only_file(p.cache), &again), 0);
    assert_true(first.st_ino == again.st_ino && first.st_mtim.tv_nsec == again.st_mtim.tv_nsec);
    bytes one = read_all(only_file(p.cache));
    unlink(only_file(p.cache));
    o.n_threads = 2; /* the file does not depend on who packed what */
    expect_same(load_and_run(&o, &seen), want, TINY_VOCAB);
    bytes two = read_all(only_file(p.cache));
    assert_int_equal(one.n, two.n);
    assert_memory_equal(one.p, two.p, one.n);
    free(one.p);
    free(two.p);
    free(want);
    remove_tree(p.root);
}

/* MLA, experts and INT8, by every table that runs here: a file for each, the bits of memory. */
static void each_kernel_table_has_a_file(void **state)
{
    const st_kernels *tables[8];
    int n = st_kernels_list(tables, 8);
    place p = new_place();
    notices seen;
    for (int i = 0; i < n; i++) {
        char cache[200];
        snprintf(cache, sizeof cache, "%s/%s", p.cache, tables[i]->name);
        st_model_options o = {
            .dir = LEXICON "int8", .pack_cache = "none", .kernels = tables[i]->name};
        float *want = load_and_run(&o, &seen);
        o.pack_cache = cache;
        expect_same(load_and_run(&o, &seen), want, 4096);
        expect_same(load_and_run(&o, &seen), want, 4096);
        expect_none(&seen);
        assert_non_null(strstr(only_file(cache), tables[i]->name));
        free(want);
    }
    remove_tree(p.root);
}

/* Runs with the damaged bytes in place of the good ones: one notice, and the file is good again. */
static void expect_repair(const place *p, const float *want, const bytes *good,
                          const unsigned char *bad, size_t n, const char *words)
{
    notices seen;
    char path[600];
    st_model_options o = {.dir = p->model, .pack_cache = p->cache};
    snprintf(path, sizeof path, "%s", only_file(p->cache));
    write_all(path, bad, n);
    expect_same(load_and_run(&o, &seen), want, TINY_VOCAB);
    expect_notice(&seen, words);
    bytes now = read_all(path);
    assert_int_equal(now.n, good->n);
    assert_memory_equal(now.p, good->p, good->n);
    free(now.p);
    assert_non_null(only_file(p->cache));
}

typedef struct damage {
    place p;
    float *want;
    bytes good;
    unsigned char *bad;
} damage;

static damage new_damage(void)
{
    damage d = {.p = new_place()};
    notices seen;
    st_model_options o = {.dir = d.p.model, .pack_cache = d.p.cache};
    d.want = load_and_run(&o, &seen);
    d.good = read_all(only_file(d.p.cache));
    d.bad = malloc(d.good.n + 1);
    assert_non_null(d.bad);
    memcpy(d.bad, d.good.p, d.good.n);
    return d;
}

static void end_damage(damage *d)
{
    remove_tree(d->p.root);
    free(d->want);
    free(d->good.p);
    free(d->bad);
}

static void flip(damage *d, size_t at, const char *words)
{
    d->bad[at] ^= 0x10;
    expect_repair(&d->p, d->want, &d->good, d->bad, d->good.n, words);
    d->bad[at] ^= 0x10;
}

static void a_flipped_byte_is_found_wherever_it_is(void **state)
{
    damage d = new_damage();
    const unsigned char *g = d.good.p;
    size_t table = u64_at(g, AT_TABLE_SIZE), data = u64_at(g, AT_DATA_OFFSET);
    for (size_t at = 0; at < HEADER_SIZE; at += 4)
        flip(&d, at, d.p.cache);
    for (size_t at = HEADER_SIZE; at < HEADER_SIZE + ENTRY_SIZE; at += 4)
        flip(&d, at, "damaged table");
    flip(&d, HEADER_SIZE + table - 2, "damaged table");
    for (size_t i = 0; i < u64_at(g, AT_N_ENTRIES); i++) {
        size_t entry = HEADER_SIZE + i * ENTRY_SIZE, bytes = u64_at(g, entry + 8);
        if (!bytes)
            continue;
        flip(&d, data + u64_at(g, entry), "is damaged");
        flip(&d, data + u64_at(g, entry) + bytes - 1, "is damaged");
    }
    end_damage(&d);
}

static void a_file_of_another_length_is_replaced(void **state)
{
    damage d = new_damage();
    static const size_t lengths[] = {0, 1, HEADER_SIZE - 1, HEADER_SIZE, 1000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        expect_repair(&d.p, d.want, &d.good, d.bad, lengths[i], "cut short");
    expect_repair(&d.p, d.want, &d.good, d.bad, d.good.n - 1, "cut short");
    d.bad[d.good.n] = 0;
    expect_repair(&d.p, d.want, &d.good, d.bad, d.good.n + 1, d.p.cache);
    memset(d.bad, 'x', 1000);
    expect_repair(&d.p, d.want, &d.good, d.bad, 1000, "is not a pack cache");
    end_damage(&d);
}

/* Makes the header's checksums those of what is there. */
static void sign(unsigned char *file)
{
    uint64_t h = XXH3_64bits(file + HEADER_SIZE, (size_t)u64_at(file, AT_TABLE_SIZE));
    memcpy(file + AT_TABLE_HASH, &h, sizeof h);
    h = XXH3_64bits(file, AT_HEADER_HASH);
    memcpy(file + AT_HEADER_HASH, &h, sizeof h);
}

/* Files that are intact, but of something else. */
static void a_file_of_something_else_is_replaced(void **state)
{
    damage d = new_damage();
    static const struct {
        size_t at;
        const char *words;
    } rows[] = {{AT_VERSION, "of another version"},
                {AT_KERNELS, "for other kernels"},
                {AT_STAMP, "from other weight files"},
                {AT_N_ENTRIES, "holds other packs"},
                {AT_DATA_OFFSET, "holds other packs"},
                {HEADER_SIZE, "holds other packs"},
                {HEADER_SIZE + ENTRY_SIZE + 28, "holds other packs"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        memcpy(d.bad, d.good.p, d.good.n);
        d.bad[rows[i].at] ^= 1;
        sign(d.bad);
        expect_repair(&d.p, d.want, &d.good, d.bad, d.good.n, rows[i].words);
    }
    end_damage(&d);
}

/* Checksums that fit a pack of other weights: only packing a sample again can tell. */
static void packs_of_other_weights_are_replaced(void **state)
{
    damage d = new_damage();
    unsigned char *b = d.bad;
    size_t n = u64_at(b, AT_N_ENTRIES), entry = HEADER_SIZE;
    while (n-- && !u64_at(b, entry + 8))
        entry += ENTRY_SIZE;
    size_t bytes = u64_at(b, entry + 8);
    unsigned char *pack = b + u64_at(b, AT_DATA_OFFSET) + u64_at(b, entry);
    for (size_t i = 0; i < bytes; i += 2)
        pack[i] ^= 1;
    uint64_t piece = XXH3_64bits(pack, bytes), whole = XXH3_64bits(&piece, sizeof piece);
    memcpy(b + entry + 16, &whole, sizeof whole);
    sign(b);
    expect_repair(&d.p, d.want, &d.good, b, d.good.n, "is not what these kernels make of");
    end_damage(&d);
}

static void a_changed_checkpoint_is_packed_again(void **state)
{
    place p = new_place();
    notices seen;
    char weights[200];
    struct stat sb;
    st_model_options o = {.dir = p.model, .pack_cache = p.cache};
    float *want = load_and_run(&o, &seen);
    snprintf(weights, sizeof weights, "%s/model.safetensors", p.model);
    assert_int_equal(stat(weights, &sb), 0);
    const struct timespec later[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1}};
    assert_int_equal(utimensat(AT_FDCWD, weights, later, 0), 0);
    expect_same(load_and_run(&o, &seen), want, TINY_VOCAB);
    expect_notice(&seen, "from other weight files than are there now");
    tiny_write(p.model, 2, false); /* the same size, and the same time */
    assert_int_equal(utimensat(AT_FDCWD, weights, later, 0), 0);
    float *other = load_and_run(&o, &seen);
    expect_notice(&seen, "from other weight files than are there now");
    assert_true(memcmp(other, want, 3 * TINY_VOCAB * sizeof *want) != 0);
    o.pack_cache = "none";
    expect_same(load_and_run(&o, &seen), other, TINY_VOCAB);
    free(other);
    free(want);
    remove_tree(p.root);
}

/* What is wrong with the checkpoint is an error as ever, and leaves nothing. */
static void a_nan_leaves_no_file(void **state)
{
    place p = new_place();
    st_error err;
    st_model *m;
    tiny_write(p.model, 1, true);
    st_model_options o = {.dir = p.model, .pack_cache = p.cache, .pack_cache_least = 1};
    assert_int_equal(st_model_load(&o, &m, &err), ST_EFORMAT);
    assert_non_null(strstr(err.text, "down_proj.weight' holds NaN"));
    assert_null(only_file(p.cache));
    remove_tree(p.root);
}

static void small_packs_stay_in_memory(void **state)
{
    place p = new_place();
    notices seen;
    st_model_options o = {.dir = p.model, .pack_cache = p.cache, .pack_cache_least = 1 << 20};
    free(load_and_run(&o, &seen));
    expect_none(&seen);
    assert_null(only_file(p.cache));
    remove_tree(p.root);
}

typedef struct progress {
    size_t done, total;
} progress;

static void note_progress(void *user, size_t done, size_t total)
{
    progress *last = user;
    assert_true(done > last->done && done <= total);
    *last = (progress){done, total};
}

static void progress_covers_a_file_that_is_found(void **state)
{
    place p = new_place();
    notices seen;
    progress last = {0};
    st_model_options o = {.dir = p.model, .pack_cache = p.cache};
    free(load_and_run(&o, &seen));
    o.progress = note_progress;
    o.progress_user = &last;
    free(load_and_run(&o, &seen));
    assert_true(last.done > 0 && last.done == last.total);
    remove_tree(p.root);
}

/* --- where --- */

static void folders_come_from_the_option_then_the_environment(void **state)
{
    place p = new_place();
    st_checkpoint *c;
    const st_kernels *k;
    char out[PATH_MAX], dir[200], want[300];
    st_error err;
    assert_int_equal(st_kernels_select("ref", &k, &err), ST_OK);
    snprintf(dir, sizeof dir, "%s/a model", p.root);
    assert_int_equal(rename(p.model, dir), 0);
    assert_int_equal(st_checkpoint_open(dir, &c, &err), ST_OK);
    assert_int_equal(st_pack_cache_path("/x", c, k, out, sizeof out, &err), ST_OK);
    assert_true(strncmp(out, "/x/a_model-", 11) == 0);
    const char *end = strstr(out, "-ref-v"); /* the packs' version */
    int version, used = 0;
    assert_non_null(end);
    assert_int_equal(sscanf(end, "-ref-v%d.pack%n", &version, &used), 1);
    assert_int_equal(used, strlen(end));
    assert_int_equal(st_pack_cache_path("next", c, k, out, sizeof out, &err), ST_OK);
    snprintf(want, sizeof want, "%s/starling-ref-v%d.pack", dir, version);
    assert_string_equal(out, want);
    setenv("XDG_CACHE_HOME", "/xdg", 1);
    setenv("HOME", "/home/me", 1);
    assert_int_equal(st_pack_cache_path(NULL, c, k, out, sizeof out, &err), ST_OK);
    assert_true(strncmp(out, "/xdg/starling/a_model-", 22) == 0);
    setenv("XDG_CACHE_HOME", "relative", 1);
    assert_int_equal(st_pack_cache_path(NULL, c, k, out, sizeof out, &err), ST_OK);
    assert_true(strncmp(out, "/home/me/.cache/starling/a_model-", 33) == 0);
    unsetenv("HOME");
    assert_int_equal(st_pack_cache_path(NULL, c, k, out, sizeof out, &err), ST_ENOTFOUND);
    assert_non_null(strstr(err.text, "neither XDG_CACHE_HOME nor HOME"));
    assert_int_equal(st_pack_cache_path("", c, k, out, sizeof out, &err), ST_ENOTFOUND);
    st_checkpoint_free(c);
    remove_tree(p.root);
}

static void inspect_knows_whether_a_file_is_there(void **state)
{
    place p = new_place();
    notices seen;
    st_checkpoint *c;
    const st_kernels *k;
    char path[PATH_MAX];
    size_t size = 0;
    st_model_options o = {.dir = p.model, .pack_cache = p.cache};
    assert_int_equal(st_kernels_select(NULL, &k, NULL), ST_OK);
    assert_int_equal(st_checkpoint_open(p.model, &c, NULL), ST_OK);
    assert_int_equal(st_pack_cache_path(p.cache, c, k, path, sizeof path, NULL), ST_OK);
    assert_false(st_pack_cache_exists(path, c, k, &size));
    free(load_and_run(&o, &seen));
    assert_true(st_pack_cache_exists(path, c, k, &size));
    assert_true(size > 1000);
    assert_int_equal(truncate(path, 500), 0);
    assert_false(st_pack_cache_exists(path, c, k, &size));
    st_checkpoint_free(c);
    remove_tree(p.root);
}

static void without_a_usable_folder_packs_are_in_memory(void **state)
{
    place p = new_place();
    notices seen;
    char folder[200], path[PATH_MAX];
    st_checkpoint *c;
    const st_kernels *k;
    st_model_options o = {.dir = p.model, .pack_cache = "none"};
    float *want = load_and_run(&o, &seen);
    snprintf(folder, sizeof folder, "%s/config.json/sub", p.model); /* nobody can make that */
    o.pack_cache = folder;
    expect_same(load_and_run(&o, &seen), want, TINY_VOCAB);
    assert_non_null(strstr(seen.last, "packed in memory"));
    assert_non_null(strstr(seen.last, strerror(ENOTDIR)));
    /* a folder where the file should be */
    o.pack_cache = p.cache;
    assert_int_equal(st_kernels_select(NULL, &k, NULL), ST_OK);
    assert_int_equal(st_checkpoint_open(p.model, &c, NULL), ST_OK);
    assert_int_equal(st_pack_cache_path(p.cache, c, k, path, sizeof path, NULL), ST_OK);
    st_checkpoint_free(c);
    assert_true(mkdir(p.cache, 0777) == 0 && mkdir(path, 0777) == 0);
    expect_same(load_and_run(&o, &seen), want, TINY_VOCAB);
    assert_int_equal(seen.n, 2);
    assert_non_null(strstr(seen.last, "packed in memory"));
    assert_string_equal(only_file(p.cache), path); /* no temporary file stays */
    free(want);
    remove_tree(p.root);
}

/* --- processes --- */

/* Runs fn in a child; returns its pid. The child's status is 0 when fn returned. */
static pid_t in_child(void (*fn)(const place *p, const float *want), const place *p,
                      const float *want)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        fn(p, want);
        _exit(0);
    }
    return pid;
}

static int wait_for(pid_t pid)
{
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

/* Checks without cmocka, whose failures belong to the parent. */
static int run_in_child(const place *p, const float *want, const char *cache, notices *seen)
{
    st_model_options o = {.dir = p->model,
                          .pack_cache = cache,
                          .pack_cache_least = 1,
                          .max_batch_tokens = 16,
                          .n_threads = 2,
                          .notice = note,
                          .notice_user = seen};
    st_model *m;
    *seen = (notices){0};
    if (st_model_load(&o, &m, NULL))
        return 2;
    float *got = logits_of(m);
    int differ = memcmp(got, want, 3 * TINY_VOCAB * sizeof *got) != 0;
    free(got);
    st_model_free(m);
    return differ;
}

static int held = -1; /* the lock of the parent's, which a child would otherwise hold too */

static void load_quietly(const place *p, const float *want)
{
    notices seen;
    if (held >= 0)
        close(held);
    int code = run_in_child(p, want, p->cache, &seen);
    _exit(code ? code : seen.n ? 3 : 0);
}

static void several_processes_share_one_file(void **state)
{
    enum { N = 6 };
    place p = new_place();
    notices seen;
    pid_t pids[N];
    st_model_options o = {.dir = p.model, .pack_cache = "none"};
    float *want = load_and_run(&o, &seen);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++)
            pids[i] = in_child(load_quietly, &p, want);
        for (int i = 0; i < N; i++)
            assert_int_equal(wait_for(pids[i]), 0);
        assert_non_null(only_file(p.cache));
        unlink(only_file(p.cache));
    }
    free(want);
    remove_tree(p.root);
}

/* The path of the file for the best kernels, and of the one it grows in. */
static void names_of(const place *p, char *path, char *temp)
{
    st_checkpoint *c;
    const st_kernels *k;
    assert_int_equal(st_kernels_select(NULL, &k, NULL), ST_OK);
    assert_int_equal(st_checkpoint_open(p->model, &c, NULL), ST_OK);
    assert_int_equal(st_pack_cache_path(p->cache, c, k, path, PATH_MAX, NULL), ST_OK);
    st_checkpoint_free(c);
    snprintf(temp, PATH_MAX + 8, "%s.new", path);
}

static void a_second_process_waits_for_the_first(void **state)
{
    place p = new_place();
    notices seen;
    char path[PATH_MAX], temp[PATH_MAX + 8];
    st_model_options o = {.dir = p.model, .pack_cache = "none"};
    float *want = load_and_run(&o, &seen);
    names_of(&p, path, temp);
    assert_int_equal(mkdir(p.cache, 0777), 0);
    held = open(temp, O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    assert_true(held >= 0);
    assert_int_equal(flock(held, LOCK_EX), 0);
    pid_t pid = in_child(load_quietly, &p, want);
    nanosleep(&(struct timespec){.tv_nsec = 150000000}, NULL);
    assert_int_equal(waitpid(pid, NULL, WNOHANG), 0); /* it cannot have got past the lock */
    assert_int_equal(access(path, F_OK), -1);
    close(held); /* the holder died with its work half done: the other takes over */
    held = -1;
    assert_int_equal(wait_for(pid), 0);
    assert_string_equal(only_file(p.cache), path);
    free(want);
    remove_tree(p.root);
}

static void what_a_dead_process_left_is_taken_over(void **state)
{
    place p = new_place();
    notices seen;
    char path[PATH_MAX], temp[PATH_MAX + 8];
    st_model_options o = {.dir = p.model, .pack_cache = "none"};
    float *want = load_and_run(&o, &seen);
    names_of(&p, path, temp);
    assert_int_equal(mkdir(p.cache, 0777), 0);
    unsigned char *junk = calloc(1, 1 << 20); /* longer than the file will be */
    assert_non_null(junk);
    write_all(temp, junk, 1 << 20);
    free(junk);
    o.pack_cache = p.cache;
    expect_same(load_and_run(&o, &seen), want, TINY_VOCAB);
    expect_same(load_and_run(&o, &seen), want, TINY_VOCAB);
    expect_none(&seen);
    assert_string_equal(only_file(p.cache), path);
    free(want);
    remove_tree(p.root);
}

/* --- no room --- */

static void load_with_small_files(const place *p, const float *want)
{
    notices seen;
    struct rlimit few = {4096, 4096};
    if (setrlimit(RLIMIT_FSIZE, &few))
        _exit(9);
    int code = run_in_child(p, want, p->cache, &seen);
    _exit(code ? code : seen.n == 1 && strstr(seen.last, "ulimit -f") ? 0 : 3);
}

enum { CANNOT_MOUNT = 77 };

static bool put_line(const char *path, const char *fmt, unsigned id)
{
    FILE *f = fopen(path, "w");
    bool ok = f && fprintf(f, fmt, id) > 0;
    return f && fclose(f) == 0 && ok;
}

/* Mounts of this process' own, as root or as root of a user namespace. */
static bool may_mount(void)
{
    unsigned uid = getuid(), gid = getgid();
    if (unshare(CLONE_NEWNS) &&
        (unshare(CLONE_NEWUSER | CLONE_NEWNS) || !put_line("/proc/self/setgroups", "deny", 0) ||
         !put_line("/proc/self/uid_map", "0 %u 1", uid) ||
         !put_line("/proc/self/gid_map", "0 %u 1", gid)))
        return false;
    return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

/* A file system of its own with less room than the packs need. */
static void load_onto_a_full_disk(const place *p, const float *want)
{
    notices seen;
    if (!may_mount() || mkdir(p->cache, 0777) || mount("none", p->cache, "tmpfs", 0, "size=16k"))
        _exit(CANNOT_MOUNT);
    int code = run_in_child(p, want, p->cache, &seen);
    bool empty = only_file(p->cache) == NULL;
    _exit(code ? code : seen.n == 1 && strstr(seen.last, "No space left") && empty ? 0 : 3);
}

static void without_room_packs_are_in_memory(void **state)
{
    place p = new_place();
    notices seen;
    st_model_options o = {.dir = p.model, .pack_cache = "none"};
    float *want = load_and_run(&o, &seen);
    assert_int_equal(wait_for(in_child(load_with_small_files, &p, want)), 0);
    assert_null(only_file(p.cache));
    rmdir(p.cache);
    int full = wait_for(in_child(load_onto_a_full_disk, &p, want));
    if (full == CANNOT_MOUNT)
        print_message("a full disk could not be tried: no file system can be mounted here\n");
    else
        assert_int_equal(full, 0);
    free(want);
    remove_tree(p.root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_written_once_and_gives_the_same_bits),
        cmocka_unit_test(each_kernel_table_has_a_file),
        cmocka_unit_test(a_flipped_byte_is_found_wherever_it_is),
        cmocka_unit_test(a_file_of_another_length_is_replaced),
        cmocka_unit_test(a_file_of_something_else_is_replaced),
        cmocka_unit_test(packs_of_other_weights_are_replaced),
        cmocka_unit_test(a_changed_checkpoint_is_packed_again),
        cmocka_unit_test(a_nan_leaves_no_file),
        cmocka_unit_test(small_packs_stay_in_memory),
        cmocka_unit_test(progress_covers_a_file_that_is_found),
        cmocka_unit_test(folders_come_from_the_option_then_the_environment),
        cmocka_unit_test(inspect_knows_whether_a_file_is_there),
        cmocka_unit_test(without_a_usable_folder_packs_are_in_memory),
        cmocka_unit_test(several_processes_share_one_file),
        cmocka_unit_test(a_second_process_waits_for_the_first),
        cmocka_unit_test(what_a_dead_process_left_is_taken_over),
        cmocka_unit_test(without_room_packs_are_in_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
