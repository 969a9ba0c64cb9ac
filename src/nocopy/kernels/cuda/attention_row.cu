// attention of one row, as decoding needs it: see attention.cu for what it computes. A block takes up to HEADS
// heads of one group and a part of the tokens. There are launch.splits parts at most, and as many in use as give
// each TOKENS tokens; so the work follows the row's length, not the cache's. A warp reads IN_FLIGHT tokens a team
// of lanes before it uses the first. The block that is the last to finish its part merges all of them; blocks
// count themselves in the words before the workspace, which are zero between launches.
// Bound: the latency of memory for short rows, the bytes of k and v for long ones.
#include "attention.cuh"
#include "split.cuh"

constexpr uint32_t TOKENS = 128;    // of a part, at least
constexpr uint32_t IN_FLIGHT = 4;   // tokens that a team of lanes reads at once
constexpr uint32_t ROW_WARPS = 8;   // of a block

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

template <int READING, int HEADS>
struct RowWalk {
    Eight queries[HEADS];
    Seen seen[HEADS];
    uint32_t team, lane;

    // What this warp's lanes make of the tokens [start, stop) that are the warp's own.
    __device__ void over(const nocopy_launch& launch, const Part& part, uint64_t group, uint64_t head,
                         uint32_t heads) {
        Tensor q(launch, 1), k(launch, 2), v(launch, 3);
        const uint64_t n = launch.record.dims[2];
        const float scale = param_f32(launch, 0), softcap = param_f32(launch, 1);
        team = head_team(n), lane = threadIdx.x % 32;
        const uint64_t place = (uint64_t)(lane % team) * EIGHT;
#pragma unroll
        for (int h = 0; h < HEADS; ++h)
            queries[h] = load_eight<READ_F32>(q, q.at(0, head + min((uint32_t)h, heads - 1)), place, n);
        const uint32_t at_once = 32 / team, warp = threadIdx.x / 32;
        for (int64_t first = part.start + warp * at_once * IN_FLIGHT; first < part.stop;
             first += ROW_WARPS * at_once * IN_FLIGHT) {
            Eight keys[IN_FLIGHT], values[IN_FLIGHT];
            bool there[IN_FLIGHT];
#pragma unroll
            for (uint32_t i = 0; i < IN_FLIGHT; ++i) {
                int64_t token = first + i * at_once + lane / team;
                there[i] = token < part.stop;
                token = there[i] ? token : part.stop - 1;
                keys[i] = load_eight<READING>(k, k.at((uint64_t)token, group), place, n);
                values[i] = load_eight<READING>(v, v.at((uint64_t)token, group), place, n);
            }
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float scores[IN_FLIGHT], top = seen[h].largest;
#pragma unroll
                for (uint32_t i = 0; i < IN_FLIGHT; ++i) {
                    scores[i] = dot(queries[h], keys[i]);
                    for (uint32_t mask = team / 2; mask; mask /= 2)
                        scores[i] += __shfl_xor_sync(0xffffffffu, scores[i], mask);
                    scores[i] *= scale;
                    if (softcap != 0.0f) scores[i] = softcap * tanhf(scores[i] / softcap);
                    if (there[i]) top = nan_max(top, scores[i]);
                }
                take(seen[h], scores, values, there, top);
            }
        }
        for (uint32_t mask = team; mask < 32; mask *= 2)
#pragma unroll
            for (int h = 0; h < HEADS; ++h) seen[h].merge_across(mask);
    }

    static __device__ void take(Seen& seen, const float (&scores)[IN_FLIGHT],
                                const Eight (&values)[IN_FLIGHT], const bool (&there)[IN_FLIGHT], float top) {
        float keep = expf(seen.largest - top);
        seen.largest = top;
        seen.sum *= keep;
#pragma unroll
        for (uint32_t e = 0; e < EIGHT; ++e) seen.values.v[e] *= keep;
#pragma unroll
        for (uint32_t i = 0; i < IN_FLIGHT; ++i) {
            float weight = there[i] ? expf(scores[i] - top) : 0.0f;
            seen.sum += weight;
#pragma unroll
            for (uint32_t e = 0; e < EIGHT; ++e)
                seen.values.v[e] = fmaf(weight, there[i] ? values[i].v[e] : 0.0f, seen.values.v[e]);
        }
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
    RowWalk<READING, HEADS> walk;
    walk.over(launch, part, group, head, heads);
    const uint32_t warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        shared.largest[warp][h] = walk.seen[h].largest;
        shared.sum[warp][h] = walk.seen[h].sum;
        if (walk.lane >= walk.team) continue;
#pragma unroll
        for (uint32_t e = 0; e < EIGHT; ++e)
            shared.values[warp][h][walk.lane * EIGHT + e] = walk.seen[h].values.v[e];
    }
    __syncthreads();
    Tensor out(launch, 0);
    const bool empty = tokens.start >= tokens.stop;
    for (uint32_t e = threadIdx.x; e < heads * n; e += blockDim.x) {
        uint32_t h = (uint32_t)(e / n), i = (uint32_t)(e % n);
        float largest = LOWEST, sum = 0.0f, value = 0.0f;
        for (uint32_t w = 0; w < ROW_WARPS; ++w) largest = nan_max(largest, shared.largest[w][h]);
        for (uint32_t w = 0; w < ROW_WARPS; ++w) {
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
        for (uint32_t p = 0; p < part.parts; ++p)
            largest = nan_max(largest, load_fresh_float(row_state(launch, head + h, p)));
        for (uint32_t p = 0; p < part.parts; ++p) {
            const float* state = row_state(launch, head + h, p);
            float keep = expf(load_fresh_float(state) - largest);
            sum = fmaf(keep, load_fresh_float(state + 1), sum);
            value = fmaf(keep, load_fresh_float(state + 2 + i), value);
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
NOCOPY_KERNEL(attention_row_grouped_f32, 256, 1) {
    attend_row<READ_F32, 4>(launch);
}
NOCOPY_KERNEL(attention_row_grouped_f16, 256, 1) {
    attend_row<READ_F16, 4>(launch);
}
NOCOPY_KERNEL(attention_row_grouped_bf16, 256, 1) {
    attend_row<READ_BF16, 4>(launch);
}
NOCOPY_KERNEL(attention_row_grouped_q8_0, 256, 1) {
    attend_row<READ_Q8_0, 4>(launch);
}
