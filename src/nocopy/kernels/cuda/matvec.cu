// matmul of few rows of f32 with a weight whose elements along k are contiguous, x @ W.T:
// out[b0,b1,m,n] = scale * sum over k of a[b0,b1,m,k] b[b0,b1,k,n], summed in f32. W is f32, f16 or bf16 from
// 16-byte boundaries, or of a block type.
//
// A team of threads (blockDim.x: a warp, or a block where columns are few) takes a column; neighbouring
// threads take neighbouring words or blocks (blocks.cuh), each with IN_FLIGHT of them on their way. The rows
// of a come from a cache. Bound: the bytes of W, read once for up to ROWS rows.
#include "blocks.cuh"
#include "rows.cuh"

struct alignas(16) Quad {
    float v[4];
};

// Adds to sums[r] the product of the piece that this lane has of a block and row r of a.
template <typename B, int ROWS>
__device__ inline void multiply_piece(const typename B::Raw& raw, const float* const (&rows)[ROWS],
                                      uint64_t first, float (&sums)[ROWS]) {
    float weights[4 * B::QUADS];
    B::decode(raw, weights);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int j = 0; j < B::QUADS; ++j) {
            Quad x = *(const Quad*)(rows[r] + first + j * B::GAP);
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[r] = fmaf(x.v[i], weights[4 * j + i], sums[r]);
        }
    }
}

// This thread's share of the products of ROWS rows of a and one column of b, k elements long.
template <typename B, int ROWS>
__device__ inline void multiply_column(const nocopy_launch& launch, const float* const (&rows)[ROWS],
                                       const uint8_t* column, uint64_t k, float (&sums)[ROWS]) {
    constexpr int IN_FLIGHT = B::QUADS > 2 || ROWS > 2 ? 2 : 4;
    const uint64_t pieces = k / B::ELEMENTS * B::LANES, team = blockDim.x;
    auto fetch = [&](uint64_t p) {
        return B::fetch(column + p / B::LANES * B::BYTES, (uint32_t)(p % B::LANES));
    };
    auto place = [&](uint64_t p) { return p / B::LANES * B::ELEMENTS + B::start((uint32_t)(p % B::LANES)); };
    StopSign stop{launch, 1024};
    uint64_t p = threadIdx.x;
    for (; p + (IN_FLIGHT - 1) * team < pieces; p += IN_FLIGHT * team) {
        if (stop.reached()) return;
        typename B::Raw raw[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) raw[j] = fetch(p + j * team);
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) multiply_piece<B, ROWS>(raw[j], rows, place(p + j * team), sums);
    }
    for (; p < pieces; p += team) multiply_piece<B, ROWS>(fetch(p), rows, place(p), sums);
}

template <typename B, int ROWS>
__device__ inline void multiply_columns(const nocopy_launch& launch) {
    Tensor out(launch, 0), a(launch, 1), b(launch, 2);
    const uint32_t* d = launch.record.dims;
    const uint64_t m = d[2], n = d[3], k = d[4], bands = (m + ROWS - 1) / ROWS;
    const uint64_t jobs = (uint64_t)d[0] * d[1] * bands * n;
    const float scale = param_f32(launch, 0);
    if (block_stopped(launch)) return;
    TeamStopSign stop{launch};
    for (uint64_t job = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y; job < jobs;
         job += (uint64_t)gridDim.x * blockDim.y) {
        if (stop.reached()) return;
        // Bands of a column follow each other: its weights come from memory once, then from a cache.
        uint64_t rest = job / bands, row = (job - rest * bands) * ROWS;
        uint64_t batch = rest / n, column = rest - batch * n;
        uint64_t b0 = batch / d[1], b1 = batch % d[1];
        const float* rows[ROWS];
        float sums[ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; ++r) rows[r] = a.as<float>() + a.at(b0, b1, min(row + r, m - 1));
        multiply_column<B, ROWS>(launch, rows,
                                 b.as<uint8_t>() + b.at(b0, b1, 0, column) / B::ELEMENTS * B::BYTES, k, sums);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            float sum = team_combine(sums[r], Add());
            if (threadIdx.x == 0 && row + r < m) store(out, out.at(b0, b1, row + r, column), scale * sum);
        }
    }
}

// One row.
NOCOPY_KERNEL(matvec_f32, 256, 4) {
    multiply_columns<F32Words, 1>(launch);
}
NOCOPY_KERNEL(matvec_f16, 256, 4) {
    multiply_columns<F16Words, 1>(launch);
}
NOCOPY_KERNEL(matvec_bf16, 256, 4) {
    multiply_columns<Bf16Words, 1>(launch);
}
NOCOPY_KERNEL(matvec_q8_0, 256, 4) {
    multiply_columns<Q8_0, 1>(launch);
}
NOCOPY_KERNEL(matvec_q4_0, 256, 4) {
    multiply_columns<Q4_0, 1>(launch);
}
NOCOPY_KERNEL(matvec_q4_k, 256, 4) {
    multiply_columns<Q4_K, 1>(launch);
}
NOCOPY_KERNEL(matvec_q5_k, 256, 4) {
    multiply_columns<Q5_K, 1>(launch);
}
NOCOPY_KERNEL(matvec_q6_k, 256, 4) {
    multiply_columns<Q6_K, 1>(launch);
}

// Up to four at a time.
NOCOPY_KERNEL(matvec_few_f32, 256, 3) {
    multiply_columns<F32Words, 4>(launch);
}
NOCOPY_KERNEL(matvec_few_f16, 256, 3) {
    multiply_columns<F16Words, 4>(launch);
}
NOCOPY_KERNEL(matvec_few_bf16, 256, 3) {
    multiply_columns<Bf16Words, 4>(launch);
}
NOCOPY_KERNEL(matvec_few_q8_0, 256, 3) {
    multiply_columns<Q8_0, 4>(launch);
}
NOCOPY_KERNEL(matvec_few_q4_0, 256, 3) {
    multiply_columns<Q4_0, 4>(launch);
}
NOCOPY_KERNEL(matvec_few_q4_k, 256, 3) {
    multiply_columns<Q4_K, 4>(launch);
}
NOCOPY_KERNEL(matvec_few_q5_k, 256, 3) {
    multiply_columns<Q5_K, 4>(launch);
}
NOCOPY_KERNEL(matvec_few_q6_k, 256, 3) {
    multiply_columns<Q6_K, 4>(launch);
}
