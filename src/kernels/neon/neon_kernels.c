/* The NEON tables: the templates of src/kernels/simd with 8 lanes in two registers. */
#include "kernels/neon/neon.h"

#include <math.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "kernels/kv_rows.h"
#include "kernels/neon/vec_neon.h"
#include "kernels/simd/simd_macros.h"
#include "kernels/simd/simd_math.inc"

#include "kernels/simd/simd_kv_i8.inc"

#include "kernels/simd/simd_attention.inc"
#include "kernels/simd/simd_attention_dense.inc"
#include "kernels/simd/simd_peak.inc"
#include "kernels/simd/simd_vector.inc"

#include "kernels/simd/simd_norm.inc"

#define NEON_TABLE(isa)                                                                            \
    {                                                                                              \
        .name = #isa, .pack_cols = ST_NEON_PACK_COLS,                                              \
        .pack_block_bytes = st_##isa##_pack_block_bytes, .pack_block = st_##isa##_pack_block,      \
        .matmul = st_##isa##_matmul, .matmul_float = st_neon_matmul_float,                         \
        .quantize = st_simd_quantize, .rmsnorm = st_simd_rmsnorm,                                  \
        .residual_norm = st_simd_residual_norm, .rope_interleaved = st_simd_rope_interleaved,      \
        .rope_half = st_simd_rope_half, .silu_mul = st_simd_silu_mul, .add = st_simd_add,          \
        .add_scaled = st_simd_add_scaled, .softmax = st_simd_softmax, .to_bf16 = st_simd_to_bf16,  \
        .to_f32 = st_simd_to_f32, .kv_to_i8 = st_simd_kv_to_i8, .kv_from_i8 = st_simd_kv_from_i8,  \
        .attention_mla = st_simd_attention_mla, .attention_gqa = st_simd_attention_gqa,            \
        .attn_scratch = st_simd_attn_scratch, .attention_part = st_simd_attention_part,            \
        .attention_merge = st_simd_attention_merge, .dense = &st_simd_dense,                       \
        .peak_float = st_simd_peak_float, .peak_i8 = st_##isa##_peak_i8,                           \
        .peak_read = st_simd_peak_read,                                                            \
    }

const st_kernels st_kernels_neon = NEON_TABLE(neon);
const st_kernels st_kernels_neondot = NEON_TABLE(neondot);
