// matmul: out[b0,b1,m,n] = scale * sum over k of a[b0,b1,m,k] b[b0,b1,k,n]; any strides, so transposes and
// broadcast batches cost nothing; operands are converted to f32 as they are fetched and summed in f32.
//
// matmul_large, _medium, _small: tiles of 128, 64 and 32 (tile.cuh); larger ones fetch less, smaller ones use
// more of the chip. Bound: arithmetic when operands are in device memory or the product is large; else the
// bus. matmul_narrow: at most 4 rows at a time, each element of b fetched once. Bound: the bytes of b. A
// product with few columns is launched as its transpose.
#include "product.cuh"

struct LoadFloat {
    __device__ float operator()(const Tensor& b, uint64_t index) const { return load(b, index); }
};

NOCOPY_KERNEL(matmul_large, 256, 2) {
    matmul_tiles<LargeTile>(launch, LoadFloat());
}
NOCOPY_KERNEL(matmul_medium, 256, 3) {
    matmul_tiles<MediumTile>(launch, LoadFloat());
}
NOCOPY_KERNEL(matmul_small, 256, 4) {
    matmul_tiles<SmallTile>(launch, LoadFloat());
}

constexpr int NARROW = 4;  // rows whose sums a thread keeps

// Sums of up to NARROW rows at one column, over k = first, first + step, ...
struct NarrowSums {
    float rows[NARROW] = {};

    __device__ void run(const nocopy_launch& launch, const Tensor& a, uint64_t a_at, int height,
                        const Tensor& b, uint64_t b_at, uint64_t first, uint64_t step, uint64_t k) {
        constexpr int IN_FLIGHT = 4;
        StopSign stop{launch, 1024};
        for (; first < k; first += IN_FLIGHT * step) {
            if (stop.reached()) return;
            float elements[IN_FLIGHT];
#pragma unroll
            for (int j = 0; j < IN_FLIGHT; ++j) {
                uint64_t i = first + j * step;
                elements[j] = i < k ? load(b, b_at + i * b.strides[2]) : 0.0f;
            }
#pragma unroll
            for (int j = 0; j < IN_FLIGHT; ++j) {
                uint64_t i = first + j * step;
                if (i >= k) break;
#pragma unroll
                for (int r = 0; r < NARROW; ++r)
                    if (r < height)
                        rows[r] = fmaf(load(a, a_at + r * (uint64_t)a.strides[2] + i * a.strides[3]),
                                       elements[j], rows[r]);
            }
        }
    }
};

// A block of 8 warps takes 8 columns, a warp each, where b's columns are contiguous; else 32 columns, a lane
// each, and the warps split k and meet in shared memory.
NOCOPY_KERNEL(matmul_narrow, 256, 4) {
    constexpr uint32_t WARPS = 8;
    __shared__ float partial[NARROW][WARPS][32];
    Tensor out(launch, 0), a(launch, 1), b(launch, 2);
    const uint32_t* d = launch.record.dims;
    const uint64_t m = d[2], n = d[3], k = d[4];
    const float scale = param_f32(launch, 0);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool along_k = b.strides[2] < b.strides[3];
    const uint64_t width = along_k ? WARPS : 32;
    const uint64_t bands = (m + NARROW - 1) / NARROW, groups = (n + width - 1) / width;
    const uint64_t jobs = (uint64_t)d[0] * d[1] * bands * groups;
    for (uint64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
        if (block_stopped(launch)) return;
        uint64_t batch = job / (bands * groups), rest = job % (bands * groups);
        uint64_t row = rest / groups * NARROW, column = rest % groups * width + (along_k ? warp : lane);
        uint64_t b0 = batch / d[1], b1 = batch % d[1];
        int height = (int)min(m - row, (uint64_t)NARROW);
        NarrowSums sums;
        if (column < n) {
            uint64_t a_at = a.at(b0, b1, row), b_at = b.at(b0, b1) + column * b.strides[3];
            sums.run(launch, a, a_at, height, b, b_at, along_k ? lane : warp, along_k ? 32 : WARPS, k);
        }
        uint64_t out_at = out.at(b0, b1, row) + column * out.strides[3];
        if (along_k) {
            for (int r = 0; r < height; ++r) {
                float sum = sums.rows[r];
                for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
                if (lane == 0 && column < n) store(out, out_at + r * (uint64_t)out.strides[2], scale * sum);
            }
            continue;
        }
        for (int r = 0; r < NARROW; ++r) partial[r][warp][lane] = sums.rows[r];
        __syncthreads();
        if ((int)warp < height && column < n) {
            float sum = 0.0f;
            for (uint32_t w = 0; w < WARPS; ++w) sum += partial[warp][w][lane];
            store(out, out_at + warp * (uint64_t)out.strides[2], scale * sum);
        }
        __syncthreads();  // all have read; the next job may write
    }
}
