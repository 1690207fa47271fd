/* How long one scheduling decision takes: match the prompt's blocks, view the engines, plan, claim.
 * 100 engines (50 prefill, 50 decode) that hold parts of 1,000-block prompts; alone, and with three
 * other processes that claim and release all the time.
 *
 *   decision_bench [decisions]      prints median and 99th percentile in microseconds
 *
 * Also in processor time: on a machine with other work the clock on the wall shows how long the
 * process was put aside. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "cluster/cluster.h"

enum { ENGINES = 100, BLOCKS = 1000, BLOCK_SIZE = 16, PROMPTS = 64, HOLDERS_OF_PROMPT = 4 };
enum { TOKENS = BLOCKS * BLOCK_SIZE, STEPS = 6 };

typedef struct bench {
    st_cluster *c;
    st_holder_set exact, history;
    st_route_policy policy;
    uint64_t *keys; /* [PROMPTS][BLOCKS] */
    uint64_t seed;
    double *us[STEPS]; /* match, view, plan, claim, all, all in processor time */
} bench;

static uint64_t below(uint64_t *seed, uint64_t n)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed % n;
}

static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "decision_bench: %s\n", what);
    exit(1);
}

static void open_cluster(bench *b)
{
    static char addresses[ENGINES][32];
    static st_engine_spec specs[ENGINES];
    st_error err;
    for (int i = 0; i < ENGINES; i++) {
        snprintf(addresses[i], sizeof addresses[i], "10.0.0.%d:8000", i);
        specs[i] = (st_engine_spec){.address = addresses[i],
                                    .pool = i < ENGINES / 2 ? "prefill" : "decode",
                                    .role = i < ENGINES / 2 ? ST_ROLE_PREFILL : ST_ROLE_DECODE,
                                    .dp_size = 1,
                                    .models = 1,
                                    .max_requests = 256,
                                    .publishes_events = true};
    }
    st_cluster_spec spec = {.name = "bench", .engines = specs, .n_engines = ENGINES};
    size_t n_blocks = (size_t)PROMPTS * BLOCKS * HOLDERS_OF_PROMPT * 2;
    size_t bytes = st_cluster_bytes(&spec, n_blocks, 1000);
    void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (mem == MAP_FAILED) {
        die("no memory");
    }
    if (st_cluster_init(mem, bytes, n_blocks, 1000, &spec, &b->c, &err) != ST_OK) {
        die(err.text);
    }
    st_cluster_clear_stale(b->c);
    for (int32_t i = 0; i < ENGINES; i++) {
        st_engine_slot *e = st_cluster_engine(b->c, i);
        atomic_store(&e->kv_tokens, 100000000);
        atomic_store(&e->block_size, BLOCK_SIZE);
        st_cluster_set_health(b->c, i, ST_HEALTH_UP, st_now_ns());
        uint16_t h = atomic_load(&e->first_holder);
        b->exact.bits[h / 64] |= UINT64_C(1) << h % 64;
    }
}

/* Each prompt is held by some engines, whole or in part, as their events would have said. */
static void fill_index(bench *b)
{
    int32_t *tokens = malloc(TOKENS * sizeof *tokens);
    uint64_t *hashes = malloc(BLOCKS * sizeof *hashes);
    b->keys = malloc(sizeof *b->keys * PROMPTS * BLOCKS);
    if (!tokens || !hashes || !b->keys) {
        die("no memory");
    }
    uint64_t root = st_prefix_root("m", 1, NULL, 0, NULL, 0), hash_ns = 0;
    for (int p = 0; p < PROMPTS; p++) {
        for (int t = 0; t < TOKENS; t++) {
            tokens[t] = (int32_t)below(&b->seed, 100000);
        }
        uint64_t start = st_now_ns();
        st_prefix_keys(root, tokens, TOKENS, BLOCK_SIZE, &b->keys[(size_t)p * BLOCKS]);
        hash_ns += st_now_ns() - start;
        for (int k = 0; k < HOLDERS_OF_PROMPT; k++) {
            int32_t e = (int32_t)below(&b->seed, ENGINES);
            size_t n = k == 0 ? BLOCKS : 1 + below(&b->seed, BLOCKS);
            for (size_t i = 0; i < n; i++) {
                hashes[i] = (uint64_t)(p + 1) << 32 | i;
            }
            if (st_prefix_store(st_cluster_index(b->c),
                                atomic_load(&st_cluster_engine(b->c, e)->first_holder), root, false,
                                0, hashes, n, tokens, BLOCK_SIZE) != ST_OK) {
                die("the index refused blocks");
            }
        }
    }
    printf("hashing %d tokens into keys: %.1f us\n", TOKENS, (double)hash_ns / 1000 / PROMPTS);
    free(tokens);
    free(hashes);
}

/* One decision; claims[0..1]: prefill, decode. */
static void decide(bench *b, int row, st_claim claims[2], double *us)
{
    uint32_t depth[ST_INDEX_MAX_HOLDERS];
    st_route_engine view[ST_CLUSTER_MAX_ENGINES];
    const st_route_engine *at[2] = {NULL, NULL};
    st_route_plan plan;
    const uint64_t *keys = &b->keys[below(&b->seed, PROMPTS) * BLOCKS];
    st_route_request r = {
        .prompt_tokens = TOKENS + 300, .max_tokens = 100, .disaggregate = true, .sticky = -1};
    uint64_t t[5];
    claims[0] = claims[1] = (st_claim){.engine = -1};
    uint64_t cpu = cpu_ns();
    t[0] = st_now_ns();
    st_prefix_match(st_cluster_index(b->c), keys, BLOCKS, &b->exact, &b->history, t[0], UINT64_MAX,
                    depth);
    t[1] = st_now_ns();
    int32_t n = st_cluster_view(b->c, 0, depth, BLOCK_SIZE, view);
    t[2] = st_now_ns();
    if (st_route_plan_request(&b->policy, &r, view, n, &plan) != ST_ROUTE_GO) {
        die("no room");
    }
    t[3] = st_now_ns();
    for (int32_t i = 0; i < n; i++) {
        at[0] = view[i].id == plan.prefill ? &view[i] : at[0];
        at[1] = view[i].id == plan.decode ? &view[i] : at[1];
    }
    st_route_loads(&r, at[0], at[1], &claims[0].load, &claims[1].load);
    for (int k = 0; k < 2; k++) {
        claims[k].engine = at[k] ? at[k]->id : -1;
        if (at[k] && !st_cluster_claim(b->c, row, at[k], &claims[k])) {
            claims[k].engine = -1; /* a lost race costs another round; rare, and counted */
        }
    }
    t[4] = st_now_ns();
    cpu = cpu_ns() - cpu;
    for (int k = 0; us && k < 4; k++) {
        us[k] = (double)(t[k + 1] - t[k]) / 1000;
    }
    if (us) {
        us[4] = (double)(t[4] - t[0]) / 1000;
        us[5] = (double)cpu / 1000;
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(bench *b, int row, int n, const char *what)
{
    enum { HELD = 64 };
    static const char *const names[STEPS] = {"match", "view",     "plan",
                                             "claim", "decision", "processor"};
    st_claim held[HELD][2];
    for (int i = 0; i < n + HELD; i++) {
        double us[STEPS];
        if (i >= HELD) {
            st_cluster_release(b->c, row, &held[i % HELD][0], st_now_ns());
            st_cluster_release(b->c, row, &held[i % HELD][1], st_now_ns());
        }
        decide(b, row, held[i % HELD], us);
        for (int k = 0; k < STEPS && i >= HELD; k++) {
            b->us[k][i - HELD] = us[k];
        }
    }
    for (int i = 0; i < HELD; i++) {
        st_cluster_release(b->c, row, &held[i][0], st_now_ns());
        st_cluster_release(b->c, row, &held[i][1], st_now_ns());
    }
    printf("%s\n", what);
    for (int k = 0; k < STEPS; k++) {
        qsort(b->us[k], (size_t)n, sizeof(double), compare);
        printf("  %-9s P50 %6.1f us   P99 %6.1f us\n", names[k], b->us[k][n / 2],
               b->us[k][n * 99 / 100]);
    }
}

/* Another worker: some thousand decisions a second. */
static void other_worker(bench *b, uint64_t seed)
{
    int row, fd;
    b->seed = seed;
    if (st_cluster_enter(b->c, &row, &fd, NULL) != ST_OK) {
        _exit(1);
    }
    for (;;) {
        st_claim claims[2];
        decide(b, row, claims, NULL);
        usleep(200);
        st_cluster_release(b->c, row, &claims[0], st_now_ns());
        st_cluster_release(b->c, row, &claims[1], st_now_ns());
    }
}

int main(int argc, char **argv)
{
    int n = argc > 1 ? atoi(argv[1]) : 20000, row, fd;
    bench b = {.seed = 12345};
    st_route_policy_default(&b.policy);
    b.policy.mode = ST_MODE_PARALLEL;
    if (n < 100 || n > 10000000) {
        die("decisions: expected 100 to 10,000,000");
    }
    for (int k = 0; k < STEPS; k++) {
        b.us[k] = malloc((size_t)n * sizeof(double));
        if (!b.us[k]) {
            die("no memory");
        }
    }
    open_cluster(&b);
    fill_index(&b);
    if (st_cluster_enter(b.c, &row, &fd, NULL) != ST_OK) {
        die("no row");
    }
    measure(&b, row, n, "one worker");
    pid_t others[3];
    for (int i = 0; i < 3; i++) {
        others[i] = fork();
        if (others[i] == 0) {
            other_worker(&b, (uint64_t)i + 7);
        }
    }
    usleep(50000);
    measure(&b, row, n, "four workers");
    for (int i = 0; i < 3; i++) {
        if (others[i] > 0) {
            kill(others[i], SIGKILL);
            waitpid(others[i], NULL, 0);
        }
    }
    printf("races lost: %lu\n",
           (unsigned long)atomic_load(&st_cluster_get_metrics(b.c)->races_lost));
    st_cluster_leave(b.c, row);
    st_cluster_free(b.c);
    free(b.keys);
    for (int k = 0; k < STEPS; k++) {
        free(b.us[k]);
    }
    return 0;
}
