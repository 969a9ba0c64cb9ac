// One warp's matrix instructions, and the copies that feed them (sm_80 and newer).
//
// Fragments are those of mma.m16n8k16: with g = lane / 4 and q = 2 * (lane % 4), a lane holds of
//   a[16,16]: the pairs (g, q), (g + 8, q), (g, q + 8), (g + 8, q + 8);
//   b[16,8]:  the pairs (q, g), (q + 8, g), of elements q and q + 1 along the sum;
//   d[16,8]:  (g, q), (g, q + 1), (g + 8, q), (g + 8, q + 1).
// Operands are f16 or bf16 in shared memory, in rows of 16-byte words whose order `swizzled` turns, so that
// eight rows of one column lie in different banks.
#pragma once

#include "stream.cuh"

// Byte of word `word` of row `row`, in rows of ROW_BYTES (64, or a multiple of 128).
template <int ROW_BYTES>
__device__ inline uint32_t swizzled(uint32_t row, uint32_t word) {
    uint32_t turned = ROW_BYTES == 64 ? word ^ (row / 2 % 4) : word ^ (row % 8);
    return row * ROW_BYTES + turned * 16;
}

// d += a b, summed in f32.
template <bool BF16>
__device__ inline void multiply_fragments(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if (BF16)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
            "%9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The upper 19 bits of a value, which a TF32 matrix reads; the rest fits another one but for 2^-21 of it.
__device__ inline float tf32_part(float value) {
    return __uint_as_float(__float_as_uint(value) & 0xffffe000);
}

// d += a b for TF32, summed in f32. With g = lane / 4 and q = lane % 4, a lane holds of a[16,8] the elements
// (g, q), (g + 8, q), (g, q + 4), (g + 8, q + 4); of b[8,8] (q, g) and (q + 4, g); of d as above.
__device__ inline void multiply_tf32(float (&d)[4], float a0, float a1, float a2, float a3, float b0,
                                     float b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)),
          "r"(__float_as_uint(a3)), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// d += a b for whole numbers of 8 bits. With g = lane / 4 and q = 4 * (lane % 4), a lane holds, four along
// the sum in a word, of a[16,32] the elements (g, q), (g + 8, q), (g, q + 16), (g + 8, q + 16); of b[32,8]
// (q, g) and (q + 16, g); of d as above.
__device__ inline void multiply_whole(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices: lane i names row i % 8 of matrix i / 8, and gets the pair (i / 4, 2 * (i % 4)) of
// each.
__device__ inline void load_matrices(uint32_t (&r)[4], const uint8_t* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each transposed.
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const uint8_t* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Begins the copy of 16 bytes to shared memory; of zeros if there is nothing to read.
__device__ inline void copy_word(uint8_t* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

// Ends a group of copies of this thread.
__device__ inline void end_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for this thread's groups but the last `LEFT`.
template <int LEFT>
__device__ inline void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Two values as a pair, the first in the lower half; to nearest even.
template <bool BF16>
__device__ inline uint32_t pack_pair(float low, float high) {
    uint32_t pair;
    if (BF16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// The sums of two pairs of bf16, each rounded to nearest even.
__device__ inline uint32_t add_pairs(uint32_t a, uint32_t b) {
    uint32_t sums;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sums) : "r"(a), "r"(0x3f803f80), "r"(b));
    return sums;
}

// 2^x with a relative error of 2^-22; 0 for results below 2^-126.
__device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// a / b with a relative error of 2^-22; 0 for a b beyond 2^126.
__device__ inline float fast_divide(float a, float b) {
    float y;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// x / (1 + e^-x), to as much.
__device__ inline float fast_silu(float x) {
    return fast_divide(x, 1.0f + fast_exp2(-1.44269504f * x));
}

// 1 / sqrt(x) with a relative error of 2^-22.
__device__ inline float fast_root(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger one, or NaN if there is one: nan_max in one instruction, where zeros' signs do not matter.
__device__ inline float max_or_nan(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// tanh with an error of 2^-21.
__device__ inline float fast_tanh(float x) {
    return 1.0f - fast_divide(2.0f, fast_exp2(2.88539008f * x) + 1.0f);
}
