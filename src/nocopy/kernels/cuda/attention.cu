// attention: out[r,h] = softmax over tokens of (scale q[r,h] . k[t,g]) times v[t,g], for the tokens up to
// last[r] (of them the last `window`, unless it is 0); scores go through softcap * tanh(score / softcap)
// unless that is 0. h heads share g groups of keys and values. A row that sees no token gives 0. last is
// data, so it is clamped here.
//
// Online softmax: whoever walks over tokens keeps the largest score so far, the sum of exp(score - largest),
// and the values weighted alike; two such states merge into one. Lanes hold eight elements of a head each, so
// that a warp walks over 32 / team tokens at a time, for up to HEADS heads of a group at once. Tokens are
// split among the warps of a row (blockDim.x / 32), and, where rows are few and tokens many, among blocks
// (launch.splits), whose states attention_join merges. blockDim.y rows share a block, and so keys and values
// in the L1 cache. Bound: the bytes of k and v for few rows; arithmetic for many.
#include "attention.cuh"

// One job of a block: some rows, some heads of one group, one span of a head, one part of the tokens.
struct Job {
    uint64_t row, group, head, span, split;
    uint32_t heads;

    __device__ Job(const nocopy_launch& launch, uint64_t job, uint64_t heads_a_group,
                   uint64_t heads_at_once) {
        const uint32_t* d = launch.record.dims;
        uint64_t spans = (d[2] + SPAN - 1) / SPAN,
                 chunks = (heads_a_group + heads_at_once - 1) / heads_at_once;
        split = job % launch.splits;
        job /= launch.splits;
        span = job % spans * SPAN;
        job /= spans;
        uint64_t chunk = job % chunks * heads_at_once;
        job /= chunks;
        group = job % d[4];
        row = job / d[4] * blockDim.y + threadIdx.y;
        head = group * heads_a_group + chunk;
        heads = (uint32_t)min(heads_a_group - chunk, heads_at_once);
    }

    static __device__ uint64_t count(const nocopy_launch& launch, uint64_t heads_at_once) {
        const uint32_t* d = launch.record.dims;
        uint64_t spans = (d[2] + SPAN - 1) / SPAN, a_group = d[1] / d[4];
        uint64_t rows = ((uint64_t)d[0] + blockDim.y - 1) / blockDim.y;
        return rows * d[4] * ((a_group + heads_at_once - 1) / heads_at_once) * spans * launch.splits;
    }
};

// State of one row, head and split in the workspace: largest, sum, n values.
__device__ inline float* split_state(const nocopy_launch& launch, uint64_t row, uint64_t head,
                                     uint64_t split) {
    const uint32_t* d = launch.record.dims;
    return (float*)launch.workspace + ((row * d[1] + head) * launch.splits + split) * (d[2] + 2);
}

template <int READING, int HEADS>
struct Walk {
    const nocopy_launch& launch;
    Tensor out, q, k, v;
    uint64_t n;
    float scale, softcap;
    uint32_t team, lane;
    Eight queries[HEADS];
    Seen seen[HEADS];

    __device__ Walk(const nocopy_launch& l) : launch(l), out(l, 0), q(l, 1), k(l, 2), v(l, 3) {
        n = l.record.dims[2];
        scale = param_f32(l, 0), softcap = param_f32(l, 1);
        team = head_team(n), lane = threadIdx.x % 32;
    }

    __device__ uint64_t place() const { return (uint64_t)(lane % team) * EIGHT; }

    __device__ uint64_t query(const Job& job, int h) const {
        return q.at(job.row, job.head + min((uint32_t)h, job.heads - 1));
    }

    // This lane's share of the product of query h with the key that begins at element `key`.
    __device__ float product(const Job& job, int h, uint64_t key, const Eight& first) const {
        float sum = dot(queries[h], first);
        if (READING == READ_ANY)
            for (uint64_t i = SPAN + place(); i < n; i += SPAN)
                sum += dot(load_any(q, query(job, h), i, n), load_any(k, key, i, n));
        return sum;
    }

    __device__ void over(const Job& job, const Tokens& tokens) {
        if (tokens.start >= tokens.stop) return;  // the same for the whole warp
#pragma unroll
        for (int h = 0; h < HEADS; ++h) queries[h] = load_any(q, query(job, h), place(), n);
        const uint32_t at_once = 32 / team;
        StopSign stop{launch, 256};
        for (int64_t first = tokens.start; first < tokens.stop; first += at_once) {
            int64_t token = first + lane / team;
            bool there = token < tokens.stop;
            token = there ? token : tokens.stop - 1;
            uint64_t key = k.at((uint64_t)token, job.group), value = v.at((uint64_t)token, job.group);
            Eight keys = load_eight<READING>(k, key, place(), n);
            Eight values = load_eight<READING>(v, value, job.span + place(), n);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float score = product(job, h, key, keys);
                for (uint32_t mask = team / 2; mask; mask /= 2)
                    score += __shfl_xor_sync(0xffffffffu, score, mask);
                score *= scale;
                if (softcap != 0.0f) score = softcap * tanhf(score / softcap);
                if (there) seen[h].token(score, values);
            }
            if (__any_sync(0xffffffffu, stop.reached())) break;
        }
        for (uint32_t mask = team; mask < 32; mask *= 2)
#pragma unroll
            for (int h = 0; h < HEADS; ++h) seen[h].merge_across(mask);
    }
};

// Merges the warps of a row and writes the result, or the state of this split.
template <int HEADS>
__device__ inline void finish(const nocopy_launch& launch, const Shared<HEADS>& shared, const Job& job,
                              bool empty) {
    Tensor out(launch, 0);
    const uint64_t n = launch.record.dims[2];
    if (job.row >= launch.record.dims[0]) return;
    const uint32_t width = (uint32_t)min(n - job.span, (uint64_t)SPAN);
    const uint32_t warps = blockDim.x / 32, own = threadIdx.y * warps;
    for (uint32_t e = threadIdx.x; e < job.heads * width; e += blockDim.x) {
        uint32_t h = e / width, i = e - h * width;
        float largest = LOWEST, sum = 0.0f, value = 0.0f;
        for (uint32_t w = own; w < own + warps; ++w) largest = nan_max(largest, shared.largest[w][h]);
        for (uint32_t w = own; w < own + warps; ++w) {
            float keep = expf(shared.largest[w][h] - largest);
            sum = fmaf(keep, shared.sum[w][h], sum);
            value = fmaf(keep, shared.values[w][h][i], value);
        }
        if (launch.splits == 1) {
            store(out, out.at(job.row, job.head + h, job.span + i), empty ? 0.0f : value / sum);
            continue;
        }
        float* state = split_state(launch, job.row, job.head + h, job.split);
        state[2 + job.span + i] = value;
        if (job.span + i == 0) {
            state[0] = largest;
            state[1] = sum;
        }
    }
}

template <int READING, int HEADS>
__device__ inline void attend(const nocopy_launch& launch) {
    __shared__ Shared<HEADS> shared;
    const uint64_t a_group = launch.record.dims[1] / launch.record.dims[4];
    const uint32_t warps = blockDim.x / 32, warp = threadIdx.y * warps + threadIdx.x / 32;
    const uint64_t jobs = Job::count(launch, HEADS);
    for (uint64_t i = blockIdx.x; i < jobs; i += gridDim.x) {
        if (block_stopped(launch)) return;
        Job job(launch, i, a_group, HEADS);
        Tokens tokens(launch, job.row);
        bool empty = tokens.start >= tokens.stop;
        Walk<READING, HEADS> walk(launch);
        tokens.narrow(job.split * warps + threadIdx.x / 32, launch.splits * warps, 32 / walk.team);
        walk.over(job, tokens);
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            if (walk.lane == 0) {
                shared.largest[warp][h] = walk.seen[h].largest;
                shared.sum[warp][h] = walk.seen[h].sum;
            }
            if (walk.lane >= walk.team) continue;
#pragma unroll
            for (uint32_t e = 0; e < EIGHT; ++e)
                shared.values[warp][h][walk.lane * EIGHT + e] = walk.seen[h].values.v[e];
        }
        __syncthreads();
        finish<HEADS>(launch, shared, job, empty);
        __syncthreads();  // all have read; the next job may write
    }
}

// One head at a time.
NOCOPY_KERNEL(attention_any, 256, 2) {
    attend<READ_ANY, 1>(launch);
}
NOCOPY_KERNEL(attention_f32, 256, 2) {
    attend<READ_F32, 1>(launch);
}
NOCOPY_KERNEL(attention_f16, 256, 2) {
    attend<READ_F16, 1>(launch);
}
NOCOPY_KERNEL(attention_bf16, 256, 2) {
    attend<READ_BF16, 1>(launch);
}
NOCOPY_KERNEL(attention_q8_0, 256, 2) {
    attend<READ_Q8_0, 1>(launch);
}

// Four heads of a group share what is read.
NOCOPY_KERNEL(attention_grouped_f32, 256, 2) {
    attend<READ_F32, 4>(launch);
}
NOCOPY_KERNEL(attention_grouped_f16, 256, 2) {
    attend<READ_F16, 4>(launch);
}
NOCOPY_KERNEL(attention_grouped_bf16, 256, 2) {
    attend<READ_BF16, 4>(launch);
}
NOCOPY_KERNEL(attention_grouped_q8_0, 256, 2) {
    attend<READ_Q8_0, 4>(launch);
}

// Merges the states of all splits: a thread for each element of out.
NOCOPY_KERNEL(attention_join, 256, 4) {
    Tensor out(launch, 0);
    const uint32_t* d = launch.record.dims;
    const uint64_t total = (uint64_t)d[0] * d[1] * d[2];
    if (block_stopped(launch)) return;
    for (uint64_t e = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; e < total;
         e += (uint64_t)gridDim.x * blockDim.x) {
        uint64_t rest = e / d[2], i = e - rest * d[2], row = rest / d[1], head = rest % d[1];
        Tokens tokens(launch, row);
        float largest = LOWEST, sum = 0.0f, value = 0.0f;
        for (uint64_t s = 0; s < launch.splits; ++s)
            largest = nan_max(largest, split_state(launch, row, head, s)[0]);
        for (uint64_t s = 0; s < launch.splits; ++s) {
            const float* state = split_state(launch, row, head, s);
            float keep = expf(state[0] - largest);
            sum = fmaf(keep, state[1], sum);
            value = fmaf(keep, state[2 + i], value);
        }
        store(out, out.at(row, head, i), tokens.start < tokens.stop ? value / sum : 0.0f);
    }
}
