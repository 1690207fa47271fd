/* config.json: each family's published numbers are understood, and each kind of nonsense is
 * refused by name. Bad configurations are a good one with a patch merged in. */
#include "cmocka_all.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "model/checkpoint.h"

static const char pangu[] =
    "{\"model_type\":\"pangu_ultra_moe\",\"vocab_size\":153600,\"hidden_size\":7680,"
    "\"num_hidden_layers\":61,\"num_mtp_layers\":1,\"intermediate_size\":18432,"
    "\"moe_intermediate_size\":2048,\"num_attention_heads\":128,\"attention_q_lora_dim\":1536,"
    "\"attention_kv_lora_dim\":512,\"attention_qk_dim\":128,\"attention_qk_rope_dim\":64,"
    "\"attention_v_dim\":128,\"num_routed_experts\":256,\"num_shared_experts\":1,"
    "\"num_experts_per_tok\":8,\"num_dense_layers\":3,\"routed_scaling_factor\":2.5,"
    "\"norm_topk_prob\":true,\"rms_norm_eps\":1e-05,\"rope_theta\":25600000,"
    "\"max_position_embeddings\":131072,\"sandwich_norm\":true,\"hidden_act\":\"silu\","
    "\"tie_word_embeddings\":false,\"bos_token_id\":0,\"eos_token_id\":1}";

static const char v3[] =
    "{\"model_type\":\"deepseek_v3\",\"vocab_size\":129280,\"hidden_size\":7168,"
    "\"num_hidden_layers\":61,\"num_nextn_predict_layers\":1,\"intermediate_size\":18432,"
    "\"moe_intermediate_size\":2048,\"num_attention_heads\":128,\"num_key_value_heads\":128,"
    "\"q_lora_rank\":1536,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,"
    "\"v_head_dim\":128,\"n_routed_experts\":256,\"n_shared_experts\":1,\"num_experts_per_tok\":8,"
    "\"first_k_dense_replace\":3,\"moe_layer_freq\":1,\"n_group\":8,\"topk_group\":4,"
    "\"routed_scaling_factor\":2.5,\"norm_topk_prob\":true,\"scoring_func\":\"sigmoid\","
    "\"topk_method\":\"noaux_tc\",\"rms_norm_eps\":1e-06,\"rope_theta\":10000,"
    "\"max_position_embeddings\":163840,\"rope_scaling\":{\"beta_fast\":32,\"beta_slow\":1,"
    "\"factor\":40,\"mscale\":1.0,\"mscale_all_dim\":1.0,"
    "\"original_max_position_embeddings\":4096,\"type\":\"yarn\"},\"eos_token_id\":1}";

static const char v2_lite[] =
    "{\"model_type\":\"deepseek_v2\",\"vocab_size\":102400,\"hidden_size\":2048,"
    "\"num_hidden_layers\":27,\"intermediate_size\":10944,\"moe_intermediate_size\":1408,"
    "\"num_attention_heads\":16,\"q_lora_rank\":null,\"kv_lora_rank\":512,"
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":64,"
    "\"n_shared_experts\":2,\"num_experts_per_tok\":6,\"first_k_dense_replace\":1,\"n_group\":1,"
    "\"topk_group\":1,\"scoring_func\":\"softmax\",\"topk_method\":\"greedy\","
    "\"norm_topk_prob\":false,\"routed_scaling_factor\":1.0,\"max_position_embeddings\":163840,"
    "\"rope_scaling\":{\"factor\":40,\"mscale\":0.707,\"mscale_all_dim\":0.707,"
    "\"original_max_position_embeddings\":4096,\"type\":\"yarn\"}}";

static const char qwen2[] =
    "{\"model_type\":\"qwen2\",\"vocab_size\":151936,\"hidden_size\":896,\"num_hidden_layers\":24,"
    "\"intermediate_size\":4864,\"num_attention_heads\":14,\"num_key_value_heads\":2,"
    "\"rms_norm_eps\":1e-06,\"rope_theta\":1000000.0,\"max_position_embeddings\":32768,"
    "\"tie_word_embeddings\":true,\"use_sliding_window\":false,\"sliding_window\":32768,"
    "\"bos_token_id\":151643,\"eos_token_id\":151645}";

static const char qwen3[] =
    "{\"model_type\":\"qwen3\",\"vocab_size\":151936,\"hidden_size\":1024,"
    "\"num_hidden_layers\":28,\"intermediate_size\":3072,\"num_attention_heads\":16,"
    "\"num_key_value_heads\":8,\"head_dim\":128,\"attention_bias\":false,\"rope_scaling\":null,"
    "\"rope_theta\":1000000,\"max_position_embeddings\":40960,\"tie_word_embeddings\":true,"
    "\"layer_types\":[\"full_attention\"],\"eos_token_id\":[151645,151643]}";

static const char qwen3_moe[] =
    "{\"model_type\":\"qwen3_moe\",\"vocab_size\":151936,\"hidden_size\":2048,"
    "\"num_hidden_layers\":48,\"intermediate_size\":6144,\"moe_intermediate_size\":768,"
    "\"num_attention_heads\":32,\"num_key_value_heads\":4,\"head_dim\":128,\"num_experts\":128,"
    "\"num_experts_per_tok\":8,\"norm_topk_prob\":true,\"decoder_sparse_step\":1,"
    "\"mlp_only_layers\":[],\"rope_theta\":1000000.0,\"max_position_embeddings\":40960}";

static const char embedded[] =
    "{\"model_type\":\"PanguEmbedded\",\"vocab_size\":153376,\"hidden_size\":4096,"
    "\"num_hidden_layers\":34,\"intermediate_size\":12800,\"num_attention_heads\":32,"
    "\"num_key_value_heads\":8,\"bias\":true,\"rope_theta\":16000000.0,\"rms_norm_eps\":1e-5,"
    "\"max_position_embeddings\":32768,\"bos_token_id\":1,\"eos_token_id\":45892}";

#define W8A8_WEIGHTS                                                                               \
    "\"weights\":{\"num_bits\":8,\"type\":\"int\",\"strategy\":\"channel\",\"symmetric\":true,"    \
    "\"dynamic\":false}"
#define W8A8_ACTIVATIONS                                                                           \
    "\"input_activations\":{\"num_bits\":8,\"type\":\"int\",\"strategy\":\"token\","               \
    "\"symmetric\":true,\"dynamic\":true}"
#define QUANT(format, groups)                                                                      \
    "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"" format       \
    "\",\"config_groups\":" groups "}}"
#define W8A8 QUANT("int-quantized", "{\"group_0\":{" W8A8_WEIGHTS "," W8A8_ACTIVATIONS "}}")

/* base with patch merged in, parsed; a patched member null deletes it. */
static st_status parse(const char *base, const char *patch, const char *generation,
                       st_model_config *c, st_error *err)
{
    json_error_t je;
    json_t *root = json_loads(base, 0, &je), *changes = json_loads(patch ? patch : "{}", 0, &je);
    if (!root || !changes)
        fail_msg("the test's own JSON: %s in %s", je.text, patch ? patch : base);
    json_object_update(root, changes);
    char *text = json_dumps(root, 0);
    memset(err, 0, sizeof *err);
    st_status s = st_model_config_parse(text, strlen(text), generation,
                                        generation ? strlen(generation) : 0, c, err);
    free(text);
    json_decref(root);
    json_decref(changes);
    return s;
}

static st_model_config good(const char *base, const char *patch, const char *generation)
{
    st_model_config c;
    st_error err;
    if (parse(base, patch, generation, &c, &err))
        fail_msg("%s with %s: %s", base, patch ? patch : "nothing", err.text);
    return c;
}

static void pangu_in_both_dialects(void **state)
{
    (void)state;
    st_model_config a = good(pangu, NULL, NULL);
    assert_string_equal(a.model_type, "pangu_ultra_moe");
    assert_int_equal(a.attn, ST_ATTN_MLA);
    assert_int_equal(a.q_lora_rank, 1536);
    assert_int_equal(a.kv_lora_rank, 512);
    assert_int_equal(a.qk_nope_head_dim, 128);
    assert_int_equal(a.qk_rope_head_dim, 64);
    assert_int_equal(a.v_head_dim, 128);
    assert_int_equal(a.n_experts, 256);
    assert_int_equal(a.n_mtp_layers, 1);
    assert_int_equal(a.first_dense_layers, 3);
    assert_true(a.sandwich_norm && a.rope_interleaved && a.norm_topk_prob);
    assert_false(a.router_bias || a.yarn || a.int8_activations || a.qkv_bias || a.o_bias);
    assert_int_equal(a.router, ST_ROUTER_SIGMOID);
    assert_int_equal(a.n_group, 1);
    assert_float_equal(a.attn_scale, 1 / sqrt(192), 1e-7);
    assert_float_equal(a.rope_attention_factor, 1, 0);
    static const char names[] =
        "{\"attention_q_lora_dim\":null,\"q_lora_rank\":1536,\"attention_kv_lora_dim\":null,"
        "\"kv_lora_rank\":512,\"attention_qk_dim\":null,\"qk_nope_head_dim\":128,"
        "\"attention_qk_rope_dim\":null,\"qk_rope_head_dim\":64,\"attention_v_dim\":null,"
        "\"v_head_dim\":128,\"num_routed_experts\":null,\"n_routed_experts\":256,"
        "\"num_shared_experts\":null,\"n_shared_experts\":1,\"num_dense_layers\":null,"
        "\"first_k_dense_replace\":3,\"num_mtp_layers\":null,\"num_nextn_predict_layers\":1}";
    st_model_config b = good(pangu, names, NULL);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(good(pangu, "{\"router_enable_expert_bias\":true}", NULL).router_bias);
}

static void deepseek_numbers(void **state)
{
    (void)state;
    st_model_config c = good(v3, NULL, NULL);
    double m = 0.1 * log(40) + 1;
    assert_true(c.yarn && c.router_bias && c.norm_topk_prob && c.rope_interleaved);
    assert_float_equal(c.attn_scale, m * m / sqrt(192), 1e-6);
    assert_float_equal(c.rope_attention_factor, 1, 1e-7);
    assert_int_equal(c.n_group, 8);
    assert_int_equal(c.topk_group, 4);
    assert_int_equal(c.max_positions, 163840);
    assert_int_equal(c.yarn_original_positions, 4096);
    c = good(v2_lite, NULL, NULL);
    m = 0.1 * 0.707 * log(40) + 1;
    assert_int_equal(c.q_lora_rank, 0);
    assert_int_equal(c.n_shared_experts, 2);
    assert_int_equal(c.router, ST_ROUTER_SOFTMAX);
    assert_false(c.router_bias || c.norm_topk_prob);
    assert_int_equal(c.n_group, 1);
    assert_float_equal(c.attn_scale, m * m / sqrt(192), 1e-6);
    c = good(v2_lite, "{\"topk_method\":\"group_limited_greedy\",\"n_group\":8,\"topk_group\":3}",
             NULL);
    assert_int_equal(c.n_group, 8);
    assert_int_equal(c.topk_group, 3);
    assert_false(c.router_bias);
    c = good(v2_lite, "{\"n_group\":8,\"topk_group\":3}", NULL); /* greedy ignores groups */
    assert_int_equal(c.n_group, 1);
    c = good(v3,
             "{\"model_type\":\"kimi_k2\",\"num_attention_heads\":64,\"n_group\":1,"
             "\"topk_group\":1,\"n_routed_experts\":384,\"routed_scaling_factor\":2.827}",
             NULL);
    assert_int_equal(c.n_experts, 384);
    assert_true(c.router_bias);
    assert_float_equal(c.routed_scaling_factor, 2.827, 1e-6);
}

static void qwen_numbers(void **state)
{
    (void)state;
    st_model_config c = good(qwen2, NULL, NULL);
    assert_int_equal(c.attn, ST_ATTN_GQA);
    assert_int_equal(c.head_dim, 64);
    assert_int_equal(c.n_kv_heads, 2);
    assert_true(c.qkv_bias && c.tie_embeddings);
    assert_false(c.o_bias || c.qk_norm || c.rope_interleaved);
    assert_int_equal(c.n_experts, 0);
    assert_int_equal(c.bos_id, 151643);
    c = good(qwen3, NULL, NULL);
    assert_true(c.qk_norm);
    assert_false(c.qkv_bias || c.o_bias);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.n_eos, 2);
    assert_float_equal(c.rms_norm_eps, 1e-6, 1e-12);
    assert_int_equal(good(qwen3, "{\"head_dim\":null}", NULL).head_dim, 128);
    c = good(qwen3_moe, NULL, NULL);
    assert_int_equal(c.n_experts, 128);
    assert_int_equal(c.n_shared_experts, 0);
    assert_int_equal(c.router, ST_ROUTER_SOFTMAX);
    assert_true(c.norm_topk_prob && st_model_layer_is_moe(&c, 0));
    assert_float_equal(c.routed_scaling_factor, 1, 0);
    assert_int_equal(c.bos_id, -1);
    c = good(embedded, NULL, NULL);
    assert_true(c.qkv_bias && c.o_bias);
    assert_int_equal(c.head_dim, 128);
}

static void absent_keys_have_the_published_defaults(void **state)
{
    (void)state;
    st_model_config c = good(qwen3_moe, "{\"norm_topk_prob\":null,\"rope_theta\":null}", NULL);
    assert_false(c.norm_topk_prob);
    assert_float_equal(c.rope_theta, 10000, 0);
    c = good(v3,
             "{\"n_group\":null,\"topk_group\":null,\"norm_topk_prob\":null,"
             "\"topk_method\":null,\"scoring_func\":null}",
             NULL);
    assert_int_equal(c.n_group, 8);
    assert_true(c.router_bias && c.norm_topk_prob && c.router == ST_ROUTER_SIGMOID);
    c = good(qwen2, "{\"num_key_value_heads\":null}", NULL);
    assert_int_equal(c.n_kv_heads, 14);
    c = good(qwen2, "{\"model_type\":null,\"architectures\":[\"Qwen2ForCausalLM\"]}", NULL);
    assert_string_equal(c.model_type, "qwen2");
}

static void which_layers_have_experts(void **state)
{
    (void)state;
    st_model_config c = good(v3, "{\"moe_layer_freq\":2}", NULL);
    static const bool deepseek[] = {false, false, false, false, true, false, true};
    for (int i = 0; i < 7; i++)
        assert_int_equal(st_model_layer_is_moe(&c, i), deepseek[i]);
    c = good(qwen3_moe, "{\"decoder_sparse_step\":2,\"mlp_only_layers\":[3,0]}", NULL);
    static const bool qwen[] = {false, true, false, false, false, true, false, true};
    for (int i = 0; i < 8; i++)
        assert_int_equal(st_model_layer_is_moe(&c, i), qwen[i]);
    c = good(qwen2, NULL, NULL);
    assert_false(st_model_layer_is_moe(&c, 5));
}

static void rope_dialects(void **state)
{
    (void)state;
    static const char yarn[] = "{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0,"
                               "\"original_max_position_embeddings\":32768}}";
    st_model_config c = good(qwen3, yarn, NULL);
    assert_true(c.yarn);
    assert_int_equal(c.max_positions, 131072);
    assert_float_equal(c.rope_attention_factor, 0.1 * log(4) + 1, 1e-6);
    assert_float_equal(c.attn_scale, 1 / sqrt(128), 1e-7);
    assert_float_equal(c.yarn_beta_fast, 32, 0);
    c = good(qwen3,
             "{\"rope_theta\":null,\"rope_parameters\":{\"rope_theta\":5000000,"
             "\"rope_type\":\"default\"}}",
             NULL);
    assert_false(c.yarn);
    assert_float_equal(c.rope_theta, 5000000, 0);
    c = good(qwen3,
             "{\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":2,\"attention_factor\":1.5}}",
             NULL);
    assert_float_equal(c.rope_attention_factor, 1.5, 0);
    assert_int_equal(c.yarn_original_positions, 40960);
    assert_false(good(v3, "{\"rope_scaling\":{\"type\":\"default\"}}", NULL).yarn);
    assert_false(good(v3, "{\"rope_interleave\":false}", NULL).rope_interleaved);
}

static void eos_ids_come_from_generation_config_first(void **state)
{
    (void)state;
    st_model_config c = good(qwen2, NULL, "{\"eos_token_id\":[7,9]}");
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_ids[1], 9);
    c = good(qwen2, NULL, "{\"temperature\":0.7}");
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos_ids[0], 151645);
    assert_int_equal(good(v2_lite, NULL, NULL).n_eos, 0);
}

static void w8a8_is_understood(void **state)
{
    (void)state;
    st_model_config c = good(pangu, W8A8, NULL);
    assert_int_equal(c.quant.method, ST_QUANT_W8A8);
    assert_true(c.int8_activations);
}

#define QUANT_OF(members) "{\"quantization_config\":{" members "}}"
#define INT4_GROUP(size, symmetric)                                                                \
    "{\"weights\":{\"num_bits\":4,\"type\":\"int\",\"strategy\":\"group\",\"group_size\":" size    \
    ",\"symmetric\":" symmetric ",\"actorder\":\"group\"},\"input_activations\":null}"

#define FP8_GROUP(scheme)                                                                          \
    "{\"weights\":{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"dynamic\":false," scheme \
    "},\"input_activations\":{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"token\"}}"
#define FP8_BLOCKS(size) FP8_GROUP("\"strategy\":\"block\",\"block_structure\":" size)
#define TRANSFORMED(where)                                                                         \
    "\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{"    \
    "\"g\":" INT4_GROUP(                                                                           \
        "128", "true") "},\"transform_config\":{\"config_groups\":{\"R1\":{\"apply\":["            \
                       "{\"location\":\"weight_output\"},{\"location\":\"" where "\"}]}}}"
#define GPTQ_WITH(member)                                                                          \
    "\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"sym\":true," member

static void other_quantizations_are_understood(void **state)
{
    (void)state;
    static const struct {
        const char *patch;
        st_quant_config quant;
    } rows[] = {
        {QUANT_OF("\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\","
                  "\"weight_block_size\":[128,64]"),
         {.method = ST_QUANT_FP8, .block_rows = 128, .block_inputs = 64}},
        {QUANT("pack-quantized", "{\"g\":" INT4_GROUP("128", "true") "}"),
         {.method = ST_QUANT_PACKED_INT4, .group = 128, .symmetric = true}},
        {QUANT("pack-quantized",
               "{\"g\":" INT4_GROUP("128", "true") ",\"h\":" INT4_GROUP("32", "false") "}"),
         {.method = ST_QUANT_PACKED_INT4, .group = -1, .symmetric = true}},
        {QUANT("pack-quantized", "{\"g\":{\"weights\":{\"num_bits\":4,\"strategy\":\"channel\","
                                 "\"symmetric\":false}," W8A8_ACTIVATIONS "}}"),
         {.method = ST_QUANT_PACKED_INT4}},
        {QUANT_OF("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"sym\":true,"
                  "\"desc_act\":true"),
         {.method = ST_QUANT_GPTQ, .group = 128, .symmetric = true, .zeros_minus_1 = true}},
        {QUANT_OF("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":-1,\"sym\":false,"
                  "\"checkpoint_format\":\"gptq_v2\""),
         {.method = ST_QUANT_GPTQ}},
        {QUANT_OF(GPTQ_WITH("\"dynamic\":{\"-:.*mlp\":{\"bits\":8},\"k\":{\"bits\":4}}")),
         {.method = ST_QUANT_GPTQ, .group = 128, .symmetric = true, .zeros_minus_1 = true}},
        {QUANT_OF(GPTQ_WITH("\"dynamic\":{\"+:k\":{\"group_size\":32,\"sym\":false}}")),
         {.method = ST_QUANT_GPTQ, .group = -1, .zeros_minus_1 = true}},
        {QUANT("float-quantized", "{\"g\":" FP8_BLOCKS("[128,64]") "}"),
         {.method = ST_QUANT_FP8, .block_rows = 128, .block_inputs = 64}},
        {QUANT("float-quantized", "{\"g\":" FP8_GROUP("\"strategy\":\"channel\"") "}"),
         {.method = ST_QUANT_FP8, .block_rows = 1, .block_inputs = INT32_MAX}},
        {QUANT_OF(TRANSFORMED("weight_input")),
         {.method = ST_QUANT_PACKED_INT4, .group = 128, .symmetric = true}},
        {QUANT_OF("\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,\"version\":\"gemm\""),
         {.method = ST_QUANT_AWQ, .group = 64}},
        {QUANT_OF("\"quant_method\":\"awq\",\"w_bit\":4,\"q_group_size\":128"),
         {.method = ST_QUANT_AWQ, .group = 128}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        st_model_config c = good(pangu, rows[i].patch, NULL);
        const st_quant_config *want = &rows[i].quant;
        assert_int_equal(c.quant.method, want->method);
        assert_int_equal(c.quant.block_rows, want->block_rows);
        assert_int_equal(c.quant.block_inputs, want->block_inputs);
        assert_int_equal(c.quant.group, want->group);
        assert_int_equal(c.quant.symmetric, want->symmetric);
        assert_int_equal(c.quant.zeros_minus_1, want->zeros_minus_1);
        assert_int_equal(c.int8_activations, want->method != ST_QUANT_FP8);
    }
}

static const struct {
    const char *base, *patch;
    st_status status;
    const char *text;
} bad[] = {
    /* Family */
    {qwen2, "{\"model_type\":\"gpt2\"}", ST_EUNSUPPORTED,
     "model_type 'gpt2' is not a supported family; supported are pangu_ultra_moe, PanguEmbedded, "
     "deepseek_v2, deepseek_v3, kimi_k2, qwen2, qwen3, qwen3_moe"},
    {qwen2, "{\"model_type\":null}", ST_EFORMAT, "model_type is missing"},
    {qwen2, "{\"model_type\":3}", ST_EFORMAT, "model_type is missing"},
    {qwen2, "{\"model_type\":null,\"architectures\":[\"FooForCausalLM\"]}", ST_EUNSUPPORTED,
     "architectures[0] 'FooForCausalLM'"},
    /* Sizes */
    {qwen2, "{\"vocab_size\":null}", ST_EFORMAT, "vocab_size is missing"},
    {qwen2, "{\"hidden_size\":0}", ST_EFORMAT, "hidden_size is 0; expected a whole number from 1"},
    {qwen2, "{\"hidden_size\":-5}", ST_EFORMAT, "hidden_size is -5"},
    {qwen2, "{\"hidden_size\":896.5}", ST_EFORMAT, "hidden_size is 896.5; expected a whole number"},
    {qwen2, "{\"hidden_size\":\"896\"}", ST_EFORMAT, "hidden_size is \"896\""},
    {qwen2, "{\"hidden_size\":2000000}", ST_EFORMAT, "from 1 to 1048576"},
    {qwen2, "{\"hidden_size\":9223372036854775807}", ST_EFORMAT, "is 9223372036854775807"},
    {qwen2, "{\"num_hidden_layers\":1025}", ST_EFORMAT, "num_hidden_layers is 1025"},
    {qwen2, "{\"intermediate_size\":[]}", ST_EFORMAT, "intermediate_size is []"},
    {qwen2, "{\"num_attention_heads\":0}", ST_EFORMAT, "num_attention_heads is 0"},
    {qwen2, "{\"num_key_value_heads\":0}", ST_EFORMAT, "num_key_value_heads is 0"},
    {qwen2, "{\"num_key_value_heads\":3}", ST_EFORMAT, "14 is not a multiple of num_key_value_hea"},
    {qwen2, "{\"head_dim\":65}", ST_EFORMAT, "head_dim is 65"},
    {qwen2, "{\"hidden_size\":9}", ST_EFORMAT, "head_dim is 0 (hidden_size 9, num_attention_hea"},
    {qwen2, "{\"max_position_embeddings\":0}", ST_EFORMAT, "max_position_embeddings is 0"},
    {qwen2, "{\"rms_norm_eps\":0}", ST_EFORMAT, "rms_norm_eps is 0; expected a number above 0"},
    {qwen2, "{\"rms_norm_eps\":1e-300}", ST_EFORMAT, "rms_norm_eps is 1"},
    {qwen2, "{\"rms_norm_eps\":true}", ST_EFORMAT, "rms_norm_eps is true"},
    {qwen2, "{\"rope_theta\":-1}", ST_EFORMAT, "rope_theta is -1; expected a number above 0"},
    {qwen2, "{\"tie_word_embeddings\":1}", ST_EFORMAT, "tie_word_embeddings is 1; expected true"},
    {qwen2, "{\"bos_token_id\":151936}", ST_EFORMAT, "bos_token_id is 151936; expected a token id"},
    {qwen2, "{\"eos_token_id\":151936}", ST_EFORMAT, "eos_token_id holds 151936"},
    {qwen2, "{\"eos_token_id\":[1,\"x\"]}", ST_EFORMAT, "eos_token_id holds \"x\""},
    {qwen2, "{\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", ST_EUNSUPPORTED, "lists 9 ids; at most 8"},
    {qwen2, "{\"hidden_act\":\"gelu\"}", ST_EUNSUPPORTED, "hidden_act is \"gelu\"; only \"silu\""},
    {qwen2, "{\"use_sliding_window\":true}", ST_EUNSUPPORTED, "use_sliding_window is true"},
    {qwen3, "{\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", ST_EUNSUPPORTED,
     "layer_types[1] is \"sliding_attention\""},
    {qwen3, "{\"mlp_bias\":true}", ST_EUNSUPPORTED, "mlp_bias is true"},
    /* MLA */
    {v3, "{\"kv_lora_rank\":null}", ST_EFORMAT, "kv_lora_rank is missing"},
    {v3, "{\"q_lora_rank\":0}", ST_EFORMAT, "q_lora_rank is 0"},
    {v3, "{\"qk_rope_head_dim\":63}", ST_EFORMAT, "qk_rope_head_dim is 63; rotary embedding needs"},
    {v3, "{\"v_head_dim\":100000}", ST_EFORMAT, "v_head_dim is 100000"},
    {pangu, "{\"attention_v_dim\":\"x\"}", ST_EFORMAT, "attention_v_dim is \"x\""},
    {pangu, "{\"q_lora_rank\":96}", ST_EFORMAT,
     "q_lora_rank and attention_q_lora_dim mean the same but have different values"},
    /* Experts */
    {v3, "{\"n_routed_experts\":null}", ST_EFORMAT, "n_routed_experts is missing"},
    {v3, "{\"n_routed_experts\":100000}", ST_EFORMAT, "n_routed_experts is 100000"},
    {v3, "{\"num_experts_per_tok\":null}", ST_EFORMAT, "num_experts_per_tok is missing"},
    {v3, "{\"num_experts_per_tok\":0}", ST_EFORMAT, "num_experts_per_tok is 0"},
    {v3, "{\"moe_intermediate_size\":null}", ST_EFORMAT, "moe_intermediate_size is missing"},
    {v3, "{\"n_routed_experts\":4,\"n_group\":1,\"topk_group\":1}", ST_EFORMAT,
     "num_experts_per_tok 8 is more than the 4 routed experts"},
    {v3, "{\"n_group\":7}", ST_EFORMAT, "256 routed experts cannot be split into n_group 7"},
    {v3, "{\"topk_group\":9}", ST_EFORMAT, "topk_group 9 is more than n_group 8"},
    {v3, "{\"n_group\":256,\"topk_group\":4}", ST_EFORMAT, "more than the 4 experts of topk_group"},
    {v3, "{\"first_k_dense_replace\":62}", ST_EFORMAT, "first_k_dense_replace 62 is more than the"},
    {v3, "{\"moe_layer_freq\":0}", ST_EFORMAT, "moe_layer_freq is 0"},
    {v3, "{\"scoring_func\":\"tanh\"}", ST_EUNSUPPORTED, "scoring_func is \"tanh\""},
    {v3, "{\"topk_method\":\"best\"}", ST_EUNSUPPORTED, "topk_method is \"best\""},
    {v3, "{\"topk_method\":5}", ST_EUNSUPPORTED, "topk_method is 5"},
    {v3, "{\"routed_scaling_factor\":0}", ST_EFORMAT, "routed_scaling_factor is 0"},
    {qwen3_moe, "{\"mlp_only_layers\":[48]}", ST_EFORMAT, "mlp_only_layers[0] is 48"},
    {qwen3_moe, "{\"mlp_only_layers\":7}", ST_EFORMAT, "mlp_only_layers is 7"},
    {qwen3_moe, "{\"num_experts\":128,\"n_routed_experts\":64}", ST_EFORMAT, "mean the same"},
    /* Rotary embedding */
    {v3, "{\"rope_scaling\":\"yarn\"}", ST_EFORMAT, "rope_scaling is \"yarn\"; expected an object"},
    {v3, "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", ST_EUNSUPPORTED,
     "rope_scaling has type \"linear\"; supported are \"default\" and \"yarn\""},
    {v3, "{\"rope_scaling\":{\"rope_type\":\"llama3\"}}", ST_EUNSUPPORTED, "type \"llama3\""},
    {v3, "{\"rope_scaling\":{\"type\":4}}", ST_EUNSUPPORTED, "has type 4"},
    {v3, "{\"rope_scaling\":{\"type\":\"yarn\"}}", ST_EFORMAT, "rope_scaling.factor is 0 or miss"},
    {v3, "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":0.5}}", ST_EFORMAT, "factor is 0.5"},
    {v3, "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"beta_fast\":-1}}", ST_EFORMAT,
     "rope_scaling.beta_fast is -1"},
    {v3, "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"mscale\":\"a\"}}", ST_EFORMAT,
     "rope_scaling.mscale is \"a\""},
    {v3,
     "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
     "\"original_max_position_embeddings\":4096.5}}",
     ST_EFORMAT, "is 4096.5; expected a whole number"},
    {v3, "{\"rope_theta\":1,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}}", ST_EFORMAT,
     "rope_theta is 1; YaRN needs a number above 1"},
    {v3, "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"truncate\":false}}", ST_EUNSUPPORTED,
     "truncate is false"},
    {qwen3, "{\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1}}}", ST_EUNSUPPORTED,
     "different settings per kind of layer"},
    {qwen3, "{\"rope_parameters\":{\"partial_rotary_factor\":0.5}}", ST_EUNSUPPORTED,
     "partial_rotary_factor is 0.5"},
    /* Quantization */
    {pangu, "{\"quantization_config\":{\"quant_method\":\"fp8\"}}", ST_EUNSUPPORTED,
     "weight_block_size is null; expected rows and an even number of inputs"},
    {pangu, QUANT_OF("\"quant_method\":\"bitsandbytes\""), ST_EUNSUPPORTED,
     "quant_method is \"bitsandbytes\"; expected compressed-tensors (int-quantized W8A8, float-q"},
    {pangu, QUANT_OF("\"quant_method\":\"fp8\",\"fmt\":\"e5m2\""), ST_EUNSUPPORTED,
     "fmt is \"e5m2\"; expected e4m3"},
    {pangu, QUANT_OF("\"quant_method\":\"fp8\",\"weight_block_size\":[128,127]"), ST_EUNSUPPORTED,
     "weight_block_size is [128,127]"},
    {pangu, QUANT_OF("\"quant_method\":\"fp8\",\"weight_block_size\":[0,128]"), ST_EUNSUPPORTED,
     "weight_block_size is [0,128]"},
    {pangu, QUANT_OF("\"quant_method\":\"fp8\",\"weight_block_size\":[128]"), ST_EUNSUPPORTED,
     "weight_block_size is [128]"},
    {pangu, QUANT_OF("\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":128"), ST_EUNSUPPORTED,
     "bits is 8; expected 4"},
    {pangu, QUANT_OF("\"quant_method\":\"gptq\",\"bits\":4"), ST_EUNSUPPORTED,
     "group_size is null; expected a multiple of 32, or -1"},
    {pangu, QUANT_OF("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":48"), ST_EUNSUPPORTED,
     "group_size is 48; expected a multiple of 32, or -1"},
    {pangu, QUANT_OF("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":0"), ST_EUNSUPPORTED,
     "group_size is 0"},
    {pangu, QUANT_OF("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":4294967296"),
     ST_EUNSUPPORTED, "group_size is 4294967296"},
    {pangu,
     QUANT_OF("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,"
              "\"checkpoint_format\":\"marlin\""),
     ST_EUNSUPPORTED, "checkpoint_format is \"marlin\"; expected gptq or gptq_v2"},
    {pangu,
     QUANT_OF("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,"
              "\"is_marlin_format\":true"),
     ST_EUNSUPPORTED, "is_marlin_format is true"},
    {pangu, QUANT_OF("\"quant_method\":\"awq\",\"bits\":3,\"group_size\":128"), ST_EUNSUPPORTED,
     "bits is 3; expected 4"},
    {pangu, QUANT_OF("\"quant_method\":\"awq\",\"bits\":4,\"group_size\":128,\"version\":\"gemv\""),
     ST_EUNSUPPORTED, "version is \"gemv\"; expected gemm"},
    {pangu, QUANT_OF("\"quant_method\":\"awq\",\"bits\":4,\"group_size\":128.0"), ST_EUNSUPPORTED,
     "group_size is 128.0"},
    {pangu, "{\"quantization_config\":{}}", ST_EUNSUPPORTED, "quant_method is null"},
    {pangu, "{\"quantization_config\":7}", ST_EUNSUPPORTED, "quant_method is null"},
    {pangu, QUANT("pack-quantized", "{}"), ST_EUNSUPPORTED, "config_groups is {}"},
    {pangu, QUANT("mixed-precision", "{}"), ST_EUNSUPPORTED,
     "format is \"mixed-precision\"; expected int-quantized, float-quantized or pack-quantized"},
    {pangu, QUANT("float-quantized", "{\"g\":" FP8_GROUP("\"strategy\":\"tensor\"") "}"),
     ST_EUNSUPPORTED, "weights.strategy is \"tensor\"; expected block or channel"},
    {pangu, QUANT("float-quantized", "{\"g\":" FP8_BLOCKS("\"128x128\"") "}"), ST_EUNSUPPORTED,
     "weights.block_structure is \"128x128\"; expected rows and an even number of inputs"},
    {pangu,
     QUANT("float-quantized", "{\"g\":" FP8_BLOCKS("[128,64]") ",\"h\":" FP8_BLOCKS("[64,64]") "}"),
     ST_EUNSUPPORTED, "weights.block_structure is [64,64]; expected the same for every group"},
    {pangu,
     QUANT("float-quantized", "{\"g\":{\"weights\":{\"num_bits\":8,\"strategy\":\"channel\"}}}"),
     ST_EUNSUPPORTED, "weights.type is null; expected float"},
    {pangu, QUANT_OF(TRANSFORMED("input")), ST_EUNSUPPORTED,
     "transform_config: location is \"input\"; expected weight_input or weight_output"},
    {pangu, QUANT_OF(GPTQ_WITH("\"dynamic\":{\"+:.*down\":{\"bits\":8}}")), ST_EUNSUPPORTED,
     "dynamic: \"+:.*down\": bits is 8; expected 4"},
    {pangu, QUANT_OF(GPTQ_WITH("\"rotation\":\"hadamard\"")), ST_EUNSUPPORTED,
     "rotation is \"hadamard\"; expected none"},
    {pangu, QUANT_OF(GPTQ_WITH("\"format\":\"gptq_p\"")), ST_EUNSUPPORTED,
     "format is \"gptq_p\"; expected gptq or gptq_v2"},
    {pangu, QUANT("pack-quantized", "{\"g\":{" W8A8_WEIGHTS "}}"), ST_EUNSUPPORTED,
     "weights.num_bits is 8; expected 4"},
    {pangu, QUANT("pack-quantized", "{\"g\":" INT4_GROUP("100", "true") "}"), ST_EUNSUPPORTED,
     "weights.group_size is 100"},
    {pangu, QUANT("pack-quantized", "{\"g\":" INT4_GROUP("128", "1") "}"), ST_EUNSUPPORTED,
     "weights.symmetric is 1; expected true or false"},
    {pangu,
     QUANT("pack-quantized", "{\"g\":{\"weights\":{\"num_bits\":4,\"strategy\":\"block\"}}}"),
     ST_EUNSUPPORTED, "weights.strategy is \"block\"; expected group or channel"},
    {pangu, QUANT("pack-quantized", "{\"g\":{\"format\":\"int-quantized\"}}"), ST_EUNSUPPORTED,
     "format is \"int-quantized\"; expected pack-quantized"},
    {pangu, QUANT("int-quantized", "{}"), ST_EUNSUPPORTED, "config_groups is {}"},
    {pangu, QUANT("int-quantized", "{\"g\":{" W8A8_WEIGHTS "}}"), ST_EUNSUPPORTED,
     "input_activations is null"},
    {pangu,
     QUANT("int-quantized", "{\"g\":{\"weights\":{\"num_bits\":4,\"type\":\"int\","
                            "\"strategy\":\"channel\"}," W8A8_ACTIVATIONS "}}"),
     ST_EUNSUPPORTED, "weights.num_bits is 4"},
    {pangu,
     QUANT("int-quantized", "{\"g\":{\"weights\":{\"num_bits\":8,\"type\":\"float\","
                            "\"strategy\":\"channel\"}," W8A8_ACTIVATIONS "}}"),
     ST_EUNSUPPORTED, "weights.type is \"float\""},
    {pangu,
     QUANT("int-quantized", "{\"g\":{\"weights\":{\"num_bits\":8,\"strategy\":\"group\"},"
                            "\"x\":1," W8A8_ACTIVATIONS "}}"),
     ST_EUNSUPPORTED, "weights.strategy is \"group\""},
    {pangu,
     QUANT("int-quantized", "{\"g\":{\"weights\":{\"num_bits\":8,\"strategy\":\"channel\","
                            "\"symmetric\":false}," W8A8_ACTIVATIONS "}}"),
     ST_EUNSUPPORTED, "weights.symmetric is false"},
    {pangu,
     QUANT("int-quantized", "{\"g\":{" W8A8_WEIGHTS ",\"input_activations\":{\"num_bits\":8,"
                            "\"strategy\":\"token\",\"dynamic\":false}}}"),
     ST_EUNSUPPORTED, "input_activations.dynamic is false"},
    {pangu,
     QUANT("int-quantized", "{\"g\":{" W8A8_WEIGHTS "," W8A8_ACTIVATIONS
                            ",\"output_activations\":{\"num_bits\":8}}}"),
     ST_EUNSUPPORTED, "output_activations is {\"num_bits\":8}"},
};

static void impossible_configurations_are_refused_by_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        st_model_config c;
        st_error err;
        st_status status = parse(bad[i].base, bad[i].patch, NULL, &c, &err);
        if (status != bad[i].status || !strstr(err.text, bad[i].text) ||
            strncmp(err.text, "config.json: ", 13) != 0)
            fail_msg("row %zu %s: status %d, text '%s', expected %d '%s'", i, bad[i].patch, status,
                     err.text, bad[i].status, bad[i].text);
    }
}

static void broken_json_is_refused_with_its_place(void **state)
{
    (void)state;
    static const struct {
        const char *config, *generation, *text;
    } rows[] = {
        {"", NULL, "config.json: broken JSON in line 1"},
        {"{\n\"a\":1,\n}", NULL, "config.json: broken JSON in line 3"},
        {"{\"a\":1,\"a\":2}", NULL, "duplicate object key"},
        {"[]", NULL, "config.json: expected a JSON object"},
        {"{}", NULL, "config.json: model_type is missing"},
        {qwen2, "{", "generation_config.json: broken JSON"},
        {qwen2, "3", "generation_config.json: "},
        {qwen2, "{\"eos_token_id\":-1}", "generation_config.json: eos_token_id holds -1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        st_model_config c;
        st_error err = {0};
        st_status s =
            st_model_config_parse(rows[i].config, strlen(rows[i].config), rows[i].generation,
                                  rows[i].generation ? strlen(rows[i].generation) : 0, &c, &err);
        assert_int_equal(s, ST_EFORMAT);
        if (!strstr(err.text, rows[i].text))
            fail_msg("row %zu: '%s', expected '%s'", i, err.text, rows[i].text);
    }
}

static void every_truncation_is_an_error(void **state)
{
    (void)state;
    for (size_t n = 0; n + 1 < sizeof v3; n++) {
        char *exact = malloc(n ? n : 1);
        assert_non_null(exact);
        memcpy(exact, v3, n);
        st_model_config c;
        st_error err = {0};
        assert_int_equal(st_model_config_parse(exact, n, NULL, 0, &c, &err), ST_EFORMAT);
        free(exact);
    }
}

/* Values of any length are quoted in part, at a character's boundary. */
static void long_values_are_cut_in_messages(void **state)
{
    (void)state;
    char patch[4000] = "{\"hidden_size\":\"";
    size_t at = strlen(patch);
    for (int i = 0; i < 1000; i++, at += 3)
        memcpy(patch + at, "\xE4\xBD\xA0", 3);
    strcpy(patch + at, "\"}");
    st_model_config c;
    st_error err;
    assert_int_equal(parse(qwen2, patch, NULL, &c, &err), ST_EFORMAT);
    const char *dots = strstr(err.text, "...; expected a whole number");
    assert_non_null(dots);
    assert_memory_equal(dots - 3, "\xE4\xBD\xA0", 3);
}

static void expanded_until_depends_on_the_prompt_alone(void **state)
{
    (void)state;
    st_model_config c = {.attn = ST_ATTN_MLA,
                         .kv_lora_rank = 512,
                         .qk_nope_head_dim = 128,
                         .qk_rope_head_dim = 64,
                         .v_head_dim = 128};
    static const int32_t cases[][2] = {
        {-1, 0},      {0, 0},       {1, 0},       {16, 0},        {17, 16},     {255, 240},
        {256, 240},   {257, 256},   {511, 496},   {512, 496},     {513, 512},   {1023, 1008},
        {1024, 992},  {1025, 1024}, {1057, 1056}, {2048, 1984},   {4096, 3968}, {4097, 4096},
        {8191, 8064}, {8192, 7936}, {8193, 8192}, {100000, 99840}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(st_model_expanded_until(&c, cases[i][0]), cases[i][1]);
    assert_int_equal(st_model_expanded_until(&c, INT32_MAX), INT32_MAX / 256 * 256);
    for (int32_t n = 1; n < 20000; n++) {
        int32_t until = st_model_expanded_until(&c, n);
        assert_true(until % 16 == 0 && until < n && n - until <= 256);
    }
    static const int32_t integers[][2] = {{1, 0},     {17, 16},     {63, 48},    {64, 63},
                                          {512, 511}, {1023, 1022}, {1024, 992}, {8192, 7936}};
    c.integer_kv_b = true;
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        assert_int_equal(st_model_expanded_until(&c, integers[i][0]), integers[i][1]);
    c.kv_lora_rank = 128; /* an expanded pair would cost as much */
    assert_int_equal(st_model_expanded_until(&c, 512), 0);
    c.attn = ST_ATTN_GQA;
    assert_int_equal(st_model_expanded_until(&c, 512), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pangu_in_both_dialects),
        cmocka_unit_test(deepseek_numbers),
        cmocka_unit_test(qwen_numbers),
        cmocka_unit_test(absent_keys_have_the_published_defaults),
        cmocka_unit_test(which_layers_have_experts),
        cmocka_unit_test(rope_dialects),
        cmocka_unit_test(eos_ids_come_from_generation_config_first),
        cmocka_unit_test(w8a8_is_understood),
        cmocka_unit_test(other_quantizations_are_understood),
        cmocka_unit_test(impossible_configurations_are_refused_by_name),
        cmocka_unit_test(broken_json_is_refused_with_its_place),
        cmocka_unit_test(every_truncation_is_an_error),
        cmocka_unit_test(long_values_are_cut_in_messages),
        cmocka_unit_test(expanded_until_depends_on_the_prompt_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
