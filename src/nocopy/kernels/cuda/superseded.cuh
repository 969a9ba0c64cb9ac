// Of rows that are scattered to the same place the last counts.
#pragma once

#include "record.cuh"

// True for all threads if a later row goes to the same place.
__device__ inline bool superseded(const nocopy_launch& launch, const Tensor& indices, uint64_t row) {
    const uint64_t rows = launch.record.dims[0];
    const int32_t mine = indices.as<int32_t>()[indices.at(row)];
    StopSign stop{launch, 1024};
    bool found = false;
    for (uint64_t i = row + 1 + threadIdx.x; i < rows && !found; i += blockDim.x) {
        found = indices.as<int32_t>()[indices.at(i)] == mine;
        if (stop.reached()) break;
    }
    return __syncthreads_or(found);
}
