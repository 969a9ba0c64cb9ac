// Walks the elements of a grid [d0,d1,d2,d3]: consecutive threads take consecutive elements of the last axis,
// and each thread has four loads in flight, because the bytes come over a bus or from memory, never from the
// arithmetic. An output that is exactly an input is safe: a thread reads what it alone writes.
#pragma once

#include "record.cuh"

struct Place {
    uint64_t i0, i1, i2, i3;
};

__device__ inline uint64_t at(const Tensor& t, const Place& p) {
    return t.at(p.i0, p.i1, p.i2, p.i3);
}

// 64-bit division is slow only when an operand needs more than 32 bits: the compiler tests for that.
__device__ inline Place place_of(uint64_t linear, const uint32_t* dims) {
    if (linear < dims[3]) return {0, 0, 0, linear};
    uint64_t rest = linear / dims[3];
    uint64_t i3 = linear - rest * dims[3];
    uint64_t i2 = rest % dims[2];
    rest /= dims[2];
    return {rest / dims[1], rest % dims[1], i2, i3};
}

// Calls put(place, get(place)) for every place.
template <typename Get, typename Put>
__device__ inline void each_place(const nocopy_launch& launch, const uint32_t (&dims)[4], Get get, Put put) {
    constexpr int IN_FLIGHT = 4;
    uint64_t total = (uint64_t)dims[0] * dims[1] * dims[2] * dims[3];
    uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    uint64_t first = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (block_stopped(launch)) return;
    StopSign stop{launch, 16};
    for (; first < total; first += IN_FLIGHT * step) {
        if (stop.reached()) return;
        decltype(get(Place{})) values[IN_FLIGHT];
        Place places[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            if (first + j * step >= total) break;
            places[j] = place_of(first + j * step, dims);
            values[j] = get(places[j]);
        }
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            if (first + j * step >= total) break;
            put(places[j], values[j]);
        }
    }
}

struct Grid {
    uint32_t dims[4];

    __device__ Grid(const nocopy_launch& launch) {
        for (int i = 0; i < 4; ++i) dims[i] = launch.record.dims[i];
    }
};
