// What the kernels of attention share: how elements of a head are read, which tokens a row sees, and the
// online softmax. Whoever walks over tokens keeps the largest score so far, the sum of exp(score - largest),
// and the values weighted alike; two such states merge into one.
#pragma once

#include "blocks.cuh"
#include "rows.cuh"

constexpr uint32_t EIGHT = 8;  // elements of a head that a lane holds
constexpr uint32_t SPAN =
    32 * EIGHT;                    // elements of a head that a warp holds; attention_any takes longer ones
constexpr uint32_t MAX_WARPS = 8;  // of a block
constexpr uint32_t FEWEST = 16;    // tokens that are worth a warp
constexpr float LOWEST = -3.402823466e+38f;  // finite, so that a difference of two is not NaN

// How eight consecutive elements of a head are read: as 16-byte words, Q8_0 blocks, or one by one.
enum Reading { READ_F32, READ_F16, READ_BF16, READ_Q8_0, READ_ANY };

struct Eight {
    float v[EIGHT];
};

// Elements first to first + 7 of the head of n elements that begins at element `head` of t; 0 beyond it.
// Of any dtype, so it is long, and slow beside the others: one copy of it is enough.
__device__ __noinline__ Eight load_any(const Tensor t, uint64_t head, uint64_t first, uint64_t n) {
    Eight y = {};
#pragma unroll
    for (uint32_t i = 0; i < EIGHT; ++i) {
        if (first + i >= n) break;
        uint64_t at = head + (first + i) * t.strides[2];
        y.v[i] = is_blocks(t.dtype) ? load_block_element(t, at) : load(t, at);
    }
    return y;
}

template <int READING>
__device__ inline Eight load_eight(const Tensor& t, uint64_t head, uint64_t first, uint64_t n) {
    if (READING == READ_ANY) return load_any(t, head, first, n);
    Eight y = {};
    if (first >= n) return y;
    if (READING == READ_F32) {
        float (&low)[4] = *(float (*)[4]) & y.v[0];
        float (&high)[4] = *(float (*)[4]) & y.v[4];
        const uint8_t* at = t.as<uint8_t>() + 4 * (head + first);
        F32Words::decode(F32Words::fetch(at, 0), low);
        F32Words::decode(F32Words::fetch(at + 16, 0), high);
    } else if (READING == READ_Q8_0) {
        float (&low)[4] = *(float (*)[4]) & y.v[0];
        float (&high)[4] = *(float (*)[4]) & y.v[4];
        const uint8_t* block = t.as<uint8_t>() + (head + first) / 32 * 34;
        uint32_t lane = (uint32_t)(first % 32) / 4;
        Q8_0::decode(Q8_0::fetch(block, lane), low);
        Q8_0::decode(Q8_0::fetch(block, lane + 1), high);
    } else {
        HalfWords<READING == READ_BF16>::decode(read_as<Words<4>>(t.as<uint8_t>() + 2 * (head + first)), y.v);
    }
    return y;
}

__device__ inline float dot(const Eight& a, const Eight& b) {
    float sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < EIGHT; ++i) sum = fmaf(a.v[i], b.v[i], sum);
    return sum;
}

// The tokens [start, stop) that a row sees.
struct Tokens {
    int64_t start = 0, stop = 0;

    __device__ Tokens(const nocopy_launch& launch, uint64_t row) {
        if (row >= launch.record.dims[0]) return;
        Tensor last(launch, 4);
        see(launch, last.as<int32_t>() + last.at(row));
    }

    // Of the row whose last token is *last.
    __device__ Tokens(const int32_t* last, const nocopy_launch& launch) { see(launch, last); }

    __device__ void see(const nocopy_launch& launch, const int32_t* last) {
        int64_t count = launch.record.dims[3], window = launch.record.params[2];
        stop = min((int64_t)*last + 1, count);
        start = window ? max(stop - window, (int64_t)0) : 0;
        if (stop <= start) start = stop = 0;
    }

    // Part `i` of `parts`, in whole `unit`s.
    __device__ void narrow(uint64_t i, uint64_t parts, uint64_t unit) {
        uint64_t each = ((uint64_t)(stop - start) + parts - 1) / parts;
        each = max((each + unit - 1) / unit * unit, (uint64_t)FEWEST);
        start = min(start + (int64_t)(i * each), stop);
        stop = min(start + (int64_t)each, stop);
    }
};

// What online softmax knows of the tokens it has seen.
struct Seen {
    float largest = LOWEST, sum = 0.0f;
    Eight values = {};

    __device__ void token(float score, const Eight& v) {
        float top = nan_max(largest, score), keep = expf(largest - top), weight = expf(score - top);
        largest = top;
        sum = sum * keep + weight;
#pragma unroll
        for (uint32_t i = 0; i < EIGHT; ++i) values.v[i] = fmaf(weight, v.v[i], values.v[i] * keep);
    }

    // Merges with the state of the lane across `mask`, as that one does.
    __device__ void merge_across(uint32_t mask) {
        float other = __shfl_xor_sync(0xffffffffu, largest, mask);
        float top = nan_max(largest, other), keep = expf(largest - top);
        largest = top;
        sum *= keep;
        sum += __shfl_xor_sync(0xffffffffu, sum, mask);
#pragma unroll
        for (uint32_t i = 0; i < EIGHT; ++i) {
            values.v[i] *= keep;
            values.v[i] += __shfl_xor_sync(0xffffffffu, values.v[i], mask);
        }
    }
};

// Lanes that hold one head: a power of two.
__device__ inline uint32_t head_team(uint64_t n) {
    uint32_t team = 1;
    while (team < 32 && team * EIGHT < n) team *= 2;
    return team;
}

// What a warp leaves for the others of its row.
template <int HEADS>
struct Shared {
    float largest[MAX_WARPS][HEADS], sum[MAX_WARPS][HEADS];
    float values[MAX_WARPS][HEADS][SPAN];
};
