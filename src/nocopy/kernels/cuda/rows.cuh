// Rows: ops over the last axis of x[d0,d1,d2,n]. A team of threads takes a row: one thread where neighbouring
// rows are neighbours in memory, a warp for short rows, a block for long ones. The launch says which:
// blockDim.x is the size of a team (1, 32, or a power of two above), blockDim.y the teams of a block (1 where
// a team is larger than a warp, since it then uses the block's barrier).
#pragma once

#include "record.cuh"

struct Row {
    uint64_t i0, i1, i2;
};

// True for all threads of a team if it is for one of them.
__device__ inline bool team_any(bool value) {
    if (blockDim.x == 1) return value;
    return blockDim.x == 32 ? __any_sync(0xffffffffu, value) : __syncthreads_or(value);
}

// For a team that goes from one piece of work to the next: whether all of it should stop.
struct TeamStopSign {
    const nocopy_launch& launch;
    uint32_t calls = 0;

    __device__ bool reached() { return launch.stop && ++calls % 16 == 0 && team_any(stopped(launch)); }
};

// Calls body(row) for every row of this team. All threads of a team take the same rows.
template <typename Body>
__device__ inline void each_row(const nocopy_launch& launch, Body body) {
    const uint32_t* d = launch.record.dims;
    uint64_t rows = (uint64_t)d[0] * d[1] * d[2];
    uint64_t step = (uint64_t)gridDim.x * blockDim.y;
    if (block_stopped(launch)) return;
    TeamStopSign stop{launch};
    for (uint64_t r = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y; r < rows; r += step) {
        if (stop.reached()) return;
        uint64_t rest = r / d[2];
        body(Row{rest / d[1], rest % d[1], r - rest * d[2]});
    }
}

// Combines one value of each thread of a team; every thread gets the result.
template <typename T, typename Combine>
__device__ inline T team_combine(T value, Combine combine) {
    if (blockDim.x == 1) return value;
    for (int mask = 16; mask; mask >>= 1) value = combine(value, __shfl_xor_sync(0xffffffffu, value, mask));
    if (blockDim.x == 32) return value;
    __shared__ T partial[32];
    uint32_t warps = blockDim.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = partial[lane % warps];
    for (int mask = warps / 2; mask; mask >>= 1)
        value = combine(value, __shfl_xor_sync(0xffffffffu, value, mask));
    __syncthreads();  // all have read; the next call may write
    return value;
}

// Combines get(0) to get(n - 1); four chains a thread keep loads in flight and shorten the sums.
template <typename T, typename Get, typename Combine>
__device__ inline T row_combine(const nocopy_launch& launch, uint64_t n, T identity, Get get,
                                Combine combine) {
    T chains[4] = {identity, identity, identity, identity};
    StopSign stop{launch, 1024};
    uint64_t i = threadIdx.x, team = blockDim.x;
    for (; i + 3 * team < n; i += 4 * team) {
        if (stop.reached()) {
            i = n;
            break;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) chains[j] = combine(chains[j], get(i + j * team));
    }
    for (; i < n; i += team) chains[0] = combine(chains[0], get(i));
    return team_combine(combine(combine(chains[0], chains[1]), combine(chains[2], chains[3])), combine);
}

// Calls body(i) for 0 to n - 1.
template <typename Body>
__device__ inline void row_each(uint64_t n, Body body) {
    for (uint64_t i = threadIdx.x; i < n; i += blockDim.x) body(i);
}

struct Add {
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct NanMax {
    __device__ float operator()(float a, float b) const { return nan_max(a, b); }
};
struct NanMin {
    __device__ float operator()(float a, float b) const { return nan_min(a, b); }
};
