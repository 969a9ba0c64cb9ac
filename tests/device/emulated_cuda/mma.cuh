// Stands in for kernels/cuda/mma.cuh where there is no GPU: fragments are exchanged through memory, sums are
// f32 in order. A copy is made when its group is waited for, so that what is read too early is wrong.
#pragma once

#include <vector>

#include "record.cuh"
#include "stream.cuh"

namespace emulator {

struct WordCopy {
    uint8_t* to;
    const void* from;
    bool there;
};

inline uint32_t fragments[MOST_TOGETHER * 1024][6];
inline const uint8_t* rows[1024];
inline std::vector<std::vector<WordCopy>> copies[1024];

}  // namespace emulator

template <int ROW_BYTES>
inline uint32_t swizzled(uint32_t row, uint32_t word) {
    uint32_t turned = ROW_BYTES == 64 ? word ^ (row / 2 % 4) : word ^ (row % 8);
    return row * ROW_BYTES + turned * 16;
}

template <bool BF16>
inline float half_of(uint32_t pair, uint32_t which) {
    uint16_t bits = (uint16_t)(pair >> (16 * which));
    return BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

template <bool BF16>
inline void multiply_fragments(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t me = emulator::current, warp = me / 32 * 32, lane = me % 32;
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(emulator::fragments[me], mine, sizeof mine);
    __syncwarp();
    for (uint32_t i = 0; i < 4; ++i) {
        uint32_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (uint32_t k = 0; k < 16; ++k) {
            uint32_t of_a = row / 8 + k / 8 * 2, of_b = 4 + k / 8, pair = k % 8 / 2;
            float x = half_of<BF16>(emulator::fragments[warp + row % 8 * 4 + pair][of_a], k % 2);
            float y = half_of<BF16>(emulator::fragments[warp + column * 4 + pair][of_b], k % 2);
            d[i] = fmaf(x, y, d[i]);
        }
    }
    __syncwarp();
}

inline float tf32_part(float value) {
    return __uint_as_float(__float_as_uint(value) & 0xffffe000);
}

inline void multiply_tf32(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    uint32_t me = emulator::current, lane = emulator::lane_of(me), warp = me - lane;
    float mine[6] = {a0, a1, a2, a3, b0, b1};
    for (float& value : mine) value = tf32_part(value);
    memcpy(emulator::fragments[me], mine, sizeof mine);
    __syncwarp();
    for (uint32_t i = 0; i < 4; ++i) {
        uint32_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (uint32_t k = 0; k < 8; ++k) {
            uint32_t of_a = row / 8 + k / 4 * 2, of_b = 4 + k / 4;
            float x = __uint_as_float(emulator::fragments[warp + row % 8 * 4 + k % 4][of_a]);
            float y = __uint_as_float(emulator::fragments[warp + column * 4 + k % 4][of_b]);
            d[i] = fmaf(x, y, d[i]);
        }
    }
    __syncwarp();
}

inline void multiply_whole(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t me = emulator::current, lane = emulator::lane_of(me), warp = me - lane;
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(emulator::fragments[me], mine, sizeof mine);
    __syncwarp();
    for (uint32_t i = 0; i < 4; ++i) {
        uint32_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        const uint32_t (*x)[6] = emulator::fragments + warp + row % 8 * 4;
        const uint32_t (*y)[6] = emulator::fragments + warp + column * 4;
        for (uint32_t half = 0; half < 2; ++half)
            for (uint32_t four = 0; four < 4; ++four) {
                uint32_t a = x[four][row / 8 + half * 2], b = y[four][4 + half];
                d[i] += (int8_t)a * (int8_t)b + (int8_t)(a >> 8) * (int8_t)(b >> 8);
                d[i] += (int8_t)(a >> 16) * (int8_t)(b >> 16) + (int8_t)(a >> 24) * (int8_t)(b >> 24);
            }
    }
    __syncwarp();
}

inline void load_matrices_either(uint32_t (&r)[4], const uint8_t* row, bool transposed) {
    uint32_t me = emulator::current, warp = me / 32 * 32, lane = me % 32;
    if ((uintptr_t)row % 16) abort();
    emulator::rows[me] = row;
    __syncwarp();
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (uint32_t i = 0; i < 2; ++i) {
            uint32_t at = lane / 4, along = lane % 4 * 2 + i;
            const uint8_t* from = emulator::rows[warp + matrix * 8 + (transposed ? along : at)];
            memcpy(&pair[i], from + 2 * (transposed ? at : along), 2);
        }
        r[matrix] = pair[0] | (uint32_t)pair[1] << 16;
    }
    __syncwarp();
}

inline void load_matrices(uint32_t (&r)[4], const uint8_t* row) {
    load_matrices_either(r, row, false);
}

inline void load_matrices_transposed(uint32_t (&r)[4], const uint8_t* row) {
    load_matrices_either(r, row, true);
}

inline void copy_word(uint8_t* to, const void* from, bool there) {
    if ((uintptr_t)to % 16 || (there && (uintptr_t)from % 16)) abort();
    auto& groups = emulator::copies[emulator::current];
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({to, from, there});
    memset(to, 0xa5, 16);
}

inline void end_copies() {
    auto& groups = emulator::copies[emulator::current];
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();  // the one that is open
}

template <int LEFT>
inline void wait_copies() {
    auto& groups = emulator::copies[emulator::current];
    while (groups.size() > LEFT + 1) {
        for (auto& copy : groups.front()) {
            if (copy.there)
                memcpy(copy.to, copy.from, 16);
            else
                memset(copy.to, 0, 16);
        }
        groups.erase(groups.begin());
    }
}

template <bool BF16>
inline uint32_t pack_pair(float low, float high) {
    uint16_t a = BF16 ? f32_to_bf16(low) : f32_to_f16(low), b = BF16 ? f32_to_bf16(high) : f32_to_f16(high);
    return a | (uint32_t)b << 16;
}

inline uint32_t add_pairs(uint32_t a, uint32_t b) {
    return pack_pair<true>(half_of<true>(a, 0) + half_of<true>(b, 0),
                           half_of<true>(a, 1) + half_of<true>(b, 1));
}

inline float fast_exp2(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

inline float fast_root(float x) {
    return 1.0f / sqrtf(x);
}

inline float max_or_nan(float a, float b) {
    return nan_max(a, b);
}

inline float fast_divide(float a, float b) {
    return fabsf(b) > 8.5e37f ? 0.0f * a : a / b;
}

inline float fast_silu(float x) {
    return fast_divide(x, 1.0f + fast_exp2(-1.44269504f * x));
}

inline float fast_tanh(float x) {
    return 1.0f - fast_divide(2.0f, fast_exp2(2.88539008f * x) + 1.0f);
}
