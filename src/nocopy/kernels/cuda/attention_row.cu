// attention of one row, as decoding needs it, or of one row of each of several sequences: see attention.cu
// for what it computes. A block takes up to HEADS heads of one group of a row and a part of the tokens. There
// are launch.splits parts at most, and as many in use as give each TOKENS tokens; so the work follows the
// row's length, not the cache's. A warp takes up to two heads, so that a block has registers beside it for
// one of the next kernel, and reads IN_FLIGHT tokens a team of lanes before it uses the first. The last block
// of a group's joins all parts (split.cuh). Bound: the latency of memory for short rows, the bytes of k and v
// for long ones.
#include "attention_row.cuh"
#include "split.cuh"

constexpr uint32_t MOST_SEQUENCES = 8;

// Rows whose operands lie apart: out, q, k, v and last of each, for a record that is otherwise the same.
struct nocopy_attention_rows {
    nocopy_launch launch;
    uint64_t places[MOST_SEQUENCES][5];
};
static_assert(sizeof(nocopy_attention_rows) == 632, "device/cuda_fuse_rows.py packs this struct");

// What a block works on: row `row`, and of it block `block`.
struct RowJob {
    uint32_t row, block;
    Tensor out, q, k, v;
    Tokens tokens;

    __device__ explicit RowJob(const nocopy_launch& launch)
        : row(0),
          block(blockIdx.x),
          out(launch, 0),
          q(launch, 1),
          k(launch, 2),
          v(launch, 3),
          tokens(launch, 0) {}

    __device__ RowJob(const nocopy_attention_rows& rows, uint32_t blocks)
        : row(blockIdx.x / blocks),
          block(blockIdx.x % blocks),
          out(rows.launch, 0),
          q(rows.launch, 1),
          k(rows.launch, 2),
          v(rows.launch, 3),
          tokens((const int32_t*)rows.places[row][4], rows.launch) {
        const uint64_t* places = rows.places[row];
        out.base = (char*)places[0], q.base = (char*)places[1];
        k.base = (char*)places[2], v.base = (char*)places[3];
    }
};

// State of a head and part in the workspace: largest, sum, n values.
__device__ inline float* row_state(const nocopy_launch& launch, uint64_t head, uint64_t part) {
    return (float*)launch.workspace + (head * launch.splits + part) * (launch.record.dims[2] + 2);
}

// Blocks that share a row's heads.
__device__ inline uint32_t row_jobs(const nocopy_launch& launch, uint32_t heads) {
    const uint32_t* d = launch.record.dims;
    return (d[1] / d[4] + heads - 1) / heads * d[4];
}

template <int READING, int HEADS>
__device__ inline void attend_row(const nocopy_launch& launch, const RowJob& own_job) {
    __shared__ Shared<HEADS> shared;
    const uint32_t* d = launch.record.dims;
    const uint64_t n = d[2], a_group = d[1] / d[4], chunks = (a_group + HEADS - 1) / HEADS;
    const uint32_t split = (uint32_t)(own_job.block % launch.splits);
    const uint64_t job = own_job.block / launch.splits, group = job / chunks, chunk = job % chunks * HEADS;
    const uint64_t head = group * a_group + chunk, first_state = (uint64_t)own_job.row * d[1] + head;
    const uint32_t heads = (uint32_t)min(a_group - chunk, (uint64_t)HEADS);
    const Tokens& tokens = own_job.tokens;
    const Part part(tokens, split, (uint32_t)launch.splits);
    if (split >= part.parts) return;
    // Warps side by side take the heads of the block, OWN each; those behind one another take its tokens.
    constexpr int OWN = HEADS == 1 ? 1 : 2;
    constexpr uint32_t SIDE = HEADS / OWN, BEHIND = ROW_WARPS / SIDE;
    const uint32_t own = threadIdx.x / 32 % SIDE * OWN, run = threadIdx.x / 32 / SIDE;
    const Tensor &q = own_job.q, &k = own_job.k, &v = own_job.v, &out = own_job.out;
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
        float* state = row_state(launch, first_state + h, split);
        state[2 + i] = value;
        if (i == 0) {
            state[0] = largest;
            state[1] = sum;
        }
    }
    const uint64_t counter = (uint64_t)own_job.row * row_jobs(launch, HEADS) + job;
    if (part.parts == 1 || !last_of(launch, counter, part.parts)) return;
    for (uint32_t e = threadIdx.x; e < heads * n; e += blockDim.x) {
        uint32_t h = (uint32_t)(e / n), i = (uint32_t)(e % n);
        float largest = LOWEST, sum = 0.0f, value = 0.0f;
#pragma unroll 8
        for (uint32_t p = 0; p < part.parts; ++p) {
            const float* state = row_state(launch, first_state + h, p);
            float theirs = load_fresh_float(state), top = nan_max(largest, theirs);
            float before = expf(largest - top), now = expf(theirs - top);
            largest = top;
            sum = fmaf(now, load_fresh_float(state + 1), sum * before);
            value = fmaf(now, load_fresh_float(state + 2 + i), value * before);
        }
        store(out, out.at(0, head + h, i), value / sum);
    }
}

#define NOCOPY_ATTENTION_ROW(name, READING, HEADS)                                           \
    NOCOPY_KERNEL(attention_row_##name, 256, 2) {                                            \
        attend_row<READING, HEADS>(launch, RowJob(launch));                                  \
    }                                                                                        \
    extern "C" __global__ void __launch_bounds__(256, 2)                                     \
        attention_rows_##name(const __grid_constant__ nocopy_attention_rows rows) {          \
        let_next_start();                                                                    \
        wait_for_previous();                                                                 \
        const uint32_t blocks = row_jobs(rows.launch, HEADS) * (uint32_t)rows.launch.splits; \
        attend_row<READING, HEADS>(rows.launch, RowJob(rows, blocks));                       \
    }

// One head at a time, where each has keys and values of its own.
NOCOPY_ATTENTION_ROW(f32, READ_F32, 1)
NOCOPY_ATTENTION_ROW(f16, READ_F16, 1)
NOCOPY_ATTENTION_ROW(bf16, READ_BF16, 1)
NOCOPY_ATTENTION_ROW(q8_0, READ_Q8_0, 1)

// Four heads of a group share what is read.
NOCOPY_ATTENTION_ROW(grouped_f32, READ_F32, 4)
NOCOPY_ATTENTION_ROW(grouped_f16, READ_F16, 4)
NOCOPY_ATTENTION_ROW(grouped_bf16, READ_BF16, 4)
NOCOPY_ATTENTION_ROW(grouped_q8_0, READ_Q8_0, 4)
