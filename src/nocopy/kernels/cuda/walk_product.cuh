// How a warp of walk.cu multiplies pieces of two rows of a weight with its elements of x, which lanes hold in
// registers, and how lanes' sums become one.
#pragma once

#include "mma.cuh"
#include "walk_stage.cuh"

#if __CUDA_ARCH__ >= 900

// Weights that are multiplied as matrices.
template <typename B>
constexpr bool BY_MATRIX = false;
template <>
constexpr bool BY_MATRIX<Bf16Words> = true;

// Of a product with weights in bf16, lanes' elements as they are needed in a matrix, whose rows are what
// eight teams of four lanes have, first what bf16 holds of it, then what is left: so 16 bits of x count.
// A weight's row is eight columns, of which each meets its own team's row on the diagonal.
template <int HELD>
__device__ __forceinline__ void split(Words4 (&x)[HELD]) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const Words4 all = x[i];
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            const float low = __uint_as_float(all.v[j]), high = __uint_as_float(all.v[j + 1]);
            const uint32_t pair = pack_pair<true>(low, high);
            x[i].v[j] = pair;
            x[i].v[j + 1] =
                pack_pair<true>(low - __uint_as_float(pair << 16), high - __uint_as_float(pair & 0xffff0000));
        }
    }
}

__device__ __forceinline__ void multiply_words(float (&d)[4], const uint8_t* a, const Words4* x) {
    const Words4 words = read_as<Words4>(a);
    multiply_fragments<true>(d, x[0].v, words.v[0], words.v[1]);
    multiply_fragments<true>(d, x[1].v, words.v[2], words.v[3]);
}

// This lane's element of the diagonal, if it has one.
__device__ __forceinline__ float own_sum(const float (&d)[4]) {
    const uint32_t lane = threadIdx.x % 32;
    const float sum = lane & 4 ? d[1] + d[3] : d[0] + d[2];
    return lane % 4 == lane / 8 ? sum : 0.0f;
}

// Adds this lane's share of one step of both rows.
template <typename B>
__device__ __forceinline__ void multiply_into(Sums& sums, const uint8_t* a, uint32_t bytes, const Words4* x) {
    float wa[4 * B::QUADS], wb[4 * B::QUADS];
    B::decode(B::fetch(a, threadIdx.x % B::LANES), wa);
    B::decode(B::fetch(a + bytes, threadIdx.x % B::LANES), wb);
#pragma unroll
    for (int e = 0; e < 4 * B::QUADS; ++e) {
        const float v = __uint_as_float(x[e / 4].v[e % 4]);
        sums.a = fmaf(v, wa[e], sums.a);
        sums.b = fmaf(v, wb[e], sums.b);
    }
}

// The sums of two pieces over all lanes, of the second if there is one: eight lanes add up one sum.
__device__ __forceinline__ void add_up(const Sums (&sums)[2], Sums* to, bool both) {
    const uint32_t lane = threadIdx.x % 32;
    const bool high = lane & 16, odd = lane & 8;
    const float a = (high ? sums[1].a : sums[0].a) + __shfl_xor_sync(~0u, high ? sums[0].a : sums[1].a, 16);
    const float b = (high ? sums[1].b : sums[0].b) + __shfl_xor_sync(~0u, high ? sums[0].b : sums[1].b, 16);
    float sum = (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, 8);
    for (int mask = 4; mask; mask >>= 1) sum += __shfl_xor_sync(~0u, sum, mask);
    if (lane % 8 || (high && !both)) return;
    Sums& place = to[high ? WALK_WARPS : 0];
    (odd ? place.b : place.a) = sum;
}

#endif
