// How a warp streams weights through shared memory, and reads what other kernels have just written.
//
// A Ring belongs to one warp: `slots` places of `slot_bytes` each. begin() starts the copy of up to two
// pieces into a slot, ready() waits for the oldest copy that was begun. From sm_90 on the copies are bulk
// copies that one lane starts and a barrier of each slot counts; before, each lane copies 16 bytes at a time.
// Addresses and sizes are multiples of 16.
#pragma once

#include "barrier.cuh"

// The kernels' dynamic shared memory, from a multiple of 128 bytes.
__device__ inline uint8_t* dynamic_shared() {
    extern __shared__ __align__(128) uint8_t nocopy_dynamic_shared[];
    return nocopy_dynamic_shared;
}

// Past the first cache, which other kernels' writes do not reach.
__device__ inline Words4 load_fresh(const void* at) {
    Words4 y;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(y.v[0]), "=r"(y.v[1]), "=r"(y.v[2]), "=r"(y.v[3])
                 : "l"(at)
                 : "memory");
    return y;
}

__device__ inline float load_fresh_float(const float* at) {
    float y;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(y) : "l"(at) : "memory");
    return y;
}

#if __CUDA_ARCH__ >= 900

struct Ring {
    static constexpr uint32_t BARRIER_BYTES = 8;  // of each slot

    uint8_t* memory;
    uint64_t* barriers;
    uint32_t slots, slot_bytes, next_begin = 0, next_ready = 0, parity = 0;

    __device__ Ring(uint8_t* m, uint8_t* b, uint32_t s, uint32_t bytes)
        : memory(m), barriers((uint64_t*)b), slots(s), slot_bytes(bytes) {
        if (threadIdx.x % 32 == 0) {
            for (uint32_t i = 0; i < slots; ++i) begin_barrier(barriers + i, 1);
            show_barriers();
        }
        __syncwarp();
    }

    // Two pieces of `bytes` each, one behind the other. All lanes have read what the slot held before.
    __device__ void begin(const uint8_t* a, const uint8_t* b, uint32_t bytes) {
        if (threadIdx.x % 32 == 0)
            copy_pair(barriers + next_begin, memory + next_begin * slot_bytes, a, b, bytes);
        next_begin = next_begin + 1 == slots ? 0 : next_begin + 1;
    }

    // Nothing more is to come.
    __device__ void begin_nothing() {}

    __device__ const uint8_t* ready() {
        await(barriers + next_ready, parity);
        const uint8_t* at = memory + next_ready * slot_bytes;
        if (++next_ready == slots) {
            next_ready = 0;
            parity ^= 1;
        }
        return at;
    }
};

#else

struct Ring {
    static constexpr uint32_t BARRIER_BYTES = 8;

    uint8_t* memory;
    uint32_t slots, slot_bytes, next_begin = 0, next_ready = 0;

    __device__ Ring(uint8_t* m, uint8_t*, uint32_t s, uint32_t bytes)
        : memory(m), slots(s), slot_bytes(bytes) {}

    __device__ void begin(const uint8_t* a, const uint8_t* b, uint32_t bytes) {
        uint32_t to = shared_address(memory + next_begin * slot_bytes);
        for (uint32_t i = threadIdx.x % 32 * 16; i < bytes; i += 512) {
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(a + i) : "memory");
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + bytes + i), "l"(b + i)
                         : "memory");
        }
        begin_nothing();
        next_begin = next_begin + 1 == slots ? 0 : next_begin + 1;
    }

    // Keeps the count of copies in flight at `slots`, for ready().
    __device__ void begin_nothing() { asm volatile("cp.async.commit_group;" ::: "memory"); }

    __device__ const uint8_t* ready() {
        switch (slots) {
            case 1:
                asm volatile("cp.async.wait_group 0;" ::: "memory");
                break;
            case 2:
                asm volatile("cp.async.wait_group 1;" ::: "memory");
                break;
            case 3:
                asm volatile("cp.async.wait_group 2;" ::: "memory");
                break;
            default:
                asm volatile("cp.async.wait_group 3;" ::: "memory");
                break;
        }
        __syncwarp();  // each lane has waited for its own
        const uint8_t* at = memory + next_ready * slot_bytes;
        next_ready = next_ready + 1 == slots ? 0 : next_ready + 1;
        return at;
    }
};

#endif
