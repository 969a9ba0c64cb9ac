// Stands in for kernels/cuda/stream.cuh where there is no GPU. A copy is made as late as it may be, when the
// warp waits for it, so that what is read too early, or overwritten too early, is wrong.
#pragma once

#include <vector>

#include "blocks.cuh"

using Words4 = Words<4>;

namespace emulator {
uint8_t* block_memory();  // of the block that runs, from a multiple of 128 bytes
}

inline uint8_t* dynamic_shared() {
    return emulator::block_memory();
}

inline Words4 load_fresh(const void* at) {
    return *(const Words4*)at;
}

inline float load_fresh_float(const float* at) {
    return *at;
}

struct Ring {
    static constexpr uint32_t BARRIER_BYTES = 8;

    struct Copy {
        const uint8_t *a, *b;
        uint32_t bytes;
    };

    uint8_t* memory;
    uint32_t slots, slot_bytes;
    std::vector<Copy> begun;
    uint32_t next_ready = 0;

    Ring(uint8_t* m, uint8_t* barriers, uint32_t s, uint32_t bytes) : memory(m), slots(s), slot_bytes(bytes) {
        memset(barriers, 0, slots * BARRIER_BYTES);
    }

    void begin(const uint8_t* a, const uint8_t* b, uint32_t bytes) {
        if ((uintptr_t)a % 16 || (uintptr_t)b % 16 || bytes % 16 || 2 * bytes > slot_bytes) abort();
        if (begun.size() - next_ready >= slots) abort();
        begun.push_back({a, b, bytes});
    }
    void begin_nothing() {}

    const uint8_t* ready() {
        if (next_ready >= begun.size()) abort();
        uint8_t* at = memory + next_ready % slots * slot_bytes;
        const Copy& copy = begun[next_ready++];
        if (threadIdx.x % 32 == 0) {
            memset(at, 0xa5, slot_bytes);
            memcpy(at, copy.a, copy.bytes);
            memcpy(at + copy.bytes, copy.b, copy.bytes);
        }
        __syncwarp();
        return at;
    }
};
