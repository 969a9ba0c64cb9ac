// Stands in for kernels/cuda/wgmma.cuh where there is no GPU: each warp multiplies its rows at once, and sums
// are f32 in order. Elements of the other matrix are found by their address, as the GPU does.
#pragma once

#include "mma.cuh"

#define GROUPS_MULTIPLY 1

inline void show_to_products() {}
inline void begin_products() {}
inline void end_products() {}
inline void wait_products() {}
template <typename T, int N>
inline void pin(T (&)[N][4]) {}

struct GroupMatrix {
    const uint8_t* first;

    explicit GroupMatrix(const uint8_t* bytes) : first(bytes) {}
};

inline uint16_t swizzled_half(const GroupMatrix& matrix, uint32_t byte) {
    uintptr_t at = (uintptr_t)matrix.first + byte;
    uint16_t bits;
    memcpy(&bits, (const void*)(at ^ (at / 128 % 8 * 16)), 2);
    return bits;
}

template <bool BF16>
inline void multiply_group(float (&d)[8][4], const GroupMatrix& a, const GroupMatrix& b, uint32_t at,
                           bool more) {
    uint32_t me = emulator::current, lane = emulator::lane_of(me), warp = me % emulator::block_threads() / 32;
    for (uint32_t i = 0; i < 8; ++i)
        for (uint32_t e = 0; e < 4; ++e) {
            uint32_t row = warp % 4 * 16 + lane / 4 + e / 2 * 8, column = 8 * i + lane % 4 * 2 + e % 2;
            float sum = more ? d[i][e] : 0.0f;
            for (uint32_t k = 0; k < 16; ++k)
                sum = fmaf(half_of<BF16>(swizzled_half(a, at + row * 128 + k * 2), 0),
                           half_of<BF16>(swizzled_half(b, at + column * 128 + k * 2), 0), sum);
            d[i][e] = sum;
        }
}

template <bool BF16>
inline void multiply_group_across(float (&d)[8][4], const uint32_t (&a)[4], const GroupMatrix& b,
                                  uint32_t at) {
    uint32_t me = emulator::current, lane = emulator::lane_of(me), warp = me - lane;
    memcpy(emulator::fragments[me], a, sizeof a);
    __syncwarp();
    for (uint32_t i = 0; i < 8; ++i)
        for (uint32_t e = 0; e < 4; ++e) {
            uint32_t row = lane / 4 + e / 2 * 8, column = 8 * i + lane % 4 * 2 + e % 2;
            for (uint32_t k = 0; k < 16; ++k) {
                uint32_t pair = emulator::fragments[warp + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
                uint16_t other = swizzled_half(b, at + k * 128 + column * 2);
                d[i][e] = fmaf(half_of<BF16>(pair, k % 2), half_of<BF16>(other, 0), d[i][e]);
            }
        }
    __syncwarp();
}
