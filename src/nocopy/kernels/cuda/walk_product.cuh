// How a warp of walk.cu multiplies pieces of two rows of a weight with its elements of x, which lanes hold in
// registers, and how lanes' sums become one.
#pragma once

#include "walk_stage.cuh"

#if __CUDA_ARCH__ >= 900

// A lane's share of the product of one row of a weight with x, whose elements are held as `hold` leaves them.
template <typename B, typename = void>
struct Dot {
    float sum = 0.0f;

    static __device__ __forceinline__ void hold(Words4*) {}

    // Adds one step: a lane's piece of the row, and its quads of x.
    __device__ __forceinline__ void add(const uint8_t* a, const Words4* x) {
        float w[4 * B::QUADS];
        B::decode(B::fetch(a, threadIdx.x % B::LANES), w);
#pragma unroll
        for (int e = 0; e < 4 * B::QUADS; ++e) sum = fmaf(__uint_as_float(x[e / 4].v[e % 4]), w[e], sum);
    }

    __device__ __forceinline__ float total() const { return sum; }
};

// Of weights in bf16, lanes' elements as they are needed in a matrix, whose rows are what eight teams of four
// lanes have, first what bf16 holds of it, then what is left: so 16 bits of x count. A weight's row is eight
// columns, of which each meets its own team's row on the diagonal.
template <>
struct Dot<Bf16Words> {
    float d[4] = {};

    static __device__ __forceinline__ void hold(Words4* x) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                const float low = __uint_as_float(x[i].v[j]), high = __uint_as_float(x[i].v[j + 1]);
                const uint32_t pair = pack_pair<true>(low, high);
                x[i].v[j] = pair;
                x[i].v[j + 1] = pack_pair<true>(low - __uint_as_float(pair << 16),
                                                high - __uint_as_float(pair & 0xffff0000));
            }
    }

    __device__ __forceinline__ void add(const uint8_t* a, const Words4* x) {
        const Words4 words = read_as<Words4>(a);
        multiply_fragments<true>(d, x[0].v, words.v[0], words.v[1]);
        multiply_fragments<true>(d, x[1].v, words.v[2], words.v[3]);
    }

    // This lane's element of the diagonal, if it has one.
    __device__ __forceinline__ float total() const {
        return on_diagonal() ? odd_team() ? d[1] + d[3] : d[0] + d[2] : 0.0f;
    }
};

// Of weights in blocks (walk_blocks.cuh).
template <typename B>
struct Dot<B, decltype((void)B::SCALES)> {
    float sum = 0.0f;

    static __device__ __forceinline__ void hold(Words4* x) { make_whole<B>(x); }

    __device__ __forceinline__ void add(const uint8_t* a, const Words4* x) {
        const Numbers numbers = B::fetch(a, threadIdx.x % B::LANES);
        const float each = __uint_as_float(x[1].v[0]);
        if constexpr (B::SCALES == Scales::TWO) {
            sum = fmaf(dot(x, numbers.quads[0], 0), numbers.scale * each, sum);
            sum = fmaf(dot(x, 0, numbers.quads[1]), numbers.other * each, sum);
        } else {
            sum = fmaf(dot(x, numbers.quads[0], numbers.quads[1]), numbers.scale * each, sum);
        }
        if constexpr (B::SCALES == Scales::AFFINE)
            sum = fmaf(-numbers.other, __uint_as_float(x[1].v[1]), sum);
    }

    static __device__ __forceinline__ float dot(const Words4* x, uint32_t first, uint32_t second) {
        int32_t d[4];
        multiply_whole(d, x[0].v, first, second);
        return (float)(odd_team() ? 256 * d[1] + d[3] : 256 * d[0] + d[2]);
    }

    __device__ __forceinline__ float total() const { return on_diagonal() ? sum : 0.0f; }
};

// The sums of a piece over all lanes: sixteen lanes add up one sum.
__device__ __forceinline__ void add_up(const Sums (&sums)[1], Sums* to, bool) {
    const uint32_t lane = threadIdx.x % 32;
    const bool high = lane & 16;
    const float a = sums[0].a, b = sums[0].b;
    float sum = (high ? b : a) + __shfl_xor_sync(~0u, high ? a : b, 16);
    for (int mask = 8; mask; mask >>= 1) sum += __shfl_xor_sync(~0u, sum, mask);
    if (lane % 16 == 0) (high ? to->b : to->a) = sum;
}

// The same of two pieces, if there is a second one: eight lanes add up one sum.
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
