// How a warp of walk.cu multiplies its part of a tile, some rows of weights, with its elements of x.
//
// Warps share the elements of rows out: of each step of 2,048 elements a warp has an eighth, in units. Sums
// come from matrices: in one are weights as they lie there, in the other what lanes hold of x, in two parts
// that count 16 bits together.
#pragma once

#include "walk_stage.cuh"

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ uint32_t own_warp() {
    return threadIdx.x / 32;
}
__device__ __forceinline__ uint32_t own_team() {
    return threadIdx.x % 32 / 4;
}
__device__ __forceinline__ uint32_t own_place() {
    return threadIdx.x % 4;
}
// Which of a unit's runs this lane holds of x, and whether it holds what is left of its upper part.
__device__ __forceinline__ uint32_t own_run() {
    return threadIdx.x % 32 / 8;
}
__device__ __forceinline__ bool has_rest() {
    return threadIdx.x & 4;
}

// The largest number that stands for an element of x: its upper byte, the lower one rounded, fits a sign.
constexpr float MOST_WHOLE = 127 * 256;

// Of weights in blocks (walk_blocks.cuh). A tile is eight pairs of rows; of a pair, team g of four lanes has
// row g of the matrix and row g + 8. A lane holds its part of x as the other matrix's column g needs it:
// columns 2 r and 2 r + 1 are the parts of run r of a unit. Of the sums, lane t of a team has those of run t.
template <typename B, int STEPS>
struct Dot {
    static constexpr uint32_t UNIT = 128, QUADS = 2, GAP = 16, PAIRS = TILE_PAIRS_OF_BLOCKS;
    static constexpr int UNITS_OF_A_STEP = 2, UNITS_OF_A_SLOT = 2;
    static constexpr int LANES = 2;  // that have the same elements of x
    static constexpr bool SCALED = false;

    // Of x: this lane's bytes; and, for the run whose sums the lane has, what a number is worth, and the sum.
    struct Held {
        uint32_t first, second;
        float each, sum;
    };

    Sums sums = {};
    const uint32_t mask;  // 0xf0f0f0f0

    __device__ __forceinline__ Dot(uint32_t m) : mask(m) {}

    // Of a unit of x, a lane's first quad.
    static __device__ __forceinline__ uint32_t element() { return 32 * own_run() + 4 * own_place(); }

    // Whole numbers of a run, of which nothing is above 2^-100 counts as none.
    static __device__ __forceinline__ Held hold(const Words4* x, float) {
        float most = 0.0f, v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            v[i] = __uint_as_float(x[i / 4].v[i % 4]);
            most = max_or_nan(most, fabsf(v[i]));
        }
        most = max_or_nan(most, __shfl_xor_sync(~0u, most, 1));
        most = max_or_nan(most, __shfl_xor_sync(~0u, most, 2));
        // Of quarters, since fast_divide takes what is above 2^126 for infinite.
        const float per = most > 0x1p-100f ? fast_divide(MOST_WHOLE / 4, most / 4) : 0.0f;
        const float each = most * (1.0f / MOST_WHOLE);
        // Added to this, a number is rounded to the lowest bits, and 128 more, so that its upper byte is
        // rounded.
        const float rounding = 0x1.8p23f + 128.0f;
        int32_t sum = 0;
        uint32_t quads[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            uint32_t upper = 0, lower = 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t whole = __float_as_uint(fmaf(v[4 * j + i], per, rounding));
                sum += (int32_t)(whole - __float_as_uint(rounding));
                upper |= byte_of(whole, 1) << 8 * i;
                lower |= byte_of(whole, 0) << 8 * i;
            }
            quads[j] = has_rest() ? lower ^ 0x80808080 : upper;
        }
        Held y = {quads[0], quads[1], __shfl_sync(~0u, each, 8 * own_place()) * B::WORTH, 0.0f};
        if (B::SCALES != Scales::AFFINE) return y;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        y.sum = __shfl_sync(~0u, each * (float)sum, 8 * own_place());
        return y;
    }

    // Adds the warp's unit number `unit` of a slot.
    __device__ __forceinline__ void add(const uint8_t* slot, uint32_t stride, int unit, const Held& x) {
        const uint32_t q = own_place();
        const uint8_t* a = slot + own_team() * stride + own_warp() / B::UNITS * B::BYTES +
                           unit * (WALK_WARPS / B::UNITS * B::BYTES);
        const uint8_t* b = a + PAIRS * stride;
        RunQuads a_quads, b_quads;
        B::read(a, q, a_quads, mask);
        B::read(b, q, b_quads, mask);
        const RunScale a_scale = B::scale(a, q), b_scale = B::scale(b, q);
        // Two sums each, of every second run, so that a matrix need not wait for the one before.
        int32_t d[2][4] = {}, upper[2][4] = {};
#pragma unroll
        for (uint32_t r = 0; r < RUNS; ++r) {
            const Words<2>&av = a_quads[r], &bv = b_quads[r];
            const uint32_t first = own_run() == r ? x.first : 0, second = own_run() == r ? x.second : 0;
            if constexpr (B::SCALES == Scales::TWO) {
                multiply_whole(d[r % 2], {av.v[0], bv.v[0], 0, 0}, first, 0);
                multiply_whole(upper[r % 2], {0, 0, av.v[1], bv.v[1]}, 0, second);
            } else {
                multiply_whole(d[r % 2], {av.v[0], bv.v[0], av.v[1], bv.v[1]}, first, second);
            }
        }
        sums.a = fmaf(worth(d, 0), a_scale.scale * x.each, sums.a);
        sums.b = fmaf(worth(d, 2), b_scale.scale * x.each, sums.b);
        if constexpr (B::SCALES == Scales::TWO) {
            sums.a = fmaf(worth(upper, 0), a_scale.other * x.each, sums.a);
            sums.b = fmaf(worth(upper, 2), b_scale.other * x.each, sums.b);
        }
        if constexpr (B::SCALES == Scales::AFFINE) {
            sums.a = fmaf(-a_scale.other, x.sum, sums.a);
            sums.b = fmaf(-b_scale.other, x.sum, sums.b);
        }
    }

    // Of the upper and the lower bytes' sums.
    static __device__ __forceinline__ float worth(const int32_t (&d)[2][4], int i) {
        return (float)(256 * (d[0][i] + d[1][i]) + (d[0][i + 1] + d[1][i + 1]));
    }

    // The tile's sums, each over the team's four lanes.
    __device__ __forceinline__ void add_up(Sums* to, float) const {
        const bool odd = own_place() % 2;
        float sum = (odd ? sums.b : sums.a) + __shfl_xor_sync(~0u, odd ? sums.a : sums.b, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        Sums& own = to[own_team() * WALK_WARPS];
        if (own_place() < 2) (odd ? own.b : own.a) = sum;
    }
};

// Of weights in halves. A tile is four pairs: first rows, then second ones. What a lane reads of a row, eight
// elements, is a matrix of 16 rows as it lies there: of the eight rows, the even words and the odd ones. In
// the other matrix, columns 4 r to 4 r + 3 are of run r of 32 elements: both parts of what even words are
// multiplied with, then of odd ones.
template <bool BF16, int STEPS>
struct Dot<HalfWords<BF16>, STEPS> {
    static constexpr uint32_t UNIT = 128, QUADS = 1, GAP = 0, PAIRS = TILE_PAIRS;
    static constexpr int UNITS_OF_A_STEP = 2, UNITS_OF_A_SLOT = 2;
    static constexpr int LANES = 1;
    static constexpr bool SCALED = !BF16;  // f16 may hold neither the largest elements nor what is left

    struct Held {
        uint32_t pairs[2][2];  // of each of a lane's runs: of its even words, or its odd ones
    };

    float d[2][4] = {};  // two sums each

    __device__ __forceinline__ Dot(uint32_t) {}

    static __device__ __forceinline__ uint32_t run() { return threadIdx.x % 32 / 16; }
    static __device__ __forceinline__ bool odd() { return threadIdx.x & 8; }

    // Of a unit of x, a lane's quad. Four lanes bring the eight elements of each of two runs.
    static __device__ __forceinline__ uint32_t element() {
        return 32 * run() + (has_rest() ? 64 : 0) + 8 * own_place() + (odd() ? 4 : 0);
    }

    // These lanes exchange both parts, so that each has one of all its words.
    static __device__ __forceinline__ Held hold(const Words4* x, float scale) {
        uint32_t runs[2][2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            float low = __uint_as_float(x->v[2 * j]), high = __uint_as_float(x->v[2 * j + 1]);
            if (SCALED) low *= scale, high *= scale;
            const uint32_t pair = pack_pair<BF16>(low, high);
            const uint32_t rest = pack_pair<BF16>(low - low_of(pair), high - high_of(pair));
            const uint32_t other = __shfl_xor_sync(~0u, has_rest() ? pair : rest, 4);
            runs[0][j] = has_rest() ? other : pair;
            runs[1][j] = has_rest() ? rest : other;
        }
        Held y;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t other = __shfl_xor_sync(~0u, odd() ? runs[i][0] : runs[i][1], 8);
            y.pairs[i][0] = odd() ? other : runs[i][0];
            y.pairs[i][1] = odd() ? runs[i][1] : other;
        }
        return y;
    }

    static __device__ __forceinline__ float low_of(uint32_t pair) {
        return BF16 ? __uint_as_float(pair << 16) : f16_to_f32((uint16_t)pair);
    }
    static __device__ __forceinline__ float high_of(uint32_t pair) {
        return BF16 ? __uint_as_float(pair & 0xffff0000) : f16_to_f32((uint16_t)(pair >> 16));
    }

    // Adds the warp's unit number `unit` of a slot.
    __device__ __forceinline__ void add(const uint8_t* slot, uint32_t stride, int unit, const Held& x) {
        const uint8_t* row =
            slot + own_team() * stride + 2 * UNIT * (own_warp() + WALK_WARPS * unit) + 16 * own_place();
        uint32_t own = run();
        asm volatile("" : "+r"(own));  // what is chosen by it is not kept for the next tile
#pragma unroll
        for (uint32_t i = 0; i < UNIT / 32; ++i) {
            const bool there = own == i % 2;
            multiply_fragments<BF16>(d[i % 2], read_as<Words4>(row + 64 * i).v, there ? x.pairs[i / 2][0] : 0,
                                     there ? x.pairs[i / 2][1] : 0);
        }
    }

    // The tile's sums, each over a team's four lanes.
    __device__ __forceinline__ void add_up(Sums* to, float worth) const {
        float sum = own_place() % 2 ? d[0][2] + d[0][3] + (d[1][2] + d[1][3])
                                    : d[0][0] + d[0][1] + (d[1][0] + d[1][1]);
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (own_place()) return;
        Sums& pair = to[own_team() % PAIRS * WALK_WARPS];
        (own_team() < PAIRS ? pair.a : pair.b) = SCALED ? worth * sum : sum;
    }
};

#endif
