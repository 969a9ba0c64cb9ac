// A tile of a matrix product on plain f32 units: C[M,N] = A[M,K] B[K,N], for operands that are cheap to fetch
// once and dear to fetch often, such as host memory behind a bus. A block of 256 threads owns ROWS x COLUMNS
// of C; it stages DEPTH of K at a time in shared memory, where each element is read by many threads, and each
// thread keeps a patch of C in registers. The next stage is fetched into registers while this one is
// multiplied. From where an element comes (a strided matrix, an image patch) is the caller's.
#pragma once

#include "record.cuh"

constexpr uint32_t TILE_THREADS = 256;

// V consecutive floats of shared memory, moved as one word.
template <int V>
struct alignas(4 * V) Floats {
    float v[V];
};

template <int SIDE, int DEPTH_, int PATCH_>
struct TileShape {
    static constexpr int ROWS = SIDE, COLUMNS = SIDE, DEPTH = DEPTH_, PATCH = PATCH_;
    static constexpr int TEAM = SIDE / PATCH;             // threads along a side
    static constexpr int VECTOR = PATCH < 4 ? PATCH : 4;  // floats in one shared memory read
    static constexpr int STRIDE = SIDE + 4;               // keeps reads aligned, spreads writes over banks
    static constexpr int LOADS = SIDE * DEPTH / TILE_THREADS;
    static_assert(TEAM * TEAM == TILE_THREADS, "every thread has a patch");
};

using LargeTile = TileShape<128, 16, 8>;
using MediumTile = TileShape<64, 16, 4>;
using SmallTile = TileShape<32, 32, 2>;

template <typename S>
struct alignas(16) Stage {
    float a[S::DEPTH][S::STRIDE];
    float b[S::DEPTH][S::STRIDE];
};

// Where the j-th element that this thread fetches lies in a stage: consecutive threads walk along K if the
// operand's elements do so in memory, along its other axis if not.
template <typename S>
struct Slot {
    uint32_t side, depth;

    __device__ Slot(int j, bool along_k) {
        uint32_t e = threadIdx.x + j * TILE_THREADS;
        side = along_k ? e / S::DEPTH : e % S::ROWS;
        depth = along_k ? e % S::DEPTH : e / S::ROWS;
    }
};

// The j-th group of VECTOR columns (or rows) of a thread's patch.
template <typename S>
__device__ inline int patch_at(int thread, int j) {
    return (j / S::VECTOR) * (S::VECTOR * S::TEAM) + thread * S::VECTOR + j % S::VECTOR;
}

template <typename S>
__device__ inline void multiply_stage(const Stage<S>& stage, float (&acc)[S::PATCH][S::PATCH], int ty,
                                      int tx) {
    using Vector = Floats<S::VECTOR>;
#pragma unroll
    for (int k = 0; k < S::DEPTH; ++k) {
        float a[S::PATCH], b[S::PATCH];
#pragma unroll
        for (int j = 0; j < S::PATCH; j += S::VECTOR) {
            *(Vector*)&a[j] = *(const Vector*)&stage.a[k][patch_at<S>(ty, j)];
            *(Vector*)&b[j] = *(const Vector*)&stage.b[k][patch_at<S>(tx, j)];
        }
#pragma unroll
        for (int i = 0; i < S::PATCH; ++i)
#pragma unroll
            for (int j = 0; j < S::PATCH; ++j) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
    }
}

// Multiplies one tile whose first row and column are (row, column) of an M x N product over k terms.
// a(row, k) and b(k, column) give elements that exist; put(row, column, sum) takes results that exist.
template <typename S, typename A, typename B, typename Put>
__device__ inline void multiply_tile(const nocopy_launch& launch, Stage<S>& stage, uint64_t row,
                                     uint64_t column, uint64_t m, uint64_t n, uint64_t k, A a, bool a_along_k,
                                     B b, bool b_along_k, Put put) {
    const int ty = threadIdx.x / S::TEAM, tx = threadIdx.x % S::TEAM;
    float acc[S::PATCH][S::PATCH] = {};
    float next_a[S::LOADS], next_b[S::LOADS];
    auto fetch = [&](uint64_t k0) {
#pragma unroll
        for (int j = 0; j < S::LOADS; ++j) {
            Slot<S> at(j, a_along_k);
            next_a[j] = row + at.side < m && k0 + at.depth < k ? a(row + at.side, k0 + at.depth) : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < S::LOADS; ++j) {
            Slot<S> at(j, b_along_k);
            next_b[j] = column + at.side < n && k0 + at.depth < k ? b(k0 + at.depth, column + at.side) : 0.0f;
        }
    };
    StopSign stop{launch, 1024};
    fetch(0);
    for (uint64_t k0 = 0; k0 < k; k0 += S::DEPTH) {
#pragma unroll
        for (int j = 0; j < S::LOADS; ++j) {
            Slot<S> at_a(j, a_along_k), at_b(j, b_along_k);
            stage.a[at_a.depth][at_a.side] = next_a[j];
            stage.b[at_b.depth][at_b.side] = next_b[j];
        }
        if (__syncthreads_or(stop.reached())) return;
        if (k0 + S::DEPTH < k) fetch(k0 + S::DEPTH);
        multiply_stage<S>(stage, acc, ty, tx);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < S::PATCH; ++i) {
        uint64_t r = row + patch_at<S>(ty, i);
#pragma unroll
        for (int j = 0; j < S::PATCH; ++j) {
            uint64_t c = column + patch_at<S>(tx, j);
            if (r < m && c < n) put(r, c, acc[i][j]);
        }
    }
}

// Where a tile of a batch of products lies.
struct TilePlace {
    uint64_t batch, row, column;
};

// Tiles in bands of eight rows, so that those in flight together share operands in the L2 cache.
template <typename S>
__device__ inline TilePlace tile_place(uint64_t tile, uint64_t m, uint64_t n) {
    constexpr uint64_t BAND = 8;
    uint64_t rows = (m + S::ROWS - 1) / S::ROWS, columns = (n + S::COLUMNS - 1) / S::COLUMNS;
    uint64_t batch = tile / (rows * columns);
    uint64_t rest = tile - batch * rows * columns;
    uint64_t band = rest / (BAND * columns);
    uint64_t height = min(rows - band * BAND, BAND);
    rest -= band * BAND * columns;
    return {batch, (band * BAND + rest % height) * S::ROWS, rest / height * S::COLUMNS};
}

template <typename S>
__device__ inline uint64_t tile_count(uint64_t batches, uint64_t m, uint64_t n) {
    return batches * ((m + S::ROWS - 1) / S::ROWS) * ((n + S::COLUMNS - 1) / S::COLUMNS);
}
