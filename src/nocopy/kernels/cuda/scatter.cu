// scatter: out[indices[r], w] = convert(x[r, w]). An index outside 0 to t-1 writes nothing; of rows with the
// same index the last is written, whole. Equal dtypes move bits. Q8_0 is encoded as tape/blocks.py does, bit
// for bit. A block of threads takes a row, a warp 32 elements of it at a time. Bound: the bytes of x and out.
#include "blocks.cuh"
#include "rows.cuh"
#include "superseded.cuh"

// This warp's 32 values as a Q8_0 block: the scale is the largest magnitude / 127, halves round away from 0.
__device__ inline void store_q8_0(uint8_t* block, float value) {
    float largest = fabsf(value);
    for (int mask = 16; mask; mask >>= 1)
        largest = nan_max(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
    float scale = largest / 127.0f;
    float scaled = value * (scale == 0.0f ? 0.0f : 1.0f / scale);
    uint32_t lane = threadIdx.x % 32;
    block[2 + lane] = (uint8_t)(int8_t)saturate_i32(fminf(roundf(scaled), 127.0f));
    if (lane == 0) *(uint16_t*)block = f32_to_f16(scale);
}

__device__ inline void store_converted(const Tensor& out, uint64_t to, const Tensor& x, uint64_t from) {
    if (out.dtype != x.dtype) return store(out, to, load(x, from));
    if (out.dtype == NOCOPY_F32)
        out.as<uint32_t>()[to] = x.as<uint32_t>()[from];
    else
        out.as<uint16_t>()[to] = x.as<uint16_t>()[from];
}

NOCOPY_KERNEL(scatter, 256, 4) {
    Tensor out(launch, 0), x(launch, 1), indices(launch, 2);
    const uint64_t rows = launch.record.dims[0], width = launch.record.dims[1], table = launch.record.dims[2];
    for (uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        if (block_stopped(launch)) return;
        if (superseded(launch, indices, row)) continue;
        int64_t index = indices.as<int32_t>()[indices.at(row)];
        // Every warp asks for itself: the index may change meanwhile, but a block needs all its lanes.
        index = __shfl_sync(0xffffffffu, index, 0);
        if (index < 0 || index >= (int64_t)table) continue;
        uint64_t to = out.at((uint64_t)index), from = x.at(row);
        if (out.dtype == NOCOPY_Q8_0) {
            for (uint64_t i = threadIdx.x; i < width; i += blockDim.x)  // width is a multiple of 32
                store_q8_0((uint8_t*)block_at(out, to + i), load(x, from + i * x.strides[1]));
        } else {
            for (uint64_t i = threadIdx.x; i < width; i += blockDim.x)
                store_converted(out, to + i * out.strides[1], x, from + i * x.strides[1]);
        }
    }
}
