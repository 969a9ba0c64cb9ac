// attention of one row, as decoding needs it: see attention.cu for what it computes. A block takes up to
// HEADS heads of one group and a part of the tokens. There are launch.splits parts at most, and as many in
// use as give each TOKENS tokens; so the work follows the row's length, not the cache's. A warp takes up to
// two heads, so that a block has registers beside it for one of the next kernel, and reads IN_FLIGHT tokens a
// team of lanes before it uses the first. The last block of a group's joins all parts (split.cuh). Bound: the
// latency of memory for short rows, the bytes of k and v for long ones.
#include "attention_row.cuh"
#include "split.cuh"

// State of a head and part in the workspace: largest, sum, n values.
__device__ inline float* row_state(const nocopy_launch& launch, uint64_t head, uint64_t part) {
    return (float*)launch.workspace + (head * launch.splits + part) * (launch.record.dims[2] + 2);
}

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
    Tensor q(launch, 1), k(launch, 2), v(launch, 3);
    const uint32_t team = head_team(n), lane = threadIdx.x % 32;
    const uint64_t place = (uint64_t)(lane % team) * EIGHT;
    RowWalk<READING, OWN> walk;
    walk.scale = param_f32(launch, 0), walk.softcap = param_f32(launch, 1);
    if (own < heads) {
#pragma unroll
        for (int h = 0; h < OWN; ++h)
            walk.queries[h] = load_eight<READ_F32>(q, q.at(0, head + min(own + h, heads - 1)), place, n);
        walk.over(part, place, n, team, run, BEHIND,
                  [&](uint64_t token, RawEight<READING>& key, RawEight<READING>& value) {
                      key = RawEight<READING>(k, k.at(token, group), place);
                      value = RawEight<READING>(v, v.at(token, group), place);
                  });
    }
#pragma unroll
    for (int h = 0; h < OWN; ++h) {
        if (own >= heads) continue;
        shared.largest[run][own + h] = walk.seen[h].largest;
        shared.sum[run][own + h] = walk.seen[h].sum;
        if (lane >= team) continue;
#pragma unroll
        for (uint32_t e = 0; e < EIGHT; ++e)
            shared.values[run][own + h][lane * EIGHT + e] = walk.seen[h].values.v[e];
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
