// Results that several blocks make parts of: the block that is the last to finish its part joins them all.
// Parts are handed on in the workspace; the blocks of a result count themselves in one of the words before
// it, which are zero between launches.
#pragma once

#include "stream.cuh"

// True for all threads of the last block of `count` that comes here; what the others wrote is then visible.
__device__ inline bool last_of(const nocopy_launch& launch, uint64_t counter, uint32_t count) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t* word = (uint32_t*)launch.workspace - 1 - counter;
        last = atomicAdd(word, 1u) == count - 1;
        if (last) *word = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}
