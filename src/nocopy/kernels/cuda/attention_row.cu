// attention of one row, as decoding needs it: see attention.cu for what it computes. A block takes up to
// HEADS heads of one group and a part of the tokens. There are launch.splits parts at most, and as many in
// use as give each TOKENS tokens; so the work follows the row's length, not the cache's. A warp takes up to
// two heads, so that a block has registers beside it for one of the next kernel, and reads IN_FLIGHT tokens a
// team of lanes before it uses the first. The last block of a group's joins all parts (split.cuh). Bound: the
// latency of memory for short rows, the bytes of k and v for long ones.
#include "attention.cuh"
#include "split.cuh"

constexpr uint32_t TOKENS = 128;   // of a part, at least
constexpr uint32_t IN_FLIGHT = 4;  // tokens that a team of lanes reads at once
constexpr uint32_t ROW_WARPS = 8;  // of a block

// Eight elements of a head as they lie in the cache.
template <int READING>
struct RawEight {
    Words4 words;

    __device__ RawEight() : words() {}
    __device__ RawEight(const Tensor& t, uint64_t head, uint64_t first)
        : words(read_as<Words4>(t.as<uint8_t>() + 2 * (head + first))) {}
    __device__ Eight decoded() const {
        Eight y;
        HalfWords<READING == READ_BF16>::decode(words, y.v);
        return y;
    }
};

template <>
struct RawEight<READ_F32> {
    Words4 low, high;

    __device__ RawEight() : low(), high() {}
    __device__ RawEight(const Tensor& t, uint64_t head, uint64_t first) {
        const uint8_t* at = t.as<uint8_t>() + 4 * (head + first);
        low = read_as<Words4>(at), high = read_as<Words4>(at + 16);
    }
    __device__ Eight decoded() const {
        Eight y;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            y.v[i] = __uint_as_float(low.v[i]), y.v[4 + i] = __uint_as_float(high.v[i]);
        return y;
    }
};

template <>
struct RawEight<READ_Q8_0> {
    Q8_0::Raw low, high;

    __device__ RawEight() : low(), high() {}
    __device__ RawEight(const Tensor& t, uint64_t head, uint64_t first) {
        const uint8_t* block = t.as<uint8_t>() + (head + first) / 32 * 34;
        const uint32_t lane = (uint32_t)(first % 32) / 4;
        low = Q8_0::fetch(block, lane), high = Q8_0::fetch(block, lane + 1);
    }
    __device__ Eight decoded() const {
        Eight y;
        Q8_0::decode(low, *(float (*)[4]) & y.v[0]);
        Q8_0::decode(high, *(float (*)[4]) & y.v[4]);
        return y;
    }
};

// The part [start, stop) of a row's tokens that a block takes, and how many parts there are.
struct Part {
    int64_t start, stop;
    uint32_t parts;

    __device__ Part(const Tokens& tokens, uint32_t index, uint32_t most) {
        uint64_t count = (uint64_t)(tokens.stop - tokens.start);
        parts = (uint32_t)max(min((count + TOKENS - 1) / TOKENS, (uint64_t)most), (uint64_t)1);
        uint64_t each = (count + parts - 1) / parts;
        start = min(tokens.start + (int64_t)(index * each), tokens.stop);
        stop = min(start + (int64_t)each, tokens.stop);
    }
};

// State of a head and part in the workspace: largest, sum, n values.
__device__ inline float* row_state(const nocopy_launch& launch, uint64_t head, uint64_t part) {
    return (float*)launch.workspace + (head * launch.splits + part) * (launch.record.dims[2] + 2);
}

// What a warp makes of its tokens, for its own heads.
template <int READING, int OWN>
struct RowWalk {
    Eight queries[OWN];
    Seen seen[OWN];
    uint32_t team, lane;

    // Of the tokens of a part, warp `index` of `count` takes every count-th run.
    __device__ void over(const nocopy_launch& launch, const Part& part, uint64_t group, uint64_t head,
                         uint32_t heads, uint32_t index, uint32_t count) {
        Tensor q(launch, 1), k(launch, 2), v(launch, 3);
        const uint64_t n = launch.record.dims[2];
        const float scale = param_f32(launch, 0), softcap = param_f32(launch, 1);
        team = head_team(n), lane = threadIdx.x % 32;
        const uint64_t place = (uint64_t)(lane % team) * EIGHT;
#pragma unroll
        for (int h = 0; h < OWN; ++h)
            queries[h] = load_eight<READ_F32>(q, q.at(0, head + min((uint32_t)h, heads - 1)), place, n);
        const uint32_t at_once = 32 / team, run = at_once * IN_FLIGHT;
        for (int64_t first = part.start + index * run; first < part.stop; first += count * run) {
            RawEight<READING> keys[IN_FLIGHT], values[IN_FLIGHT];
#pragma unroll
            for (uint32_t i = 0; i < IN_FLIGHT; ++i) {
                uint64_t token = (uint64_t)min(first + i * at_once + lane / team, part.stop - 1);
                if (place >= n) continue;
                keys[i] = RawEight<READING>(k, k.at(token, group), place);
                values[i] = RawEight<READING>(v, v.at(token, group), place);
            }
            float scores[OWN][IN_FLIGHT];
#pragma unroll
            for (uint32_t i = 0; i < IN_FLIGHT; ++i) {
                Eight key = keys[i].decoded();
#pragma unroll
                for (int h = 0; h < OWN; ++h) scores[h][i] = dot(queries[h], key);
            }
#pragma unroll
            for (int h = 0; h < OWN; ++h) {
                float top = seen[h].largest;
#pragma unroll
                for (uint32_t i = 0; i < IN_FLIGHT; ++i) {
                    float score = scores[h][i];
                    for (uint32_t mask = team / 2; mask; mask /= 2)
                        score += __shfl_xor_sync(0xffffffffu, score, mask);
                    score *= scale;
                    if (softcap != 0.0f) score = softcap * tanhf(score / softcap);
                    scores[h][i] = score;
                    if (first + i * at_once + lane / team < part.stop) top = nan_max(top, score);
                }
                float keep = expf(seen[h].largest - top);
                seen[h].largest = top;
                seen[h].sum *= keep;
#pragma unroll
                for (uint32_t e = 0; e < EIGHT; ++e) seen[h].values.v[e] *= keep;
            }
#pragma unroll
            for (uint32_t i = 0; i < IN_FLIGHT; ++i) {
                if (first + i * at_once + lane / team >= part.stop) continue;
                Eight value = values[i].decoded();
#pragma unroll
                for (int h = 0; h < OWN; ++h) {
                    float weight = expf(scores[h][i] - seen[h].largest);
                    seen[h].sum += weight;
#pragma unroll
                    for (uint32_t e = 0; e < EIGHT; ++e)
                        seen[h].values.v[e] = fmaf(weight, value.v[e], seen[h].values.v[e]);
                }
            }
        }
        for (uint32_t mask = team; mask < 32; mask *= 2)
#pragma unroll
            for (int h = 0; h < OWN; ++h) seen[h].merge_across(mask);
    }
};

template <int READING, int HEADS>
__device__ inline void attend_row(const nocopy_launch& launch) {
    __shared__ Shared<HEADS> shared;
    const uint32_t* d = launch.record.dims;
    const uint64_t n = d[2], a_group = d[1] / d[4], chunks = (a_group + HEADS - 1) / HEADS;
    const uint32_t split = (uint32_t)(blockIdx.x % launch.splits);
    const uint64_t job = blockIdx.x / launch.splits, group = job / chunks, chunk = job % chunks * HEADS;
    const uint64_t head = group * a_group + chunk;
    const uint32_t heads = (uint32_t)min(a_group - chunk, (uint64_t)HEADS);
    const Tokens tokens(launch, 0);
    const Part part(tokens, split, (uint32_t)launch.splits);
    if (split >= part.parts) return;
    // Warps side by side take the heads of the block, OWN each; those behind one another take its tokens.
    constexpr int OWN = HEADS == 1 ? 1 : 2;
    constexpr uint32_t SIDE = HEADS / OWN, BEHIND = ROW_WARPS / SIDE;
    const uint32_t own = threadIdx.x / 32 % SIDE * OWN, run = threadIdx.x / 32 / SIDE;
    RowWalk<READING, OWN> walk;
    if (own < heads) walk.over(launch, part, group, head + own, heads - own, run, BEHIND);
#pragma unroll
    for (int h = 0; h < OWN; ++h) {
        if (own >= heads) continue;
        shared.largest[run][own + h] = walk.seen[h].largest;
        shared.sum[run][own + h] = walk.seen[h].sum;
        if (walk.lane >= walk.team) continue;
#pragma unroll
        for (uint32_t e = 0; e < EIGHT; ++e)
            shared.values[run][own + h][walk.lane * EIGHT + e] = walk.seen[h].values.v[e];
    }
    __syncthreads();
    Tensor out(launch, 0);
    const bool empty = tokens.start >= tokens.stop;
    for (uint32_t e = threadIdx.x; e < heads * n; e += blockDim.x) {
        uint32_t h = (uint32_t)(e / n), i = (uint32_t)(e % n);
        float largest = LOWEST, sum = 0.0f, value = 0.0f;
        for (uint32_t w = 0; w < BEHIND; ++w) largest = nan_max(largest, shared.largest[w][h]);
        for (uint32_t w = 0; w < BEHIND; ++w) {
            float keep = expf(shared.largest[w][h] - largest);
            sum = fmaf(keep, shared.sum[w][h], sum);
            value = fmaf(keep, shared.values[w][h][i], value);
        }
        if (part.parts == 1) {
            store(out, out.at(0, head + h, i), empty ? 0.0f : value / sum);
            continue;
        }
        float* state = row_state(launch, head + h, split);
        state[2 + i] = value;
        if (i == 0) {
            state[0] = largest;
            state[1] = sum;
        }
    }
    if (part.parts == 1 || !last_of(launch, job, part.parts)) return;
    for (uint32_t e = threadIdx.x; e < heads * n; e += blockDim.x) {
        uint32_t h = (uint32_t)(e / n), i = (uint32_t)(e % n);
        float largest = LOWEST, sum = 0.0f, value = 0.0f;
#pragma unroll 8
        for (uint32_t p = 0; p < part.parts; ++p) {
            const float* state = row_state(launch, head + h, p);
            float theirs = load_fresh_float(state), top = nan_max(largest, theirs);
            float before = expf(largest - top), now = expf(theirs - top);
            largest = top;
            sum = fmaf(now, load_fresh_float(state + 1), sum * before);
            value = fmaf(now, load_fresh_float(state + 2 + i), value * before);
        }
        store(out, out.at(0, head + h, i), value / sum);
    }
}

// One head at a time, where each has keys and values of its own.
NOCOPY_KERNEL(attention_row_f32, 256, 2) {
    attend_row<READ_F32, 1>(launch);
}
NOCOPY_KERNEL(attention_row_f16, 256, 2) {
    attend_row<READ_F16, 1>(launch);
}
NOCOPY_KERNEL(attention_row_bf16, 256, 2) {
    attend_row<READ_BF16, 1>(launch);
}
NOCOPY_KERNEL(attention_row_q8_0, 256, 2) {
    attend_row<READ_Q8_0, 1>(launch);
}

// Four heads of a group share what is read.
NOCOPY_KERNEL(attention_row_grouped_f32, 256, 2) {
    attend_row<READ_F32, 4>(launch);
}
NOCOPY_KERNEL(attention_row_grouped_f16, 256, 2) {
    attend_row<READ_F16, 4>(launch);
}
NOCOPY_KERNEL(attention_row_grouped_bf16, 256, 2) {
    attend_row<READ_BF16, 4>(launch);
}
NOCOPY_KERNEL(attention_row_grouped_q8_0, 256, 2) {
    attend_row<READ_Q8_0, 4>(launch);
}
