// attention (attention.cu has the formula) of many rows over a session's cache, on tensor cores. A block of 4
// warps takes 64 rows of one head, a warp 16 of them, and walks over the tokens that any of its rows sees, 64
// at a time, with online softmax; keys and values of the next 64 are on their way meanwhile.
//
// Queries and the softmax's weights are rounded to the type of the cache (of a q8_0 cache, which is decoded
// on the way to shared memory, to f16); scores, sums and results are f32. Heads have up to 128 elements, a
// multiple of 8. Blocks with the most tokens come first, as the last of a causal prompt have. Bound:
// arithmetic.
#include "attention.cuh"
#include "mma.cuh"

constexpr uint32_t TENSOR_ROWS = 64, TENSOR_TOKENS = 64, TENSOR_THREADS = 128;
constexpr float LOG2_E = 1.44269504f;

// The tokens that a block's rows see: of any row, and of every row.
struct BlockTokens {
    int64_t start, stop, all_start, all_stop;

    // `memory` has room for two words of each row.
    __device__ BlockTokens(const nocopy_launch& launch, uint64_t first, uint8_t* memory) {
        int64_t *starts = (int64_t*)memory, *stops = starts + TENSOR_ROWS;
        if (threadIdx.x < TENSOR_ROWS) {
            Tokens tokens(launch, first + threadIdx.x);
            starts[threadIdx.x] = tokens.start;
            stops[threadIdx.x] = tokens.stop;
        }
        __syncthreads();
        start = NEVER, stop = 0, all_start = 0, all_stop = NEVER;
        for (uint32_t i = threadIdx.x % 32; i < TENSOR_ROWS; i += 32) {
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

template <int HEAD, int READING>
struct TensorWalk {
    static constexpr bool BF16 = READING == READ_BF16;
    static constexpr uint32_t TILE_BYTES = TENSOR_TOKENS * HEAD * 2;

    const nocopy_launch& launch;
    Tensor out, q;
    TokenFetch<HEAD, READING> fetch_keys, fetch_values;
    uint64_t first, head;
    uint32_t n, lane, warp;
    float scale, softcap, uncap;
    int64_t starts[2], stops[2];  // of this lane's two rows
    uint32_t queries[HEAD / 16][4];
    float values[HEAD / 8][4], largest[2], sum[2];

    __device__ TensorWalk(const nocopy_launch& l, uint64_t row, uint64_t h)
        : launch(l),
          out(l, 0),
          q(l, 1),
          fetch_keys(Tensor(l, 2), group_of(l, h), l.record.dims[2]),
          fetch_values(Tensor(l, 3), group_of(l, h), l.record.dims[2]),
          first(row),
          head(h),
          n(l.record.dims[2]) {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        softcap = param_f32(l, 1), uncap = 1.0f / softcap;
        // Scores are powers of two; a cap wants them as they are.
        scale = param_f32(l, 0) * (softcap == 0.0f ? LOG2_E : 1.0f);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            Tokens tokens(l, row_of(i));
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
            for (int j = 0; j < 4; ++j)
                queries[i][j] = query(row_of(j % 2), 16 * i + j / 2 * 8 + lane % 4 * 2);
    }

    static __device__ uint64_t group_of(const nocopy_launch& l, uint64_t head) {
        return head / (l.record.dims[1] / l.record.dims[4]);
    }

    __device__ uint64_t row_of(int i) const { return first + 16 * warp + lane / 4 + 8 * i; }

    // Elements i and i + 1 of a row's query, scaled.
    __device__ uint32_t query(uint64_t row, uint32_t i) const {
        if (row >= launch.record.dims[0] || i >= n) return 0;
        const float* at = q.as<float>() + q.at(row, head) + i;
        return pack_pair<BF16>(at[0] * scale, at[1] * scale);
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
        float scores[TENSOR_TOKENS / 8][4] = {};
#pragma unroll
        for (uint32_t i = 0; i < HEAD / 16; ++i)
#pragma unroll
            for (uint32_t j = 0; j < TENSOR_TOKENS / 16; ++j) {
                uint32_t b[4];
                load_matrices(
                    b, keys + swizzled<2 * HEAD>(16 * j + lane / 16 * 8 + lane % 8, 2 * i + lane / 8 % 2));
                multiply_fragments<BF16>(scores[2 * j], queries[i], b[0], b[1]);
                multiply_fragments<BF16>(scores[2 * j + 1], queries[i], b[2], b[3]);
            }
        if (softcap != 0.0f)
#pragma unroll
            for (uint32_t j = 0; j < TENSOR_TOKENS / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) scores[j][e] = LOG2_E * softcap * fast_tanh(scores[j][e] * uncap);
        if (!whole) mask(scores, token);
#pragma unroll
        for (int i = 0; i < 2; ++i) weigh(scores, i);
        const uint8_t* v_tile = keys + TILE_BYTES;
#pragma unroll
        for (uint32_t i = 0; i < TENSOR_TOKENS / 16; ++i) {
            const uint32_t weights[4] = {pack_pair<BF16>(scores[2 * i][0], scores[2 * i][1]),
                                         pack_pair<BF16>(scores[2 * i][2], scores[2 * i][3]),
                                         pack_pair<BF16>(scores[2 * i + 1][0], scores[2 * i + 1][1]),
                                         pack_pair<BF16>(scores[2 * i + 1][2], scores[2 * i + 1][3])};
#pragma unroll
            for (uint32_t j = 0; j < HEAD / 16; ++j) {
                uint32_t b[4];
                load_matrices_transposed(b,
                                         v_tile + swizzled<2 * HEAD>(16 * i + lane % 16, 2 * j + lane / 16));
                multiply_fragments<BF16>(values[2 * j], weights, b[0], b[1]);
                multiply_fragments<BF16>(values[2 * j + 1], weights, b[2], b[3]);
            }
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
                int32_t at = (int32_t)(8 * j + lane % 4 * 2 + e % 2);
                if (at < low[e / 2] || at >= high[e / 2])
                    scores[j][e] = __uint_as_float(0xff800000u);  // -infinity
            }
    }

    // Scores of a row to weights relative to the largest so far.
    __device__ void weigh(float (&scores)[TENSOR_TOKENS / 8][4], int i) {
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

    __device__ void finish() {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float total = sum[i];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            uint64_t row = row_of(i);
            if (row >= launch.record.dims[0]) continue;
            bool empty = starts[i] >= stops[i];
            float part = 1.0f / total;
#pragma unroll
            for (uint32_t j = 0; j < HEAD / 8; ++j) {
                uint32_t at = 8 * j + lane % 4 * 2;
                if (at >= n) break;
                float low = empty ? 0.0f : values[j][2 * i] * part,
                      high = empty ? 0.0f : values[j][2 * i + 1] * part;
                uint64_t to = out.at(row, head) + at;
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

template <int HEAD, int READING>
__device__ inline void attend_tensor(const nocopy_launch& launch) {
    using Walk = TensorWalk<HEAD, READING>;
    const uint64_t rows = launch.record.dims[0], heads = launch.record.dims[1];
    const uint64_t bands = (rows + TENSOR_ROWS - 1) / TENSOR_ROWS, jobs = bands * heads;
    uint8_t *memory = dynamic_shared(), *words = memory + 4 * Walk::TILE_BYTES;
    for (uint64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
        if (block_stopped(launch)) return;
        uint64_t first = (bands - 1 - job / heads) * TENSOR_ROWS;
        BlockTokens seen(launch, first, words);
        Walk walk(launch, first, job % heads);
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
        walk.finish();
    }
}

NOCOPY_KERNEL(attention_tensor_64_f16, 128, 3) {
    attend_tensor<64, READ_F16>(launch);
}
NOCOPY_KERNEL(attention_tensor_64_bf16, 128, 3) {
    attend_tensor<64, READ_BF16>(launch);
}
NOCOPY_KERNEL(attention_tensor_64_q8_0, 128, 3) {
    attend_tensor<64, READ_Q8_0>(launch);
}
NOCOPY_KERNEL(attention_tensor_128_f16, 128, 2) {
    attend_tensor<128, READ_F16>(launch);
}
NOCOPY_KERNEL(attention_tensor_128_bf16, 128, 2) {
    attend_tensor<128, READ_BF16>(launch);
}
NOCOPY_KERNEL(attention_tensor_128_q8_0, 128, 2) {
    attend_tensor<128, READ_Q8_0>(launch);
}
