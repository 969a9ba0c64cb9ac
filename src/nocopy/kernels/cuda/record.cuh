// What every kernel is handed, and how it reaches elements: a validated record, the address of each space,
// and a word that asks it to stop. Indices are 64-bit: strides and dims may name up to 2^40 elements.
#pragma once

#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#endif

#include "../tape.h"
#include "half.cuh"
#include "order.cuh"

struct nocopy_launch {
    nocopy_record record;
    uint64_t spaces[4];            // address of each space, as the device sees it
    const volatile int32_t* stop;  // in device memory; null in programs too short to be worth asking
    uint64_t workspace;            // address of device memory that one record's launches hand on results in
    uint64_t splits;               // parts that an axis was split into, for kernels that say so
};

static_assert(sizeof(nocopy_record) == 256, "the record format");
static_assert(sizeof(nocopy_launch) == 312, "device/cuda_launch.py packs this struct");

// `blocks` of up to `threads` threads are to fit a multiprocessor: that bounds the registers of each.
#define NOCOPY_KERNEL(name, threads, blocks)                                  \
    __device__ __forceinline__ void name##_body(const nocopy_launch& launch); \
    extern "C" __global__ void __launch_bounds__(threads, blocks)             \
        name(const __grid_constant__ nocopy_launch launch) {                  \
        let_next_start();                                                     \
        wait_for_previous();                                                  \
        name##_body(launch);                                                  \
    }                                                                         \
    __device__ __forceinline__ void name##_body(const nocopy_launch& launch)

// True once the host has asked the program to stop: its results no longer matter, only that it ends.
__device__ inline bool stopped(const nocopy_launch& launch) {
    return launch.stop && *launch.stop;
}

// The same for a block whose threads all call it: one of them looks.
__device__ inline bool block_stopped(const nocopy_launch& launch) {
    return launch.stop && __syncthreads_or(threadIdx.x + threadIdx.y == 0 && *launch.stop);
}

// Asks every `period` calls (a power of two): a read past the first cache takes some hundred cycles.
struct StopSign {
    const nocopy_launch& launch;
    uint32_t period;
    uint32_t calls = 0;

    __device__ bool reached() { return (++calls & (period - 1)) == 0 && stopped(launch); }
};

// One operand: where it lies, its element type, its strides in elements.
struct Tensor {
    char* base;
    uint32_t dtype;
    const uint32_t* strides;

    __device__ Tensor(const nocopy_launch& launch, int slot) {
        const nocopy_operand& operand = launch.record.operands[slot];
        base = (char*)(launch.spaces[operand.space] + operand.offset);
        dtype = operand.dtype;
        strides = operand.strides;
    }

    __device__ bool absent() const { return dtype == NOCOPY_NONE; }

    template <typename T>
    __device__ T* as() const {
        return (T*)base;
    }

    __device__ uint64_t at(uint64_t i0) const { return i0 * strides[0]; }
    __device__ uint64_t at(uint64_t i0, uint64_t i1) const { return at(i0) + i1 * strides[1]; }
    __device__ uint64_t at(uint64_t i0, uint64_t i1, uint64_t i2) const {
        return at(i0, i1) + i2 * strides[2];
    }
    __device__ uint64_t at(uint64_t i0, uint64_t i1, uint64_t i2, uint64_t i3) const {
        return at(i0, i1, i2) + i3 * strides[3];
    }
};

__device__ inline int32_t saturate_i32(float value) {
    return value != value ? 0 : __float2int_rn(value);
}

__device__ inline uint8_t saturate_u8(float value) {
    return value != value ? 0 : (uint8_t)fminf(fmaxf(rintf(value), 0.0f), 255.0f);
}

// The element as f32; integers round to nearest even.
__device__ inline float load(const Tensor& t, uint64_t index) {
    switch (t.dtype) {
        case NOCOPY_F32:
            return t.as<float>()[index];
        case NOCOPY_F16:
            return f16_to_f32(t.as<uint16_t>()[index]);
        case NOCOPY_BF16:
            return bf16_to_f32(t.as<uint16_t>()[index]);
        case NOCOPY_I32:
            return (float)t.as<int32_t>()[index];
        default:
            return (float)t.as<uint8_t>()[index];
    }
}

// Converts from f32: to nearest even; to an integer also saturating, and NaN becomes 0.
__device__ inline void store(const Tensor& t, uint64_t index, float value) {
    switch (t.dtype) {
        case NOCOPY_F32:
            t.as<float>()[index] = value;
            break;
        case NOCOPY_F16:
            t.as<uint16_t>()[index] = f32_to_f16(value);
            break;
        case NOCOPY_BF16:
            t.as<uint16_t>()[index] = f32_to_bf16(value);
            break;
        case NOCOPY_I32:
            t.as<int32_t>()[index] = saturate_i32(value);
            break;
        default:
            t.as<uint8_t>()[index] = saturate_u8(value);
            break;
    }
}

__device__ inline float param_f32(const nocopy_launch& launch, int i) {
    return __uint_as_float(launch.record.params[i]);
}

// Larger of two values; NaN if either is.
__device__ inline float nan_max(float a, float b) {
    return a > b || a != a ? a : b;
}
__device__ inline float nan_min(float a, float b) {
    return a < b || a != a ? a : b;
}
