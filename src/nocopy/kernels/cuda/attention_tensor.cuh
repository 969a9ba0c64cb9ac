// What kernels of attention of many rows on tensor cores share: which tokens rows see, how they come to
// shared memory, and sixteen rows of a warp. Queries and the softmax's weights are rounded to the type of the
// cache (of a q8_0 cache, which is decoded on the way to shared memory, to f16); scores, sums and results are
// f32. Heads have up to 128 elements, a multiple of 8; tokens are fewer than 2^31 - 64.
#pragma once

#include "attention.cuh"
#include "mma.cuh"

constexpr int32_t TENSOR_TOKENS = 64;  // of a tile
constexpr float SCORES_LOG2_E = 1.44269504f;
constexpr float SLACK = 8.0f;  // powers of two by which a weight may be larger than 1

// What queries are multiplied with: scores are powers of two; a cap wants them as they are.
__device__ inline float query_scale(const nocopy_launch& launch) {
    return param_f32(launch, 0) * (param_f32(launch, 1) == 0.0f ? SCORES_LOG2_E : 1.0f);
}

// The tokens that each row of a block sees, in shared memory: they are read once.
struct RowTokens {
    int32_t *starts, *stops;
    uint32_t count;  // of the block's rows, those that there are

    // `memory` has room for two words a row; the block has at least a thread for each.
    __device__ RowTokens(const nocopy_launch& launch, uint64_t first, uint32_t rows, uint8_t* memory)
        : starts((int32_t*)memory), stops((int32_t*)memory + rows) {
        count = (uint32_t)min((uint64_t)rows, launch.record.dims[0] - first);
        if (threadIdx.x < rows) {
            const Tokens tokens(launch, first + threadIdx.x);
            starts[threadIdx.x] = (int32_t)tokens.start, stops[threadIdx.x] = (int32_t)tokens.stop;
        }
        __syncthreads();
    }
};

// The tokens that some of them see: any of those rows, and every one.
struct SeenTokens {
    int32_t start = NEVER, stop = 0, all_start = 0, all_stop = NEVER;

    __device__ SeenTokens(const RowTokens& tokens, uint32_t first, uint32_t rows) {
        const uint32_t end = min(first + rows, tokens.count);
        for (uint32_t row = first + threadIdx.x % 32; row < end; row += 32) {
            const int32_t own_start = tokens.starts[row], own_stop = tokens.stops[row];
            if (own_stop > own_start) start = min(start, own_start);
            stop = max(stop, own_stop);
            all_start = max(all_start, own_start);
            all_stop = min(all_stop, own_stop);
        }
        for (int mask = 16; mask; mask >>= 1) {
            start = min(start, __shfl_xor_sync(0xffffffffu, start, mask));
            stop = max(stop, __shfl_xor_sync(0xffffffffu, stop, mask));
            all_start = max(all_start, __shfl_xor_sync(0xffffffffu, all_start, mask));
            all_stop = min(all_stop, __shfl_xor_sync(0xffffffffu, all_stop, mask));
        }
    }

    // Whether every row sees all of the tile that begins with a token.
    __device__ bool all(int32_t token) const {
        return all_start <= token && token + TENSOR_TOKENS <= all_stop;
    }
    // Whole tiles before a token, from the first that any row sees.
    __device__ uint32_t tiles_before(int32_t token) const {
        return token > start ? (uint32_t)(token - start) / TENSOR_TOKENS : 0;
    }

    static constexpr int32_t NEVER = 0x7fffffff;
};

// A tile in shared memory: 64 elements of each token in a row of 128 bytes, and the next 64 behind all of
// them.
template <int HEAD>
struct TileOf {
    static constexpr uint32_t PANEL_BYTES = TENSOR_TOKENS * 128, BYTES = HEAD / 64 * PANEL_BYTES;

    // Byte of eight elements of a token.
    static __device__ uint32_t place(uint32_t token, uint32_t word) {
        return word / 8 * PANEL_BYTES + swizzled<128>(token, word % 8);
    }
};

// How 64 tokens of one group's keys or values come to shared memory; those from `stop` on are zeros. A thread
// has the same words of every token that it fetches.
template <int HEAD, int READING, int THREADS>
struct TokenFetch {
    static constexpr uint32_t WORDS = HEAD / 8, AT_ONCE = THREADS / WORDS;

    const uint8_t* first;  // this thread's word of token 0
    uint64_t row_bytes;
    uint32_t i, word, n;

    __device__ TokenFetch(const Tensor& t, uint64_t group, uint32_t head) : n(head) {
        i = threadIdx.x % THREADS / WORDS, word = threadIdx.x % WORDS;
        if (READING == READ_Q8_0) {
            first = t.as<uint8_t>() + group * t.strides[1] / 32 * 34 + word / 4 * 34;
            row_bytes = (uint64_t)t.strides[0] / 32 * 34;
        } else {
            first = t.as<uint8_t>() + 2 * (group * t.strides[1] + 8 * word);
            row_bytes = 2 * (uint64_t)t.strides[0];
        }
    }

    __device__ void operator()(uint8_t* to, int32_t token, int32_t stop) const {
        const uint32_t left = (uint32_t)min(stop - token, TENSOR_TOKENS);
        const uint8_t* from = first + (token + i) * row_bytes;
        if (READING != READ_Q8_0 && left == TENSOR_TOKENS && 8 * word < n) {
#pragma unroll
            for (uint32_t j = 0; j < TENSOR_TOKENS / AT_ONCE; ++j, from += AT_ONCE * row_bytes)
                copy_word(to + TileOf<HEAD>::place(i + j * AT_ONCE, word), from, true);
            return;
        }
#pragma unroll
        for (uint32_t j = 0; j < TENSOR_TOKENS / AT_ONCE; ++j, from += AT_ONCE * row_bytes) {
            uint32_t at = i + j * AT_ONCE;
            bool there = at < left && 8 * word < n;
            uint8_t* place = to + TileOf<HEAD>::place(at, word);
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

// Sixteen rows of a warp: what online softmax knows of the tokens that they have seen. A lane has parts of
// two rows, 8 apart.
template <int HEAD, bool BF16>
struct Band {
    uint64_t row;  // this lane's first
    int32_t starts[2], stops[2];
    float values[HEAD / 8][4], largest[2], sum[2];

    // Of a block's rows from row `from` on.
    __device__ void begin(const RowTokens& tokens, uint64_t block, uint32_t from) {
        from += threadIdx.x % 32 / 4, row = block + from;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            starts[i] = tokens.starts[from + 8 * i], stops[i] = tokens.stops[from + 8 * i];
            largest[i] = LOWEST, sum[i] = 0.0f;
        }
#pragma unroll
        for (uint32_t i = 0; i < HEAD / 8; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) values[i][j] = 0.0f;
    }

    // Scores that a cap bends, as powers of two.
    static __device__ void bend(float (&scores)[TENSOR_TOKENS / 8][4], float softcap, float uncap) {
#pragma unroll
        for (uint32_t j = 0; j < TENSOR_TOKENS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                scores[j][e] = SCORES_LOG2_E * softcap * fast_tanh(scores[j][e] * uncap);
    }

    // Tokens that a row does not see weigh nothing.
    __device__ void mask(float (&scores)[TENSOR_TOKENS / 8][4], int32_t token) const {
#pragma unroll
        for (uint32_t j = 0; j < TENSOR_TOKENS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int32_t at = token + (int32_t)(8 * j + threadIdx.x % 4 * 2 + e % 2);
                if (at < starts[e / 2] || at >= stops[e / 2])
                    scores[j][e] = __uint_as_float(0xff800000u);  // -infinity
            }
    }

    // Scores, as powers of two, to weights relative to `largest`. Where scores are larger by little, so that
    // weights stay small enough for 16 bits, all that was summed up may stay as it is.
    __device__ void weigh(float (&scores)[TENSOR_TOKENS / 8][4]) {
        float tops[2] = {scores[0][0], scores[0][2]};  // a NaN weighs NaN below
#pragma unroll
        for (uint32_t j = 0; j < TENSOR_TOKENS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) tops[e / 2] = fmaxf(tops[e / 2], scores[j][e]);
        if (__any_sync(0xffffffffu, tops[0] > largest[0] + SLACK || tops[1] > largest[1] + SLACK))
            raise(tops);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float total = 0.0f;
#pragma unroll
            for (uint32_t j = 0; j < TENSOR_TOKENS / 8; ++j)
#pragma unroll
                for (int e = 2 * i; e < 2 * i + 2; ++e) {
                    scores[j][e] = fast_exp2(scores[j][e] - largest[i]);
                    total += scores[j][e];
                }
            sum[i] += total;
        }
    }

    // The largest score so far is what weights are relative to; `tops` are the largest of this lane's.
    __device__ void raise(const float (&tops)[2]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float top = fmaxf(largest[i], tops[i]);
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            const float keep = fast_exp2(largest[i] - top);
            largest[i] = top, sum[i] *= keep;
#pragma unroll
            for (uint32_t j = 0; j < HEAD / 8; ++j) values[j][2 * i] *= keep, values[j][2 * i + 1] *= keep;
        }
    }

    // Weights of sixteen tokens, rounded.
    static __device__ void round(uint32_t (&weights)[4], const float (&scores)[TENSOR_TOKENS / 8][4],
                                 uint32_t i) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
            weights[e] =
                pack_pair<BF16>(scores[2 * i + e / 2][e % 2 * 2], scores[2 * i + e / 2][e % 2 * 2 + 1]);
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
