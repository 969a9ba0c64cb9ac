// What warps wait for copies with, and the warps and blocks of one long kernel for each other (sm_90 and
// newer).
//
// A barrier in shared memory counts arrivals and the bytes of bulk copies; when all that was announced is
// there, its phase ends, and the next begins. Words in device memory carry their own sign that they are
// there: the lowest bit, the tag, which whoever writes a place the next time inverts. So a value is handed to
// other blocks by one store and one load, with no fence, for one bit of its mantissa.
#pragma once

#include "blocks.cuh"

using Words4 = Words<4>;

__device__ inline uint32_t shared_address(const void* at) {
    return (uint32_t)__cvta_generic_to_shared(at);
}

#if __CUDA_ARCH__ >= 900

__device__ inline void begin_barrier(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
                 : "memory");
}

// Before other threads, or copies, use barriers that this thread has begun.
__device__ inline void show_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// True once the phase of this parity has ended: phases have parity 0, 1, 0 ...
__device__ inline bool passed(uint64_t* barrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return done;
}

// The same for who has nothing else to do.
__device__ inline void await(uint64_t* barrier, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!done);
}

// Arrives; the phase ends with `bytes` of copies that are started behind this.
__device__ inline void announce(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

// Copies of `bytes` each that a barrier counts, for who starts many one after another.
struct Copies {
    uint32_t barrier, to, bytes;

    __device__ Copies(uint64_t* b, uint8_t* memory, uint32_t size)
        : barrier(shared_address(b)), to(shared_address(memory)), bytes(size) {
        // Found once, not again for each.
        asm volatile("" : "+r"(barrier), "+r"(to), "+r"(bytes));
    }

    __device__ void start(uint32_t beyond, uint64_t from) const {
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                to + beyond),
            "l"(from), "r"(bytes), "r"(barrier)
            : "memory");
    }
};

// Starts the copy of two pieces of `bytes` to shared memory, one behind the other, and arrives.
__device__ inline void copy_pair(uint64_t* barrier, uint8_t* to, const uint8_t* a, const uint8_t* b,
                                 uint32_t bytes) {
    const Copies copies(barrier, to, bytes);
    announce(barrier, 2 * bytes);
    copies.start(0, (uint64_t)a);
    copies.start(bytes, (uint64_t)b);
}

// True for one lane of the warp, all of which are here.
__device__ inline bool elected() {
    uint32_t y;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(y)::"memory");
    return y;
}

// Has the second cache hold what lies there.
__device__ inline void prefetch(const uint8_t* at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

// A clock of this multiprocessor.
__device__ inline uint32_t cycles() {
    uint32_t y;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(y)::"memory");
    return y;
}

// Called in loops that wait for other blocks.
__device__ inline void relax() {}

// All of the block's first `threads` threads come here.
__device__ inline void meet(uint32_t threads) {
    asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

__device__ inline Words4 load_tagged(const uint32_t* at) {
    Words4 y;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(y.v[0]), "=r"(y.v[1]), "=r"(y.v[2]), "=r"(y.v[3])
                 : "l"(at)
                 : "memory");
    return y;
}

__device__ inline uint32_t load_tagged_word(const uint32_t* at) {
    uint32_t y;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(y) : "l"(at) : "memory");
    return y;
}

__device__ inline void store_tagged(uint32_t* at, uint32_t word, uint32_t tag) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"((word & ~1u) | tag) : "memory");
}

__device__ inline void store_tagged(uint32_t* at, float a, float b, uint32_t tag) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(at),
                 "r"((__float_as_uint(a) & ~1u) | tag), "r"((__float_as_uint(b) & ~1u) | tag)
                 : "memory");
}

#endif
