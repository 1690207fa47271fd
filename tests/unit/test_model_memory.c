/* The memory prediction: sums from made-up checkpoints, the refusals, and the real model's heap
 * against what was predicted for it. */
#include "cmocka_all.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_memory.h"
#include "model/weights.h"

static const st_model_config mla = {.hidden_size = 100,
                                    .n_layers = 1,
                                    .intermediate_size = 300,
                                    .attn = ST_ATTN_MLA,
                                    .n_heads = 4,
                                    .n_kv_heads = 4,
                                    .kv_lora_rank = 32,
                                    .qk_nope_head_dim = 16,
                                    .qk_rope_head_dim = 8,
                                    .v_head_dim = 16};

static st_tensor tensor(const char *name, st_dtype dtype, int64_t n, int64_t k, const void *data)
{
    st_tensor t = {.name = name, .file = "f", .dtype = dtype, .rank = k ? 2 : 1, .data = data};
    t.shape[0] = n;
    t.shape[1] = k;
    t.bytes = (size_t)n * (size_t)(k ? k : 1) * st_dtype_size(dtype);
    return t;
}

static st_memory_steps steps_of(int32_t n)
{
    st_memory_steps s = {.threads = 1, .max_batch_tokens = n, .max_outputs = n};
    assert_int_equal(st_kernels_select(NULL, &s.k, NULL), ST_OK);
    return s;
}

static st_memory_need predict(const st_model_config *c, const st_tensor *t, size_t n, int32_t batch)
{
    st_memory_need need;
    st_error err = {0};
    const st_memory_steps steps = steps_of(batch);
    if (st_model_memory_predict(c, t, n, 1000, false, &steps, &need, &err))
        fail_msg("%s", err.text);
    assert_int_equal(need.packed, 1000);
    assert_int_equal(need.total, need.packed + need.rows + need.prepared + need.working);
    return need;
}

static size_t prepared_beyond(const st_model_config *c, st_tensor t)
{
    st_tensor plain = tensor("model.layers.0.x", ST_F32, 1, 1, NULL);
    return predict(c, &t, 1, 1).prepared - predict(c, &plain, 1, 1).prepared;
}

static void only_the_embedding_is_read_where_it_lies(void **state)
{
    (void)state;
    st_tensor t[] = {tensor("model.layers.0.a", ST_BF16, 10, 10, NULL),
                     tensor("model.embed_tokens.weight", ST_BF16, 30, 10, NULL),
                     tensor("model.layers.1.eh_proj.weight", ST_BF16, 1000, 10, NULL),
                     tensor("lm_head.weight", ST_F32, 5, 10, NULL)};
    assert_int_equal(predict(&mla, t, 4, 1).rows, 600);
}

static void what_is_prepared_from_each_kind_of_tensor(void **state)
{
    (void)state;
    static const char aligned[16] __attribute__((aligned(16)));
    const char *embedding = "model.embed_tokens.weight";
    assert_int_equal(prepared_beyond(&mla, tensor("n", ST_BF16, 50, 0, aligned)), 200);
    assert_int_equal(prepared_beyond(&mla, tensor("w.weight", ST_I8, 5, 7, aligned + 1)), 0);
    assert_int_equal(prepared_beyond(&mla, tensor(embedding, ST_BF16, 5, 7, aligned)), 0);
    assert_int_equal(prepared_beyond(&mla, tensor(embedding, ST_BF16, 5, 7, aligned + 1)), 70);
    st_tensor mtp = tensor("model.layers.1.n", ST_BF16, 50, 0, aligned);
    assert_int_equal(predict(&mla, &mtp, 1, 1).prepared, 0);
}

static void working_memory_grows_with_the_step(void **state)
{
    (void)state;
    st_model_config wide = mla;
    wide.attn = ST_ATTN_GQA;
    wide.head_dim = 32;
    size_t one = predict(&wide, NULL, 0, 1).working, ten = predict(&wide, NULL, 0, 10).working;
    assert_int_equal(ten, 10 * one);
    wide = mla;
    one = predict(&wide, NULL, 0, 1).working;
    wide.int8_activations = true;
    size_t with_int8 = predict(&wide, NULL, 0, 1).working;
    assert_true(with_int8 > one);
    wide.n_experts = 8;
    wide.experts_per_token = 2;
    wide.moe_intermediate_size = 50;
    assert_true(predict(&wide, NULL, 0, 1).working > with_int8);
}

static void sums_that_overflow_are_refused(void **state)
{
    (void)state;
    st_model_config huge = mla;
    huge.hidden_size = huge.intermediate_size = 1 << 20;
    huge.n_experts = 4096;
    huge.experts_per_token = 256;
    huge.moe_intermediate_size = 1 << 20;
    st_tensor t = tensor("a", ST_F32, 1, 1, NULL);
    st_memory_need need;
    st_error err = {0};
    const st_memory_steps steps = steps_of(INT32_MAX);
    assert_int_equal(
        st_model_memory_predict(&huge, &t, 1, SIZE_MAX - 10, true, &steps, &need, &err), ST_EINVAL);
    assert_non_null(strstr(err.text, "steps of 2147483647 tokens"));
}

static void what_cannot_fit_is_refused_with_both_numbers(void **state)
{
    (void)state;
    const size_t gib = (size_t)1 << 30;
    st_memory_need need = {.packed = 690 * gib,
                           .rows = 10 * gib,
                           .prepared = 10 * gib,
                           .working = 2 * gib,
                           .total = 712 * gib,
                           .shared = true};
    static const struct {
        st_memory_room room;
        const char *text; /* NULL: fits */
    } rows[] = {
        {{SIZE_MAX, SIZE_MAX, SIZE_MAX}, NULL},
        {{(size_t)712 << 30, (size_t)712 << 30, (size_t)702 << 30}, NULL},
        {{((size_t)712 << 30) - 1, SIZE_MAX, SIZE_MAX},
         "but the limit set for the model is 712 GiB"},
        {{SIZE_MAX, (size_t)24 << 30, SIZE_MAX},
         "M needs 712 GiB of memory (packed weights 690 GiB in a file, embedding 10.0 GiB, "
         "prepared "
         "10.0 GiB, working 2.00 GiB) but 24.0 GiB is available here"},
        {{SIZE_MAX, SIZE_MAX, ((size_t)702 << 30) - 1},
         "needs 702 GiB besides its mapped files but the"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        st_error err = {0};
        st_status s = st_memory_fits("M", &need, &rows[i].room, &err);
        assert_int_equal(s, rows[i].text ? ST_ENOMEM : ST_OK);
        if (rows[i].text && !strstr(err.text, rows[i].text))
            fail_msg("row %zu: '%s', expected '%s'", i, err.text, rows[i].text);
    }
}

static void this_machine_has_memory(void **state)
{
    (void)state;
    st_memory_room room;
    st_memory_read_room(0, &room);
    assert_true(room.limit == SIZE_MAX && room.available > 0 && room.address_space > 0);
    st_memory_read_room(12345, &room);
    assert_int_equal(room.limit, 12345);
}

static size_t heap(void)
{
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

/* Loads the lexicon and compares its heap with the prediction; bounds are wide enough for arena
 * slack and thread stacks, narrow enough to notice an array that was forgotten. */
static void the_lexicon_takes_what_was_predicted(void **state)
{
    (void)state;
    static const char *const kinds[] = {"bf16", "int8"};
    const st_memory_steps steps = steps_of(512);
    st_error err = {0};
    for (int i = 0; i < 2; i++) {
        char dir[600];
        size_t packed;
        snprintf(dir, sizeof dir, ST_SOURCE_ROOT "/models/lexicon/%s", kinds[i]);
        st_model_options opts = {.dir = dir, .max_batch_tokens = 512, .n_threads = 1};
        st_checkpoint *c;
        st_memory_need need;
        assert_int_equal(st_checkpoint_open(dir, &c, &err), ST_OK);
        assert_int_equal(st_layers_measure(c, steps.k, &packed, &err), ST_OK);
        assert_true(packed > (size_t)16 << 20 && packed < (size_t)60 << 20);
        assert_int_equal(st_model_memory_predict(st_checkpoint_config(c), st_checkpoint_at(c, 0),
                                                 st_checkpoint_count(c), packed, false, &steps,
                                                 &need, &err),
                         ST_OK);
        st_checkpoint_free(c);
        size_t before = heap();
        st_model *m;
        if (st_model_load(&opts, &m, &err))
            fail_msg("%s", err.text);
        size_t taken = heap() - before;
        st_model_free(m);
        double predicted = (double)(need.prepared + need.working), got = (double)taken;
        double page = 2 << 20; /* a step's arrays begin at a large page: addresses, not memory */
        print_message("%s: predicted %.0f, taken %.0f\n", kinds[i], predicted, got);
        if (heap() > 0) /* 0: a sanitizer's allocator, which mallinfo2 knows nothing of */
            assert_true(got > 0.8 * predicted && got < 1.25 * predicted + page);
        opts.memory_limit = need.total - 1;
        assert_int_equal(st_model_load(&opts, &m, &err), ST_ENOMEM);
        assert_non_null(strstr(err.text, "but the limit set for the model is"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_the_embedding_is_read_where_it_lies),
        cmocka_unit_test(what_is_prepared_from_each_kind_of_tensor),
        cmocka_unit_test(working_memory_grows_with_the_step),
        cmocka_unit_test(sums_that_overflow_are_refused),
        cmocka_unit_test(what_cannot_fit_is_refused_with_both_numbers),
        cmocka_unit_test(this_machine_has_memory),
        cmocka_unit_test(the_lexicon_takes_what_was_predicted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
