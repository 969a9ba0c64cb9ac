// Products of many rows with a model's weights on tensor cores: out[m,n] = scale * sum over k of a[m,k]
// w[n,k], where `a` has been rounded to f16 or bf16 and w is of the same type (or decoded to it), summed in
// f32. If the record's function is 1, the product is added to what out holds.
//
// tensor_product_*: blocks of 8 warps take tiles of 128 x 128, a warp 64 x 32 of it; four stages of 32 of k
// are on their way to shared memory while one is multiplied. k is a multiple of 8; rows of a and w begin on
// 16-byte words. Bound: arithmetic.
//
// tensor_product_few_*: up to 64 rows, which leave no time to decode a weight twice. A block takes 16
// columns, and each of its 4 warps the slices w, w + 4, ... of 128 of k, which it decodes into shared memory
// of its own; at the end the warps' sums meet. Bound: the bytes of the weight.
#include "mma.cuh"
#include "tile.cuh"

struct TensorTile {
    static constexpr int ROWS = 128, COLUMNS = 128, DEPTH = 32, STAGES = 4;
    static constexpr int ROW_BYTES = 2 * DEPTH, WORDS = DEPTH / 8;
    static constexpr int STAGE_BYTES = (ROWS + COLUMNS) * ROW_BYTES;
    static constexpr int WARP_ROWS = 64, WARP_COLUMNS = 32, WARPS_ACROSS = COLUMNS / WARP_COLUMNS;
};

// Writes a pair of sums to neighbouring columns, or adds it.
struct ProductOut {
    Tensor out;
    uint64_t m, n;
    float scale;
    bool add, pairs;

    __device__ ProductOut(const nocopy_launch& launch) : out(launch, 0) {
        m = launch.record.dims[2], n = launch.record.dims[3];
        scale = param_f32(launch, 0);
        add = launch.record.function == 1;
        pairs = n % 2 == 0 && out.strides[2] % 2 == 0 && (uint64_t)out.base % 8 == 0;
    }

    __device__ void put(uint64_t row, uint64_t column, float first, float second) const {
        if (row >= m || column >= n) return;
        float* at = out.as<float>() + row * out.strides[2] + column;
        first *= scale, second *= scale;
        if (pairs) {
            Floats<2> both = add ? *(Floats<2>*)at : Floats<2>{0.0f, 0.0f};
            *(Floats<2>*)at = {both.v[0] + first, both.v[1] + second};
            return;
        }
        at[0] = add ? at[0] + first : first;
        if (column + 1 < n) at[1] = add ? at[1] + second : second;
    }
};

// Rows from `first` on of an operand [count, k], from element `at` of k on, to a stage.
template <int SIDE>
__device__ inline void fetch_rows(uint8_t* stage, const Tensor& t, uint64_t stride, uint64_t first,
                                  uint64_t count, uint64_t at, uint64_t k) {
    using T = TensorTile;
#pragma unroll
    for (int i = 0; i < SIDE * T::WORDS / (int)TILE_THREADS; ++i) {
        uint32_t e = threadIdx.x + i * TILE_THREADS, row = e / T::WORDS, word = e % T::WORDS;
        bool there = first + row < count && at + 8 * word < k;
        const uint16_t* from = t.as<uint16_t>() + (there ? (first + row) * stride + at + 8 * word : 0);
        copy_word(stage + swizzled<T::ROW_BYTES>(row, word), from, there);
    }
}

template <bool BF16>
__device__ inline void multiply_tensor_stage(const uint8_t* stage, float (&acc)[4][4][4], uint32_t warp_row,
                                             uint32_t warp_column) {
    using T = TensorTile;
    const uint32_t lane = threadIdx.x % 32;
    const uint8_t* weights = stage + T::ROWS * T::ROW_BYTES;
#pragma unroll
    for (uint32_t step = 0; step < T::DEPTH / 16; ++step) {
        uint32_t a[4][4], b[2][4];
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
            load_matrices(
                a[i], stage + swizzled<T::ROW_BYTES>(warp_row + 16 * i + lane % 16, 2 * step + lane / 16));
#pragma unroll
        for (uint32_t j = 0; j < 2; ++j)
            load_matrices(b[j],
                          weights + swizzled<T::ROW_BYTES>(warp_column + 16 * j + lane / 16 * 8 + lane % 8,
                                                           2 * step + lane / 8 % 2));
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j)
                multiply_fragments<BF16>(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

template <bool BF16>
__device__ inline void tensor_product(const nocopy_launch& launch) {
    using T = TensorTile;
    Tensor a(launch, 1), w(launch, 2);
    ProductOut sums(launch);
    const uint64_t k = launch.record.dims[4], steps = (k + T::DEPTH - 1) / T::DEPTH;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t warp_row = warp / T::WARPS_ACROSS * T::WARP_ROWS,
                   warp_column = warp % T::WARPS_ACROSS * T::WARP_COLUMNS;
    uint8_t* memory = dynamic_shared();
    const uint64_t tiles = tile_count<T>(1, sums.m, sums.n);
    for (uint64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        if (block_stopped(launch)) return;
        TilePlace p = tile_place<T>(tile, sums.m, sums.n);
        auto fetch = [&](uint64_t step) {
            uint8_t* stage = memory + step % T::STAGES * T::STAGE_BYTES;
            if (step < steps) {
                fetch_rows<T::ROWS>(stage, a, a.strides[2], p.row, sums.m, step * T::DEPTH, k);
                fetch_rows<T::COLUMNS>(stage + T::ROWS * T::ROW_BYTES, w, w.strides[3], p.column, sums.n,
                                       step * T::DEPTH, k);
            }
            end_copies();
        };
        float acc[4][4][4] = {};
        for (int step = 0; step < T::STAGES - 1; ++step) fetch(step);
        for (uint64_t step = 0; step < steps; ++step) {
            wait_copies<T::STAGES - 2>();
            __syncthreads();  // all have this stage, and are done with the one that is fetched next
            fetch(step + T::STAGES - 1);
            multiply_tensor_stage<BF16>(memory + step % T::STAGES * T::STAGE_BYTES, acc, warp_row,
                                        warp_column);
        }
        wait_copies<0>();
        __syncthreads();  // the next tile may be fetched
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) {
                uint64_t row = p.row + warp_row + 16 * i + lane / 4,
                         column = p.column + warp_column + 8 * j + lane % 4 * 2;
                sums.put(row, column, acc[i][j][0], acc[i][j][1]);
                sums.put(row + 8, column, acc[i][j][2], acc[i][j][3]);
            }
    }
}

NOCOPY_KERNEL(tensor_product_f16, 256, 2) {
    tensor_product<false>(launch);
}
NOCOPY_KERNEL(tensor_product_bf16, 256, 2) {
    tensor_product<true>(launch);
}

constexpr uint32_t SLICE = 128;  // elements of k that a warp takes at a time
constexpr uint32_t SLICE_BYTES = 2 * SLICE;
constexpr uint32_t FEW_COLUMNS = 16;
constexpr uint32_t FEW_WARPS = 4;

// How a warp puts a slice of 16-bit weights into shared memory.
struct HalfSlice {
    static __device__ void put(uint8_t* to, const Tensor& w, uint64_t column, uint64_t n, uint64_t at,
                               uint64_t k) {
        for (uint32_t e = threadIdx.x % 32; e < FEW_COLUMNS * SLICE / 8; e += 32) {
            uint32_t c = e / (SLICE / 8), word = e % (SLICE / 8);
            bool there = column + c < n && at + 8 * word < k;
            uint64_t from = there ? (column + c) * w.strides[3] + at + 8 * word : 0;
            copy_word(to + swizzled<SLICE_BYTES>(c, word), w.as<uint16_t>() + from, there);
        }
    }
};

// The same for blocks, which are decoded to bf16.
template <typename T>
struct BlockSlice {
    static constexpr uint32_t ITEMS = SLICE / (4 * T::QUADS);  // that lanes decode, of each column

    static __device__ void put(uint8_t* to, const Tensor& w, uint64_t column, uint64_t n, uint64_t at,
                               uint64_t k) {
#pragma unroll 4
        for (uint32_t e = threadIdx.x % 32; e < FEW_COLUMNS * ITEMS; e += 32) {
            uint32_t c = e / ITEMS, item = e % ITEMS;
            uint64_t first = at + item / T::LANES * T::ELEMENTS;  // of a block of 32
            uint32_t lane = item % T::LANES, skip = item / T::LANES * T::ELEMENTS;
            if (T::ELEMENTS > (int)SLICE) {
                first = at / T::ELEMENTS * T::ELEMENTS;
                lane = item + (uint32_t)(at % T::ELEMENTS) / (4 * T::QUADS);
                skip = 0u - (uint32_t)(at % T::ELEMENTS);
            }
            float y[4 * T::QUADS] = {};
            if (first < k) {
                uint64_t row = min(column + c, n - 1);
                const uint8_t* block =
                    w.as<uint8_t>() + (row * w.strides[3] + first) / T::ELEMENTS * T::BYTES;
                T::decode(T::fetch(block, lane), y);
            }
#pragma unroll
            for (uint32_t quad = 0; quad < T::QUADS; ++quad) {
                uint32_t place = skip + T::start(lane) + quad * T::GAP;
                Words<2> pairs = {pack_pair<true>(y[4 * quad], y[4 * quad + 1]),
                                  pack_pair<true>(y[4 * quad + 2], y[4 * quad + 3])};
                *(Words<2>*)(to + swizzled<SLICE_BYTES>(c, place / 8) + place % 8 * 2) = pairs;
            }
        }
    }
};

template <bool BF16, typename Slice>
__device__ inline void tensor_product_few(const nocopy_launch& launch) {
    Tensor a(launch, 1), w(launch, 2);
    ProductOut sums(launch);
    const uint64_t k = launch.record.dims[4];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t bands = (uint32_t)(sums.m + 15) / 16;
    const uint32_t warp_bytes = (16 * bands + FEW_COLUMNS) * SLICE_BYTES;
    uint8_t* rows = dynamic_shared() + warp * warp_bytes;
    uint8_t* weights = rows + 16 * bands * SLICE_BYTES;
    for (uint64_t column = blockIdx.x * (uint64_t)FEW_COLUMNS; column < sums.n;
         column += gridDim.x * (uint64_t)FEW_COLUMNS) {
        if (block_stopped(launch)) return;
        float acc[4][2][4] = {};
        for (uint64_t at = warp * SLICE; at < k; at += FEW_WARPS * SLICE) {
            for (uint32_t e = lane; e < 16 * bands * SLICE / 8; e += 32) {
                uint32_t row = e / (SLICE / 8), word = e % (SLICE / 8);
                bool there = row < sums.m && at + 8 * word < k;
                uint64_t from = there ? row * (uint64_t)a.strides[2] + at + 8 * word : 0;
                copy_word(rows + swizzled<SLICE_BYTES>(row, word), a.as<uint16_t>() + from, there);
            }
            Slice::put(weights, w, column, sums.n, at, k);
            end_copies();
            wait_copies<0>();
            __syncwarp();
#pragma unroll
            for (uint32_t step = 0; step < SLICE / 16; ++step) {
                uint32_t b[4];
                load_matrices(
                    b, weights + swizzled<SLICE_BYTES>(lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    if (i >= bands) break;
                    uint32_t x[4];
                    load_matrices(x, rows + swizzled<SLICE_BYTES>(16 * i + lane % 16, 2 * step + lane / 16));
                    multiply_fragments<BF16>(acc[i][0], x, b[0], b[1]);
                    multiply_fragments<BF16>(acc[i][1], x, b[2], b[3]);
                }
            }
            __syncwarp();  // all have read; the next slice may come
        }
        // A warp's sums, in its own memory: [16 * bands, 16].
        float* own = (float*)rows;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            if (i >= bands) break;
#pragma unroll
            for (uint32_t e = 0; e < 8; ++e)
                own[(16 * i + lane / 4 + e / 2 % 2 * 8) * FEW_COLUMNS + e / 4 * 8 + lane % 4 * 2 + e % 2] =
                    acc[i][e / 4][e % 4];
        }
        __syncthreads();
        for (uint32_t e = threadIdx.x; e < bands * 16 * FEW_COLUMNS / 2; e += blockDim.x) {
            float first = 0.0f, second = 0.0f;
            for (uint32_t other = 0; other < FEW_WARPS; ++other) {
                const float* at = (const float*)(dynamic_shared() + other * warp_bytes) + 2 * e;
                first += at[0], second += at[1];
            }
            sums.put(2 * e / FEW_COLUMNS, column + 2 * e % FEW_COLUMNS, first, second);
        }
        __syncthreads();  // all have read; the next columns may come
    }
}

NOCOPY_KERNEL(tensor_product_few_f16, 128, 2) {
    tensor_product_few<false, HalfSlice>(launch);
}
NOCOPY_KERNEL(tensor_product_few_bf16, 128, 2) {
    tensor_product_few<true, HalfSlice>(launch);
}
NOCOPY_KERNEL(tensor_product_few_q8_0, 128, 2) {
    tensor_product_few<true, BlockSlice<Q8_0>>(launch);
}
NOCOPY_KERNEL(tensor_product_few_q4_0, 128, 2) {
    tensor_product_few<true, BlockSlice<Q4_0>>(launch);
}
NOCOPY_KERNEL(tensor_product_few_q4_k, 128, 2) {
    tensor_product_few<true, BlockSlice<Q4_K>>(launch);
}
NOCOPY_KERNEL(tensor_product_few_q5_k, 128, 2) {
    tensor_product_few<true, BlockSlice<Q5_K>>(launch);
}
NOCOPY_KERNEL(tensor_product_few_q6_k, 128, 2) {
    tensor_product_few<true, BlockSlice<Q6_K>>(launch);
}
