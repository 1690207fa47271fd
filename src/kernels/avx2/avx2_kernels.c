/* The AVX2 table: the templates of src/kernels/simd with 8 lanes. */
#include "kernels/avx2/avx2.h"

#include <math.h>
#include <string.h>

#include "kernels/avx2/vec_avx2.h"
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

const st_kernels st_kernels_avx2 = {
    .name = "avx2",
    .pack_cols = ST_AVX2_PACK_COLS,
    .pack_block_bytes = st_avx2_pack_block_bytes,
    .pack_block = st_avx2_pack_block,
    .matmul = st_avx2_matmul,
    .matmul_float = st_avx2_matmul_float,
    .quantize = st_simd_quantize,
    .rmsnorm = st_simd_rmsnorm,
    .residual_norm = st_simd_residual_norm,
    .rope_interleaved = st_simd_rope_interleaved,
    .rope_half = st_simd_rope_half,
    .silu_mul = st_simd_silu_mul,
    .add = st_simd_add,
    .add_scaled = st_simd_add_scaled,
    .softmax = st_simd_softmax,
    .to_bf16 = st_simd_to_bf16,
    .to_f32 = st_simd_to_f32,
    .kv_to_i8 = st_simd_kv_to_i8,
    .kv_from_i8 = st_simd_kv_from_i8,
    .attention_mla = st_simd_attention_mla,
    .attention_gqa = st_simd_attention_gqa,
    .attn_scratch = st_simd_attn_scratch,
    .attention_part = st_simd_attention_part,
    .attention_merge = st_simd_attention_merge,
    .dense = &st_simd_dense,
    .peak_float = st_simd_peak_float,
    .peak_i8 = st_avx2_peak_i8,
    .peak_read = st_simd_peak_read,
};
