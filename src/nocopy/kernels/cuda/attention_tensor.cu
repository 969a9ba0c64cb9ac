// attention (attention.cu has the formula) of many rows over a session's cache, on tensor cores. A block of 4
// warps takes rows of one head, a warp one or two bands of 16 of them, and walks over the tokens that any of
// its rows sees, 64 at a time, with online softmax; keys and values of the next 64 are on their way
// meanwhile. Blocks with the most tokens come first, as the last of a causal prompt have. Bound: arithmetic.
#include "attention_tensor.cuh"

constexpr uint32_t TENSOR_THREADS = 128, TENSOR_WARPS = TENSOR_THREADS / 32;

template <int HEAD, int READING, int BANDS>
struct TensorWalk {
    static constexpr bool BF16 = READING == READ_BF16;
    static constexpr uint32_t TILE_BYTES = TileOf<HEAD>::BYTES, ROWS = 16 * BANDS * TENSOR_WARPS;

    TokenFetch<HEAD, READING, TENSOR_THREADS> fetch_keys, fetch_values;
    float softcap, uncap;
    Band<HEAD, BF16> bands[BANDS];
    uint32_t queries[BANDS][HEAD / 16][4];

    __device__ TensorWalk(const nocopy_launch& launch, const RowTokens& tokens, uint64_t block, uint64_t head,
                          uint64_t group)
        : fetch_keys(Tensor(launch, 2), group, launch.record.dims[2]),
          fetch_values(Tensor(launch, 3), group, launch.record.dims[2]) {
        softcap = param_f32(launch, 1), uncap = 1.0f / softcap;
        const float scale = query_scale(launch);
#pragma unroll
        for (int b = 0; b < BANDS; ++b) begin_band(launch, tokens, block, b, head, scale);
    }

    __device__ void begin_band(const nocopy_launch& launch, const RowTokens& tokens, uint64_t block, int b,
                               uint64_t head, float scale) {
        Tensor q(launch, 1);
        const uint32_t rows = launch.record.dims[0], n = launch.record.dims[2], lane = threadIdx.x % 32;
        bands[b].begin(tokens, block, 16 * (threadIdx.x / 32 * BANDS + b));
        const uint64_t row = bands[b].row;
#pragma unroll
        for (uint32_t i = 0; i < HEAD / 16; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                uint32_t at = 16 * i + j / 2 * 8 + lane % 4 * 2;
                bool there = row + j % 2 * 8 < rows && at < n;
                const float* query = q.as<float>() + (there ? q.at(row + j % 2 * 8, head) + at : 0);
                const Words<2> pair = there ? *(const Words<2>*)query : Words<2>{};
                queries[b][i][j] =
                    pack_pair<BF16>(__uint_as_float(pair.v[0]) * scale, __uint_as_float(pair.v[1]) * scale);
            }
    }

    __device__ void fetch(uint8_t* memory, int32_t token, int32_t stop, uint32_t stage) const {
        uint8_t* to = memory + stage * 2 * TILE_BYTES;
        if (token < stop) {
            fetch_keys(to, token, stop);
            fetch_values(to + TILE_BYTES, token, stop);
        }
        end_copies();
    }

    // One tile of tokens, from `token` on; `whole` if every row sees all of them.
    __device__ void tile(const uint8_t* keys, int32_t token, bool whole) {
        const uint32_t lane = threadIdx.x % 32;
        float scores[BANDS][TENSOR_TOKENS / 8][4] = {};
#pragma unroll
        for (uint32_t i = 0; i < HEAD / 16; ++i)
#pragma unroll
            for (uint32_t j = 0; j < TENSOR_TOKENS / 16; ++j) {
                uint32_t k[4];
                load_matrices(
                    k, keys + TileOf<HEAD>::place(16 * j + lane / 16 * 8 + lane % 8, 2 * i + lane / 8 % 2));
#pragma unroll
                for (int b = 0; b < BANDS; ++b) {
                    multiply_fragments<BF16>(scores[b][2 * j], queries[b][i], k[0], k[1]);
                    multiply_fragments<BF16>(scores[b][2 * j + 1], queries[b][i], k[2], k[3]);
                }
            }
#pragma unroll
        for (int b = 0; b < BANDS; ++b) {
            if (softcap != 0.0f) bands[b].bend(scores[b], softcap, uncap);
            if (!whole) bands[b].mask(scores[b], token);
            bands[b].weigh(scores[b]);
        }
        const uint8_t* v_tile = keys + TILE_BYTES;
#pragma unroll
        for (uint32_t i = 0; i < TENSOR_TOKENS / 16; ++i) {
            uint32_t weights[BANDS][4];
#pragma unroll
            for (int b = 0; b < BANDS; ++b) bands[b].round(weights[b], scores[b], i);
#pragma unroll
            for (uint32_t j = 0; j < HEAD / 16; ++j) {
                uint32_t v[4];
                load_matrices_transposed(v,
                                         v_tile + TileOf<HEAD>::place(16 * i + lane % 16, 2 * j + lane / 16));
#pragma unroll
                for (int b = 0; b < BANDS; ++b) {
                    multiply_fragments<BF16>(bands[b].values[2 * j], weights[b], v[0], v[1]);
                    multiply_fragments<BF16>(bands[b].values[2 * j + 1], weights[b], v[2], v[3]);
                }
            }
        }
    }
};

template <int HEAD, int READING, int BANDS>
__device__ inline void attend_tensor(const nocopy_launch& launch) {
    using Walk = TensorWalk<HEAD, READING, BANDS>;
    const uint64_t rows = launch.record.dims[0], heads = launch.record.dims[1];
    const uint64_t blocks = (rows + Walk::ROWS - 1) / Walk::ROWS, jobs = blocks * heads;
    uint8_t *memory = dynamic_shared(), *words = memory + 4 * Walk::TILE_BYTES;
    for (uint64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
        if (block_stopped(launch)) return;
        uint64_t first = (blocks - 1 - job / heads) * Walk::ROWS, head = job % heads;
        const RowTokens tokens(launch, first, Walk::ROWS, words);
        const SeenTokens seen(tokens, 0, Walk::ROWS);
        Walk walk(launch, tokens, first, head, head / (heads / launch.record.dims[4]));
        walk.fetch(memory, seen.start, seen.stop, 0);
        uint32_t stage = 0;
        StopSign stop{launch, 64};
        for (int32_t token = seen.start; token < seen.stop; token += TENSOR_TOKENS, stage ^= 1) {
            walk.fetch(memory, token + TENSOR_TOKENS, seen.stop, stage ^ 1);
            wait_copies<1>();
            if (__syncthreads_or(stop.reached())) return;
            walk.tile(memory + stage * 2 * Walk::TILE_BYTES, token, seen.all(token));
            __syncthreads();  // all have read; the tile after the next may come
        }
        wait_copies<0>();
#pragma unroll
        for (int b = 0; b < BANDS; ++b) walk.bands[b].finish(launch, head);
        __syncthreads();  // all have read what rows see; the next job may write
    }
}

NOCOPY_KERNEL(attention_tensor_64_f16, 128, 2) {
    attend_tensor<64, READ_F16, 2>(launch);
}
NOCOPY_KERNEL(attention_tensor_64_bf16, 128, 2) {
    attend_tensor<64, READ_BF16, 2>(launch);
}
NOCOPY_KERNEL(attention_tensor_64_q8_0, 128, 2) {
    attend_tensor<64, READ_Q8_0, 2>(launch);
}
NOCOPY_KERNEL(attention_tensor_128_f16, 128, 2) {
    attend_tensor<128, READ_F16, 1>(launch);
}
NOCOPY_KERNEL(attention_tensor_128_bf16, 128, 2) {
    attend_tensor<128, READ_BF16, 1>(launch);
}
NOCOPY_KERNEL(attention_tensor_128_q8_0, 128, 2) {
    attend_tensor<128, READ_Q8_0, 1>(launch);
}
