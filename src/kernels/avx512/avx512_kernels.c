/* The AVX-512 tables: the templates of src/kernels/simd with 16 lanes. */
#include "kernels/avx512/avx512.h"

#include <math.h>
#include <string.h>

#include "kernels/avx2/avx2.h"
#include "kernels/avx512/vec_avx512.h"
#include "kernels/float_bits.h"
#include "kernels/kv_rows.h"
#include "kernels/simd/simd_macros.h"
#include "kernels/simd/simd_math.inc"

#include "kernels/simd/simd_kv_i8.inc"

#include "kernels/simd/simd_attention.inc"
#include "kernels/simd/simd_attention_dense.inc"
#include "kernels/simd/simd_peak.inc"
#include "kernels/simd/simd_vector.inc"

#include "kernels/simd/simd_norm.inc"

/* With VNNI: MLA over I8 rows by integer products, where rows fill lanes. */
static void avx512vnni_attention_mla(float *out, const float *q, const st_attn_shape *shape,
                                     const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1,
                                     int h0, int h1, void *scratch)
{
    bool i8 = kv->dtype == ST_I8 && st_avx512vnni_attention_i8_takes(shape);
    (i8 ? st_avx512vnni_attention_i8 : st_simd_attention_mla)(out, q, shape, kv, seq, q0, q1, h0,
                                                              h1, scratch);
}

/* GQA over I8 rows by integer products. */
static bool avx512vnni_gqa_i8(const st_attn_shape *shape, const st_kv_layer *kv)
{
    return kv->dtype == ST_I8 && shape->k_dim % 16 == 0;
}

static void avx512vnni_attention_gqa(float *out, const float *q, const st_attn_shape *shape,
                                     const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1,
                                     int h0, int h1, void *scratch)
{
    at_attend_gqa(avx512vnni_gqa_i8(shape, kv), out, q, shape, kv, seq, q0, q1, h0, h1, scratch);
}

static void avx512vnni_attention_part(float *part, bool mla, const float *q,
                                      const st_attn_shape *shape, const st_kv_layer *kv,
                                      const st_attn_seq *seq, int q0, int q1, int h0, int h1,
                                      int segment, int n_segments, void *scratch)
{
    at_job j = {mla,     !mla && avx512vnni_gqa_i8(shape, kv),
                q,       shape,
                kv,      seq,
                q0,      h0,
                h1 - h0, (q1 - q0) * (h1 - h0),
                scratch};
    if (mla && kv->dtype == ST_I8 && st_avx512vnni_attention_i8_takes(shape))
        st_avx512vnni_attention_i8_part(part, q, shape, kv, seq, q0, q1, h0, h1, segment,
                                        n_segments, scratch);
    else
        at_parts(&j, part, segment, n_segments);
}

static size_t avx512vnni_attn_scratch(const st_attn_shape *shape)
{
    size_t any = st_simd_attn_scratch(shape);
    if (shape->k_dim == shape->v_dim && shape->k_dim % 16 == 0) /* GQA, maybe */
        any += st_avx512vnni_gqa_i8_bytes(shape->k_dim);
    if (shape->k_dim < shape->v_dim || !st_avx512vnni_attention_i8_takes(shape))
        return any;
    size_t i8 = st_avx512vnni_attention_i8_scratch(shape);
    return i8 > any ? i8 : any;
}

#define avx512_attention_mla  st_simd_attention_mla
#define avx512_attention_part st_simd_attention_part
#define avx512_attention_gqa  st_simd_attention_gqa
#define avx512_attn_scratch   st_simd_attn_scratch
#define avx512_dense_int      NULL
#define avx512vnni_dense_int  &st_avx512vnni_dense

#define AVX512_TABLE(isa)                                                                          \
    {                                                                                              \
        .name = #isa, .pack_cols = ST_AVX512_PACK_COLS,                                            \
        .pack_block_bytes = st_##isa##_pack_block_bytes, .pack_block = st_##isa##_pack_block,      \
        .matmul = st_##isa##_matmul, .matmul_float = st_##isa##_matmul_float,                      \
        .quantize = st_simd_quantize, .rmsnorm = st_simd_rmsnorm,                                  \
        .residual_norm = st_simd_residual_norm, .rope_interleaved = st_simd_rope_interleaved,      \
        .rope_half = st_simd_rope_half, .silu_mul = st_simd_silu_mul, .add = st_simd_add,          \
        .add_scaled = st_simd_add_scaled, .softmax = st_simd_softmax, .to_bf16 = st_simd_to_bf16,  \
        .to_f32 = st_simd_to_f32, .attention_mla = isa##_attention_mla,                            \
        .kv_to_i8 = st_simd_kv_to_i8, .kv_from_i8 = st_simd_kv_from_i8,                            \
        .attention_gqa = isa##_attention_gqa, .attn_scratch = isa##_attn_scratch,                  \
        .attention_part = isa##_attention_part, .attention_merge = st_simd_attention_merge,        \
        .peak_float = st_simd_peak_float, .dense = &st_simd_dense, .dense_int = isa##_dense_int,   \
        .peak_i8 = st_##isa##_peak_i8, .peak_read = st_simd_peak_read,                             \
    }

const st_kernels st_kernels_avx512 = AVX512_TABLE(avx512);
const st_kernels st_kernels_avx512vnni = AVX512_TABLE(avx512vnni);
