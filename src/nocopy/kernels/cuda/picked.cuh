// Which row of a table an index means.
#pragma once

#include "record.cuh"

// The i-th index, or the nearest row that there is: indices are data, so they are clamped here.
__device__ inline uint64_t picked(const Tensor& indices, uint64_t i, uint32_t rows) {
    const int64_t row = indices.as<int32_t>()[indices.at(i)], last = (int64_t)rows - 1;
    return (uint64_t)min(max(row, (int64_t)0), last);
}
