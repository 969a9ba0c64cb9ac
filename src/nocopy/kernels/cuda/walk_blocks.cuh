// Weights in blocks, as a warp of walk.cu multiplies them: whole numbers by whole numbers, as matrices.
//
// A team of four lanes has a run of 32 elements, of which each lane has two quads, and eight teams a matrix
// of eight runs. x is held as whole numbers of 16 bits with a scale for each run, an upper and a lower byte
// of each; rows of the one matrix are what teams have of it, first the upper bytes, then the lower ones. A
// run of a weight is a column, which meets its own team's rows on the diagonal. So a run costs a lane one
// instruction, and one more that applies its scale. The structs have the shape of those in blocks.cuh.
#pragma once

#include "mma.cuh"

#if __CUDA_ARCH__ >= 900

// How the numbers of a run become elements.
enum class Scales {
    ONE,     // scale * number
    TWO,     // the second quad has a scale of its own
    AFFINE,  // scale * number - other
};

// A lane's part of a run: eight numbers with a sign, UNIT times which are meant.
struct Numbers {
    uint32_t quads[2];
    float scale, other;
};

// Eight bytes, of whose address `half` is what is beyond a multiple of four: 0 or 2.
__device__ inline Words<2> eight_at(const uint8_t* at, uint32_t half) {
    const uint32_t first = read_as<uint32_t>(at - half), second = read_as<uint32_t>(at - half + 4),
                   third = read_as<uint32_t>(at + half + 4);
    return {{(uint32_t)(((uint64_t)second << 32 | first) >> 8 * half),
             (uint32_t)(((uint64_t)third << 32 | second) >> 8 * half)}};
}

// Which of the eight teams this lane is of, and whether it has its team's element of the diagonal.
__device__ __forceinline__ bool odd_team() {
    return threadIdx.x & 4;
}
__device__ __forceinline__ bool on_diagonal() {
    return threadIdx.x % 4 == threadIdx.x % 32 / 8;
}

// Numbers of four bits, with 8 for none, in the upper half of each byte.
__device__ inline uint32_t upper_halves(uint32_t word) {
    return (word & 0xf0f0f0f0) ^ 0x80808080;
}

// Elements of a run of Team, for rows that are not held.
template <typename Team>
struct Decoded {
    static __device__ void decode(const Numbers& raw, float (&y)[8]) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float number = Team::UNIT * (float)(int8_t)byte_of(raw.quads[i / 4], i % 4);
            y[i] = (Team::SCALES == Scales::TWO && i >= 4 ? raw.other : raw.scale) * number;
            if (Team::SCALES == Scales::AFFINE) y[i] = y[i] - raw.other;
        }
    }
};

struct TeamQ8_0 : Decoded<TeamQ8_0> {
    static constexpr int ELEMENTS = 32, BYTES = 34, LANES = 4, QUADS = 2, GAP = 4;
    static constexpr Scales SCALES = Scales::ONE;
    static constexpr float UNIT = 1.0f;
    static __device__ uint32_t start(uint32_t lane) { return 8 * lane; }
    static __device__ Numbers fetch(const uint8_t* block, uint32_t lane) {
        // Rows begin at multiples of four, so that every other block does.
        const Words<2> both = eight_at(block + 2 + 8 * lane, odd_team() ? 0 : 2);
        return {{both.v[0], both.v[1]}, half_at(block), 0.0f};
    }
};

struct TeamQ4_0 : Decoded<TeamQ4_0> {
    static constexpr int ELEMENTS = 32, BYTES = 18, LANES = 4, QUADS = 2, GAP = 16;
    static constexpr Scales SCALES = Scales::ONE;
    static constexpr float UNIT = 1.0f / 16;
    static __device__ uint32_t start(uint32_t lane) { return 4 * lane; }
    static __device__ Numbers fetch(const uint8_t* block, uint32_t lane) {
        const uint32_t both = word_at(block + 2 + 4 * lane);
        return {{upper_halves(both << 4), upper_halves(both)}, half_at(block), 0.0f};
    }
};

// Scale and minimum of a run of a block whose first 16 bytes are these: halves that the six bits of each run
// count in, and those bits (`Affine`, blocks.cuh).
__device__ __forceinline__ void read_affine(Numbers& y, const Words4& head, uint32_t run) {
    const uint32_t shift = run % 4 * 8, a = head.v[1] >> shift, b = head.v[2] >> shift,
                   c = head.v[3] >> shift;
    const uint32_t scale = run < 4 ? a & 63 : (c & 15) | (a >> 2 & 48);
    const uint32_t minimum = run < 4 ? b & 63 : (c >> 4 & 15) | (b >> 2 & 48);
    y.scale = f16_to_f32((uint16_t)head.v[0]) * (float)scale;
    y.other = f16_to_f32((uint16_t)(head.v[0] >> 16)) * (float)minimum;
}

struct TeamQ4_K : Decoded<TeamQ4_K> {
    static constexpr int ELEMENTS = 256, BYTES = 144, LANES = 32, QUADS = 2, GAP = 4;
    static constexpr Scales SCALES = Scales::AFFINE;
    static constexpr float UNIT = 1.0f;
    static __device__ uint32_t start(uint32_t lane) { return 8 * lane; }
    static __device__ Numbers fetch(const uint8_t* block, uint32_t lane) {
        const uint32_t run = lane / 4, shift = run % 2 * 4;
        const Words<2> both = read_as<Words<2>>(block + 16 + run / 2 * 32 + lane % 4 * 8);
        Numbers y = {{both.v[0] >> shift & 0x0f0f0f0f, both.v[1] >> shift & 0x0f0f0f0f}};
        read_affine(y, read_as<Words4>(block), run);
        return y;
    }
};

// The same with a fifth bit for each number.
struct TeamQ5_K : TeamQ4_K {
    static constexpr int BYTES = 176;
    static __device__ Numbers fetch(const uint8_t* block, uint32_t lane) {
        const uint32_t run = lane / 4, shift = run % 2 * 4;
        const Words<2> both = read_as<Words<2>>(block + 48 + run / 2 * 32 + lane % 4 * 8);
        const Words<2> fifth = read_as<Words<2>>(block + 16 + lane % 4 * 8);
        Numbers y;
        read_affine(y, read_as<Words4>(block), run);
#pragma unroll
        for (int i = 0; i < 2; ++i)
            y.quads[i] = (both.v[i] >> shift & 0x0f0f0f0f) | (fifth.v[i] >> run & 0x01010101) << 4;
        return y;
    }
};

struct TeamQ6_K : Decoded<TeamQ6_K> {
    static constexpr int ELEMENTS = 256, BYTES = 210, LANES = 32, QUADS = 2, GAP = 16;
    static constexpr Scales SCALES = Scales::TWO;
    static constexpr float UNIT = 1.0f / 4;
    static __device__ uint32_t start(uint32_t lane) { return lane / 4 * 32 + lane % 4 * 4; }
    static __device__ Numbers fetch(const uint8_t* block, uint32_t lane) {
        const uint32_t run = lane / 4, half = run / 4, k = run % 4;
        const uint8_t *low = block + 64 * half + k % 2 * 32 + lane % 4 * 4,
                      *high = block + 128 + 32 * half + lane % 4 * 4;
        const float scale = half_at(block + 208);
        Numbers y = {
            {}, scale * (float)(int8_t)block[192 + 2 * run], scale * (float)(int8_t)block[193 + 2 * run]};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t four = word_at(low + 16 * i) >> k / 2 * 4 & 0x0f0f0f0f,
                           two = word_at(high + 16 * i) >> 2 * k & 0x03030303;
            y.quads[i] = (four << 2 | two << 6) ^ 0x80808080;  // 32 stands for none
        }
        return y;
    }
};

// The largest number that stands for an element of x: its upper byte, the lower one rounded, fits a sign.
constexpr float MOST_WHOLE = 127 * 256;

// Two quads of a lane's x as whole numbers: the first's upper and lower bytes, the second's; what one of them
// is worth in their run, times UNIT; and, to be multiplied with a minimum, the run's sum. A run of which
// nothing is above 2^-100 counts as none.
template <typename B>
__device__ __forceinline__ void make_whole(Words4* x) {
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
    // Added to this, a number is rounded to the lowest bits, and 128 more, so that its upper byte is rounded.
    const float rounding = 0x1.8p23f + 128.0f;
    int32_t sum = 0;
    uint32_t whole[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        whole[i] = __float_as_uint(fmaf(v[i], per, rounding));
        sum += (int32_t)(whole[i] - __float_as_uint(rounding));
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const uint32_t* w = whole + 4 * j;
        uint32_t upper = 0, lower = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            upper |= byte_of(w[i], 1) << 8 * i;
            lower |= byte_of(w[i], 0) << 8 * i;
        }
        x[0].v[2 * j] = upper, x[0].v[2 * j + 1] = lower ^ 0x80808080;
    }
    x[1].v[0] = __float_as_uint(each * B::UNIT);
    if (B::SCALES != Scales::AFFINE) return;
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    x[1].v[1] = __float_as_uint(each * (float)sum);
}

#endif
