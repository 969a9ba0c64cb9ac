// Runs the CUDA kernels on the CPU, one block after another, every CUDA thread a fiber: enough of CUDA to
// test what kernels compute, that every thread reaches every barrier, and (with the address sanitizer) that
// no thread leaves its operands. It says nothing about races, memory order or speed.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <memory>
#include <vector>

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

constexpr size_t STACK = 128 << 10;

struct Barrier {
    uint32_t waiting = 0, generation = 0;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool ended = false;
};

static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static uint32_t current;
static uint64_t progress;
static Barrier block_barrier;
static Barrier warp_barriers[32];
static uint64_t slots[1024];
static int any[2];

static void yield() {
    swapcontext(&fibers[current].context, &scheduler);
}

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

static void meet_warp() {
    uint32_t first = current / 32 * 32, left = (uint32_t)fibers.size() - first;
    meet(warp_barriers[current / 32], left < 32 ? left : 32);
}

}  // namespace emulator

static void __syncthreads() {
    emulator::meet(emulator::block_barrier, (uint32_t)emulator::fibers.size());
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
    memcpy(&value, &emulator::slots[me ^ (uint32_t)mask], sizeof value);
    emulator::meet_warp();
    return value;
}

template <typename T>
static T __shfl_sync(uint32_t, T value, int from) {
    uint32_t me = emulator::current;
    memcpy(&emulator::slots[me], &value, sizeof value);
    emulator::meet_warp();
    memcpy(&value, &emulator::slots[me / 32 * 32 + (uint32_t)from], sizeof value);
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

std::vector<uint8_t> block_memory;
static void (*kernel)();
static const void* argument;
static size_t argument_bytes;

static void body() {
    if (argument_bytes == sizeof(nocopy_fused))
        ((void (*)(const nocopy_fused))kernel)(*(const nocopy_fused*)argument);
    else
        ((void (*)(const nocopy_launch))kernel)(*(const nocopy_launch*)argument);
    fibers[current].ended = true;
    ++progress;
    yield();
}

static void start(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = &scheduler;
    fiber.ended = false;
    makecontext(&fiber.context, body, 0);
}

// Runs one block to its end; false if its threads wait for each other forever.
static bool run_block() {
    for (Fiber& fiber : fibers) start(fiber);
    block_barrier = {};
    for (Barrier& barrier : warp_barriers) barrier = {};
    for (;;) {
        uint64_t before = progress;
        bool all_ended = true;
        for (current = 0; current < fibers.size(); ++current) {
            if (fibers[current].ended) continue;
            all_ended = false;
            threadIdx = {current % blockDim.x, current / blockDim.x};
            swapcontext(&scheduler, &fibers[current].context);
        }
        if (all_ended) return block_barrier.waiting == 0;
        if (progress == before) return false;
    }
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
    while (fibers.size() < x * y) {
        fibers.emplace_back();
        fibers.back().stack = std::make_unique<char[]>(STACK);
    }
    fibers.resize(x * y);
    for (uint32_t b = 0; b < grid; ++b) {
        blockIdx = {b, 0};
        block_memory.assign(shared ? shared + 127 : 0, 0xa5);
        block_memory.shrink_to_fit();
        if (!run_block()) return 1;
    }
    return 0;
}
