// Runs the CUDA kernels on the CPU, one block after another (those that wait for each other together), every
// CUDA thread a fiber: enough of CUDA to test what kernels compute, that every thread reaches every barrier,
// and (with the address sanitizer) that no thread leaves its operands. It says nothing about races, memory
// order or speed.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "fibers.hpp"

#define __CUDA_ARCH__ 900
#define __device__
#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(threads, blocks)
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline

struct Dim {
    uint32_t x, y;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

struct Barrier {
    uint32_t waiting = 0, generation = 0;
};

constexpr uint32_t MOST_TOGETHER = 8;  // blocks

static std::vector<fibers::Fiber> threads;  // of a block, one block behind another
static uint32_t running;                    // of them, from the first
static uint32_t current;
static uint64_t progress;
static Barrier block_barriers[MOST_TOGETHER], part_barriers[MOST_TOGETHER];
static Barrier warp_barriers[MOST_TOGETHER * 32];
static uint64_t slots[MOST_TOGETHER * 1024];
static int any[2];

using fibers::yield;

static void meet(Barrier& barrier, uint32_t count) {
    uint32_t mine = barrier.generation;
    if (++barrier.waiting == count) {
        barrier.waiting = 0;
        ++barrier.generation;
        ++progress;
        return;
    }
    while (barrier.generation == mine) yield();
}

static uint32_t block_threads() {
    return blockDim.x * blockDim.y;
}

static void meet_warp() {
    uint32_t own = current % block_threads(), left = block_threads() - own / 32 * 32;
    meet(warp_barriers[current / block_threads() * 32 + own / 32], left < 32 ? left : 32);
}

static uint32_t lane_of(uint32_t thread) {
    return thread % block_threads() % 32;
}

static void meet_block() {
    meet(block_barriers[current / block_threads()], block_threads());
}

}  // namespace emulator

static void __syncthreads() {
    emulator::meet_block();
}

static int __syncthreads_or(int value) {
    if (value) emulator::any[0] = 1;
    __syncthreads();
    int result = emulator::any[0];
    __syncthreads();
    emulator::any[0] = 0;
    return result;
}

template <typename T>
static T __shfl_xor_sync(uint32_t, T value, int mask) {
    uint32_t me = emulator::current;
    memcpy(&emulator::slots[me], &value, sizeof value);
    emulator::meet_warp();
    uint32_t lane = emulator::lane_of(me);
    memcpy(&value, &emulator::slots[me - lane + (lane ^ (uint32_t)mask)], sizeof value);
    emulator::meet_warp();
    return value;
}

template <typename T>
static T __shfl_sync(uint32_t, T value, int from) {
    uint32_t me = emulator::current;
    memcpy(&emulator::slots[me], &value, sizeof value);
    emulator::meet_warp();
    memcpy(&value, &emulator::slots[me - emulator::lane_of(me) + (uint32_t)from], sizeof value);
    emulator::meet_warp();
    return value;
}

static void __syncwarp() {
    emulator::meet_warp();
}

static bool __any_sync(uint32_t mask, bool value) {
    for (int other = 16; other; other >>= 1) value |= __shfl_xor_sync(mask, value, other);
    return value;
}

static void __threadfence() {}
static void __threadfence_block() {}

static uint32_t __umulhi(uint32_t a, uint32_t b) {
    return (uint32_t)((uint64_t)a * b >> 32);
}

static uint64_t __umul64hi(uint64_t a, uint64_t b) {
    __extension__ typedef unsigned __int128 Wide;
    return (uint64_t)((Wide)a * b >> 64);
}

template <typename T>
static T atomicAdd(T* where, T value) {
    T old = *where;
    *where += value;
    return old;
}

template <typename T>
static T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
static T max(T a, T b) {
    return a < b ? b : a;
}

static float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static int32_t __float2int_rn(float value) {
    float rounded = rintf(value);
    if (rounded >= 2147483648.0f) return INT32_MAX;
    if (rounded <= -2147483648.0f) return INT32_MIN;
    return (int32_t)rounded;
}

// The C library's passes signalling NaN on where CUDA's does not.
static float cuda_powf(float a, float b) {
    return b == 0.0f || a == 1.0f ? 1.0f : powf(a, b);
}
#define powf cuda_powf

#include "kernels.inc"  // written by the test: an #include of each kernel file

namespace emulator {

static std::vector<uint8_t> block_memories[MOST_TOGETHER];
static void (*kernel)();
static const void* argument;
static size_t argument_bytes;

uint8_t* block_memory() {
    return (uint8_t*)(((uintptr_t)block_memories[current / block_threads()].data() + 127) / 128 * 128);
}

template <typename Argument>
static bool call() {
    if (argument_bytes != sizeof(Argument)) return false;
    ((void (*)(const Argument))kernel)(*(const Argument*)argument);
    return true;
}

static void body() {
    if (!call<nocopy_fused>() && !call<nocopy_walk>() && !call<nocopy_launch>() &&
        !call<nocopy_fused_rows>() && !call<nocopy_attention_rows>() && !call<nocopy_words>())
        abort();
    ++progress;
}

// Runs blocks from `first` on to their end; false if threads wait for each other forever.
static bool run_blocks(uint32_t first) {
    for (fibers::Fiber& thread : threads) thread.ended = false;
    for (Barrier& barrier : block_barriers) barrier = {};
    for (Barrier& barrier : part_barriers) barrier = {};
    for (Barrier& barrier : warp_barriers) barrier = {};
    for (;;) {
        uint64_t before = progress;
        bool all_ended = true;
        for (current = 0; current < running; ++current) {
            if (threads[current].ended) continue;
            all_ended = false;
            uint32_t own = current % block_threads();
            threadIdx = {own % blockDim.x, own / blockDim.x};
            blockIdx = {first + current / block_threads(), 0};
            fibers::step(threads[current], body);
        }
        if (all_ended) break;
        if (progress == before) {
            for (fibers::Fiber& thread : threads) thread.begun = false;  // they wait in the kernel
            return false;
        }
    }
    for (Barrier& barrier : block_barriers)
        if (barrier.waiting) return false;
    return true;
}

}  // namespace emulator

// Launches a kernel with its argument of `bytes`, and `shared` bytes of dynamic shared memory, which are
// arbitrary when a block begins; 0, or 1 if a barrier was not reached by all threads.
extern "C" int emulate(void (*kernel)(), uint32_t grid, uint32_t x, uint32_t y, uint32_t shared,
                       const void* launch, size_t bytes) {
    using namespace emulator;
    emulator::kernel = kernel;
    argument = launch;
    argument_bytes = bytes;
    gridDim = {grid, 1};
    blockDim = {x, y};
    uint32_t together = bytes == sizeof(nocopy_walk) ? grid : 1;
    void (*sharing)(const nocopy_launch) = sample;
    if (kernel == (void (*)())sharing) together = (uint32_t)((const nocopy_launch*)launch)->splits;
    if (together > MOST_TOGETHER) abort();
    running = together * x * y;
    while (threads.size() < running) threads.emplace_back();
    for (uint32_t b = 0; b < grid; b += together) {
        for (uint32_t i = 0; i < together; ++i) {
            block_memories[i].assign(shared ? shared + 127 : 0, 0xa5);
            block_memories[i].shrink_to_fit();
        }
        if (!run_blocks(b)) return 1;
    }
    return 0;
}
