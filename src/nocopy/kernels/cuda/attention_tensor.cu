// attention (attention.cu has the formula) of many rows over a session's cache, on tensor cores. A block of 4
// warps takes rows of one head, a warp one or two bands of 16 of them, and walks over the tokens that any of
// its rows sees, 64 at a time, with online softmax; keys and values of the next 64 are on their way
// meanwhile.
//
// Queries and the softmax's weights are rounded to the type of the cache (of a q8_0 cache, which is decoded
// on the way to shared memory, to f16); scores, sums and results are f32. Heads have up to 128 elements, a
// multiple of 8. Blocks with the most tokens come first, as the last of a causal prompt have. Bound:
// arithmetic.
#include "attention.cuh"
#include "mma.cuh"

constexpr uint32_t TENSOR_TOKENS = 64, TENSOR_THREADS = 128, TENSOR_WARPS = TENSOR_THREADS / 32;
constexpr float SCORES_LOG2_E = 1.44269504f;

// The tokens that a block's rows see: of any row, and of every row.
struct BlockTokens {
    int64_t start, stop, all_start, all_stop;

    // `memory` has room for two words of each of the block's rows, at most one a thread.
    __device__ BlockTokens(const nocopy_launch& launch, uint64_t first, uint32_t rows, uint8_t* memory) {
        int64_t *starts = (int64_t*)memory, *stops = starts + rows;
        if (threadIdx.x < rows) {
            Tokens tokens(launch, first + threadIdx.x);
            starts[threadIdx.x] = tokens.start;
            stops[threadIdx.x] = tokens.stop;
        }
        __syncthreads();
        start = NEVER, stop = 0, all_start = 0, all_stop = NEVER;
        for (uint32_t i = threadIdx.x % 32; i < rows; i += 32) {
            if (first + i >= launch.record.dims[0]) break;
            if (stops[i] > starts[i]) start = min(start, starts[i]);
            stop = max(stop, stops[i]);
            all_start = max(all_start, starts[i]);
            all_stop = min(all_stop, stops[i]);
        }
        for (int mask = 16; mask; mask >>= 1) {
            start = min(start, __shfl_xor_sync(0xffffffffu, start, mask));
            stop = max(stop, __shfl_xor_sync(0xffffffffu, stop, mask));
            all_start = max(all_start, __shfl_xor_sync(0xffffffffu, all_start, mask));
            all_stop = min(all_stop, __shfl_xor_sync(0xffffffffu, all_stop, mask));
        }
        __syncthreads();  // all have read; the next job may write
    }

    static constexpr int64_t NEVER = 0x7fffffffffffffff;
};

// How 64 tokens of one group's keys or values come to shared memory; those from `stop` on are zeros. A thread
// has the same words of every token that it fetches.
template <int HEAD, int READING>
struct TokenFetch {
    static constexpr uint32_t WORDS = HEAD / 8, AT_ONCE = TENSOR_THREADS / WORDS;

    const uint8_t* first;  // this thread's word of token 0
    uint64_t row_bytes;
    uint32_t i, word, n;

    __device__ TokenFetch(const Tensor& t, uint64_t group, uint32_t head) : n(head) {
        i = threadIdx.x / WORDS, word = threadIdx.x % WORDS;
        if (READING == READ_Q8_0) {
            first = t.as<uint8_t>() + group * t.strides[1] / 32 * 34 + word / 4 * 34;
            row_bytes = (uint64_t)t.strides[0] / 32 * 34;
        } else {
            first = t.as<uint8_t>() + 2 * (group * t.strides[1] + 8 * word);
            row_bytes = 2 * (uint64_t)t.strides[0];
        }
    }

    __device__ void operator()(uint8_t* to, int64_t token, int64_t stop) const {
        const uint32_t left = (uint32_t)min(stop - token, (int64_t)TENSOR_TOKENS);
        const uint8_t* from = first + (uint64_t)(token + i) * row_bytes;
#pragma unroll
        for (uint32_t j = 0; j < TENSOR_TOKENS / AT_ONCE; ++j, from += AT_ONCE * row_bytes) {
            uint32_t at = i + j * AT_ONCE;
            bool there = at < left && 8 * word < n;
            uint8_t* place = to + swizzled<2 * HEAD>(at, word);
            if (READING != READ_Q8_0) {
                copy_word(place, there ? from : first, there);
                continue;
            }
            float low[4] = {}, high[4] = {};
            if (there) {
                Q8_0::decode(Q8_0::fetch(from, word % 4 * 2), low);
                Q8_0::decode(Q8_0::fetch(from, word % 4 * 2 + 1), high);
            }
            *(Words<4>*)place = {pack_pair<false>(low[0], low[1]), pack_pair<false>(low[2], low[3]),
                                 pack_pair<false>(high[0], high[1]), pack_pair<false>(high[2], high[3])};
        }
    }
};

// Sixteen rows of a warp: their queries, and what online softmax knows of the tokens that they have seen. A
// lane has parts of two rows, 8 apart.
template <int HEAD, bool BF16>
struct Band {
    uint64_t row;  // this lane's first
    int64_t starts[2], stops[2];
    uint32_t queries[HEAD / 16][4];
    float values[HEAD / 8][4], largest[2], sum[2];

    // Scores are products of `scale` times the query.
    __device__ void begin(const nocopy_launch& launch, uint64_t first, uint64_t head, float scale) {
        Tensor q(launch, 1);
        const uint32_t rows = launch.record.dims[0], n = launch.record.dims[2], lane = threadIdx.x % 32;
        row = first + lane / 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            Tokens tokens(launch, row + 8 * i);
            starts[i] = tokens.start, stops[i] = tokens.stop;
            largest[i] = LOWEST, sum[i] = 0.0f;
        }
#pragma unroll
        for (uint32_t i = 0; i < HEAD / 8; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) values[i][j] = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < HEAD / 16; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                uint32_t at = 16 * i + j / 2 * 8 + lane % 4 * 2;
                bool there = row + j % 2 * 8 < rows && at < n;
                const float* from = q.as<float>() + (there ? q.at(row + j % 2 * 8, head) + at : 0);
                queries[i][j] = there ? pack_pair<BF16>(from[0] * scale, from[1] * scale) : 0;
            }
    }

    // Tokens that a row does not see weigh nothing.
    __device__ void mask(float (&scores)[TENSOR_TOKENS / 8][4], int64_t token) const {
        int32_t low[2], high[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            low[i] = (int32_t)min(max(starts[i] - token, (int64_t)0), (int64_t)TENSOR_TOKENS);
            high[i] = (int32_t)min(max(stops[i] - token, (int64_t)0), (int64_t)TENSOR_TOKENS);
        }
#pragma unroll
        for (uint32_t j = 0; j < TENSOR_TOKENS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                int32_t at = (int32_t)(8 * j + threadIdx.x % 4 * 2 + e % 2);
                if (at < low[e / 2] || at >= high[e / 2])
                    scores[j][e] = __uint_as_float(0xff800000u);  // -infinity
            }
    }

    // Scores, as powers of two, to weights relative to the largest so far.
    __device__ void weigh(float (&scores)[TENSOR_TOKENS / 8][4]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float top = largest[i];
#pragma unroll
            for (uint32_t j = 0; j < TENSOR_TOKENS / 8; ++j)
                top = fmaxf(fmaxf(top, scores[j][2 * i]), scores[j][2 * i + 1]);  // a NaN weighs NaN below
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            float keep = fast_exp2(largest[i] - top), total = 0.0f;
            largest[i] = top;
#pragma unroll
            for (uint32_t j = 0; j < TENSOR_TOKENS / 8; ++j)
#pragma unroll
                for (int e = 2 * i; e < 2 * i + 2; ++e) {
                    scores[j][e] = fast_exp2(scores[j][e] - top);
                    total += scores[j][e];
                }
            sum[i] = fmaf(sum[i], keep, total);
#pragma unroll
            for (uint32_t j = 0; j < HEAD / 8; ++j) values[j][2 * i] *= keep, values[j][2 * i + 1] *= keep;
        }
    }

    __device__ void finish(const nocopy_launch& launch, uint64_t head) {
        Tensor out(launch, 0);
        const uint32_t rows = launch.record.dims[0], n = launch.record.dims[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float total = sum[i];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            if (row + 8 * i >= rows) continue;
            bool empty = starts[i] >= stops[i];
            float part = 1.0f / total;
#pragma unroll
            for (uint32_t j = 0; j < HEAD / 8; ++j) {
                uint32_t at = 8 * j + threadIdx.x % 4 * 2;
                if (at >= n) break;
                float low = empty ? 0.0f : values[j][2 * i] * part,
                      high = empty ? 0.0f : values[j][2 * i + 1] * part;
                uint64_t to = out.at(row + 8 * i, head) + at;
                if (out.dtype == NOCOPY_F32) {
                    out.as<float>()[to] = low, out.as<float>()[to + 1] = high;
                } else {
                    *(uint32_t*)(out.as<uint16_t>() + to) =
                        out.dtype == NOCOPY_BF16 ? pack_pair<true>(low, high) : pack_pair<false>(low, high);
                }
            }
        }
    }
};

template <int HEAD, int READING, int BANDS>
struct TensorWalk {
    static constexpr bool BF16 = READING == READ_BF16;
    static constexpr uint32_t TILE_BYTES = TENSOR_TOKENS * HEAD * 2, ROWS = 16 * BANDS * TENSOR_WARPS;

    TokenFetch<HEAD, READING> fetch_keys, fetch_values;
    float softcap, uncap;
    Band<HEAD, BF16> bands[BANDS];

    __device__ TensorWalk(const nocopy_launch& launch, uint64_t first, uint64_t head, uint64_t group)
        : fetch_keys(Tensor(launch, 2), group, launch.record.dims[2]),
          fetch_values(Tensor(launch, 3), group, launch.record.dims[2]) {
        softcap = param_f32(launch, 1), uncap = 1.0f / softcap;
        // Scores are powers of two; a cap wants them as they are.
        float scale = param_f32(launch, 0) * (softcap == 0.0f ? SCORES_LOG2_E : 1.0f);
#pragma unroll
        for (int b = 0; b < BANDS; ++b)
            bands[b].begin(launch, first + 16 * (threadIdx.x / 32 * BANDS + b), head, scale);
    }

    __device__ void fetch(uint8_t* memory, int64_t token, int64_t stop, uint32_t stage) const {
        uint8_t* to = memory + stage * 2 * TILE_BYTES;
        if (token < stop) {
            fetch_keys(to, token, stop);
            fetch_values(to + TILE_BYTES, token, stop);
        }
        end_copies();
    }

    // One tile of tokens, from `token` on; `whole` if every row sees all of them.
    __device__ void tile(const uint8_t* keys, int64_t token, bool whole) {
        const uint32_t lane = threadIdx.x % 32;
        float scores[BANDS][TENSOR_TOKENS / 8][4] = {};
#pragma unroll
        for (uint32_t i = 0; i < HEAD / 16; ++i)
#pragma unroll
            for (uint32_t j = 0; j < TENSOR_TOKENS / 16; ++j) {
                uint32_t k[4];
                load_matrices(
                    k, keys + swizzled<2 * HEAD>(16 * j + lane / 16 * 8 + lane % 8, 2 * i + lane / 8 % 2));
#pragma unroll
                for (int b = 0; b < BANDS; ++b) {
                    multiply_fragments<BF16>(scores[b][2 * j], bands[b].queries[i], k[0], k[1]);
                    multiply_fragments<BF16>(scores[b][2 * j + 1], bands[b].queries[i], k[2], k[3]);
                }
            }
#pragma unroll
        for (int b = 0; b < BANDS; ++b) {
            if (softcap != 0.0f)
#pragma unroll
                for (uint32_t j = 0; j < TENSOR_TOKENS / 8; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        scores[b][j][e] = SCORES_LOG2_E * softcap * fast_tanh(scores[b][j][e] * uncap);
            if (!whole) bands[b].mask(scores[b], token);
            bands[b].weigh(scores[b]);
        }
        const uint8_t* v_tile = keys + TILE_BYTES;
#pragma unroll
        for (uint32_t i = 0; i < TENSOR_TOKENS / 16; ++i) {
            uint32_t weights[BANDS][4];
#pragma unroll
            for (int b = 0; b < BANDS; ++b)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    weights[b][e] = pack_pair<BF16>(scores[b][2 * i + e / 2][e % 2 * 2],
                                                    scores[b][2 * i + e / 2][e % 2 * 2 + 1]);
#pragma unroll
            for (uint32_t j = 0; j < HEAD / 16; ++j) {
                uint32_t v[4];
                load_matrices_transposed(v,
                                         v_tile + swizzled<2 * HEAD>(16 * i + lane % 16, 2 * j + lane / 16));
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
        BlockTokens seen(launch, first, Walk::ROWS, words);
        Walk walk(launch, first, head, head / (heads / launch.record.dims[4]));
        walk.fetch(memory, seen.start, seen.stop, 0);
        uint32_t stage = 0;
        StopSign stop{launch, 64};
        for (int64_t token = seen.start; token < seen.stop; token += TENSOR_TOKENS, stage ^= 1) {
            walk.fetch(memory, token + TENSOR_TOKENS, seen.stop, stage ^ 1);
            wait_copies<1>();
            if (__syncthreads_or(stop.reached())) return;
            bool whole = seen.all_start <= token && token + TENSOR_TOKENS <= seen.all_stop;
            walk.tile(memory + stage * 2 * Walk::TILE_BYTES, token, whole);
            __syncthreads();  // all have read; the tile after the next may come
        }
        wait_copies<0>();
#pragma unroll
        for (int b = 0; b < BANDS; ++b) walk.bands[b].finish(launch, head);
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
