/* The engine's KV events as a subscriber receives them: blocks that were computed and blocks that
 * were fetched from another engine, with the salt of their chain. */
#include "engine_harness.h"

#include <stdio.h>
#include <string.h>

#include <zmq.h>

#include "events/kv_event.h"

enum { PROMPT = 200, FULL = PROMPT / 16 };

typedef struct seen {
    int32_t tokens[1024];
    size_t n_tokens, n_roots, n_salted;
    bool probed; /* a block of `join` came: not counted above */
} seen;

static void on_event(void *user, const st_kv_event *ev)
{
    seen *s = user;
    assert_int_equal(ev->type, ST_KV_STORED);
    assert_int_equal(ev->block_size, 16);
    if (ev->salt_len > 5 && memcmp(ev->salt, "probe", 5) == 0) {
        s->probed = true;
        return;
    }
    assert_true(s->n_tokens + ev->n_tokens <= 1024);
    memcpy(s->tokens + s->n_tokens, ev->tokens, ev->n_tokens * sizeof *ev->tokens);
    s->n_tokens += ev->n_tokens;
    s->n_roots += !ev->has_parent;
    s->n_salted += ev->salt_len == 6 && memcmp(ev->salt, "pepper", 6) == 0;
}

static void receive_batch(void *socket, st_kv_decoder *d, seen *s)
{
    zmq_msg_t m;
    for (int frame = 0, more = 1; more; frame++) {
        st_kv_batch_info info;
        zmq_msg_init(&m);
        assert_true(zmq_msg_recv(&m, socket, 0) >= 0);
        more = zmq_msg_more(&m);
        if (frame == 2) {
            assert_int_equal(
                st_kv_decode(d, zmq_msg_data(&m), zmq_msg_size(&m), on_event, s, &info), ST_OK);
            assert_int_equal(info.skipped, 0);
        }
        zmq_msg_close(&m);
    }
}

/* Receives until n tokens were stored, or nothing comes for half a minute. */
static void receive(void *socket, st_kv_decoder *d, seen *s, size_t n)
{
    zmq_pollitem_t item = {socket, 0, ZMQ_POLLIN, 0};
    while (s->n_tokens < n && zmq_poll(&item, 1, 30000) > 0)
        receive_batch(socket, d, s);
}

/* A subscription takes a moment to arrive: blocks are computed until one is told. */
static void join(st_engine *e, void *socket, st_kv_decoder *d, const int32_t *prompt)
{
    static recorder rec;
    zmq_pollitem_t item = {socket, 0, ZMQ_POLLIN, 0};
    seen s = {.probed = false};
    for (int i = 0; !s.probed; i++) {
        char salt[16];
        snprintf(salt, sizeof salt, "probe%d", i);
        assert_true(i < 1000);
        st_request r = greedy_request(prompt, 17, 1);
        r.cache_salt = salt;
        submit(e, &r, &rec);
        recorder_wait(&rec);
        if (zmq_poll(&item, 1, 50) > 0)
            receive_batch(socket, d, &s);
    }
}

static void computed_and_fetched_blocks_are_told(void **state)
{
    (void)state;
    static recorder first, second;
    static int32_t prompt[PROMPT];
    harness_init();
    long_prompt(prompt, PROMPT, 2);
    st_engine_options p = {.transfer = {.enabled = true, .host = "127.0.0.1"}}, d = p;
    d.events = (st_kv_events_options){.enabled = true, .host = "127.0.0.1"};
    st_engine *pe = make_engine(harness_model("int8", 1), &p);
    st_engine *de = make_engine(harness_model("int8", 2), &d);
    st_engine_ports ports = st_engine_get_ports(de);
    assert_true(ports.events > 0 && ports.replay > 0);
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", ports.events);
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_SUB);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0), 0);
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    st_kv_decoder *decoder;
    assert_int_equal(st_kv_decoder_new(&decoder), ST_OK);
    join(de, socket, decoder, prompt);

    st_request r = greedy_request(prompt, PROMPT, 1);
    submit(de, &r, &first);
    recorder_wait(&first);
    seen computed = {.n_tokens = 0};
    receive(socket, decoder, &computed, FULL * 16);
    assert_int_equal(computed.n_tokens, FULL * 16);
    assert_memory_equal(computed.tokens, prompt, FULL * 16 * sizeof *prompt);
    assert_int_equal(computed.n_roots, 1);
    assert_int_equal(computed.n_salted, 0);

    r.cache_salt = "pepper";
    r.handover.what = ST_HANDOVER_OFFER;
    memset(r.handover.id, 'a', 32);
    submit(pe, &r, &first);
    r.handover.what = ST_HANDOVER_FETCH;
    r.handover.host = "127.0.0.1";
    r.handover.port = st_engine_get_ports(pe).transfer;
    submit(de, &r, &second);
    recorder_wait(&first);
    recorder_wait(&second);
    seen fetched = {.n_tokens = 0};
    receive(socket, decoder, &fetched, FULL * 16);
    assert_int_equal(fetched.n_tokens, FULL * 16);
    assert_memory_equal(fetched.tokens, prompt, FULL * 16 * sizeof *prompt);
    assert_int_equal(fetched.n_roots, 1);
    assert_true(fetched.n_salted > 0);
    st_engine_stats s;
    st_engine_get_stats(de, &s);
    assert_int_equal(s.fetch_failures, 0);

    st_kv_decoder_free(decoder);
    zmq_close(socket);
    zmq_ctx_term(context);
    st_engine_free(de);
    st_engine_free(pe);
    harness_free();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(computed_and_fetched_blocks_are_told)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
