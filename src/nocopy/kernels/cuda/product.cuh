// The tiles of out[b0,b1,m,n] = scale * sum over k of a[b0,b1,m,k] b[b0,b1,k,n]. How an element of b is read
// is the caller's: load_b(b, index in elements).
#pragma once

#include "tile.cuh"

template <typename S, typename LoadB>
__device__ inline void matmul_tiles(const nocopy_launch& launch, LoadB load_b) {
    __shared__ Stage<S> stage;
    Tensor out(launch, 0), a(launch, 1), b(launch, 2);
    const uint32_t* d = launch.record.dims;
    const uint64_t m = d[2], n = d[3], k = d[4];
    const float scale = param_f32(launch, 0);
    const uint64_t tiles = tile_count<S>((uint64_t)d[0] * d[1], m, n);
    for (uint64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        if (block_stopped(launch)) return;
        TilePlace p = tile_place<S>(tile, m, n);
        uint64_t b0 = p.batch / d[1], b1 = p.batch % d[1];
        uint64_t out_at = out.at(b0, b1), a_at = a.at(b0, b1), b_at = b.at(b0, b1);
        multiply_tile<S>(
            launch, stage, p.row, p.column, m, n, k,
            [&](uint64_t r, uint64_t i) { return load(a, a_at + r * a.strides[2] + i * a.strides[3]); },
            a.strides[3] <= a.strides[2],
            [&](uint64_t i, uint64_t c) { return load_b(b, b_at + i * b.strides[2] + c * b.strides[3]); },
            b.strides[2] < b.strides[3],
            [&](uint64_t r, uint64_t c, float sum) {
                store(out, out_at + r * out.strides[2] + c * out.strides[3], scale * sum);
            });
    }
}
