/* The reference table. */
#include "kernels/ref/ref.h"

const st_kernels st_kernels_ref = {
    .name = "ref",
    .pack_cols = ST_REF_PACK_COLS,
    .pack_block_bytes = st_ref_pack_block_bytes,
    .pack_block = st_ref_pack_block,
    .matmul = st_ref_matmul,
    .matmul_float = st_ref_matmul_float,
    .quantize = st_ref_quantize,
    .rmsnorm = st_ref_rmsnorm,
    .residual_norm = st_ref_residual_norm,
    .rope_interleaved = st_ref_rope_interleaved,
    .rope_half = st_ref_rope_half,
    .silu_mul = st_ref_silu_mul,
    .add = st_ref_add,
    .add_scaled = st_ref_add_scaled,
    .softmax = st_ref_softmax,
    .to_bf16 = st_ref_to_bf16,
    .to_f32 = st_ref_to_f32,
    .kv_to_i8 = st_ref_kv_to_i8,
    .kv_from_i8 = st_ref_kv_from_i8,
    .attention_mla = st_ref_attention_mla,
    .attention_gqa = st_ref_attention_gqa,
    .attn_scratch = st_ref_attn_scratch,
    .dense = &st_ref_dense,
};
