// One stage of attention of walk.cu: a block takes heads of one group and a part of the tokens, and a share
// of what the parts of its heads come to together.
#pragma once

#include "walk_stage.cuh"

#if __CUDA_ARCH__ >= 900

// What a block does in an attention stage: heads of one group, and a part of the tokens.
struct AttentionJob {
    uint32_t n, group, head, heads, most, split, job;
    bool idle;

    __device__ __forceinline__ AttentionJob(const nocopy_launch& launch, uint32_t at_once) {
        const uint32_t* d = launch.record.dims;
        const uint32_t a_group = d[1] / d[4], chunks = (a_group + at_once - 1) / at_once;
        n = d[2];
        most = (uint32_t)launch.splits;
        job = blockIdx.x / most, split = blockIdx.x % most;
        idle = job >= d[4] * chunks;
        group = job / chunks;
        head = group * a_group + job % chunks * at_once;
        heads = min(a_group - job % chunks * at_once, at_once);
    }

    static __device__ __forceinline__ uint32_t at_once(const nocopy_launch& launch) {
        return launch.record.dims[1] > launch.record.dims[4] ? 4 : 1;
    }
};

// The rows of a cache that a block reads in an attention stage: `tile` tokens at a time lie in a warp's slot,
// the keys first, each row `step` bytes behind the one before it, so that lanes read several at once.
struct CachedHead {
    const uint8_t *keys, *values;  // of token 0
    uint64_t key_row, value_row;   // bytes from a token to the next
    uint32_t bytes, step, tile;

    CachedHead() = default;
    __device__ __forceinline__ CachedHead(const nocopy_launch& launch, const AttentionJob& job,
                                          uint32_t slot) {
        const Tensor k(launch, 2), v(launch, 3);
        const uint32_t size = k.dtype == NOCOPY_F32 ? 4 : 2;
        keys = k.as<uint8_t>() + k.at(0, job.group) * size, key_row = (uint64_t)k.strides[0] * size;
        values = v.as<uint8_t>() + v.at(0, job.group) * size, value_row = (uint64_t)v.strides[0] * size;
        bytes = job.n * size, step = bytes + 16;
        tile = min(slot / (2 * step), MOST_TOKENS);
    }
};

// What a block's warps do. The row in shared memory: queries, the newest key and value as the cache will hold
// them, and behind them what warps have seen. Of a tile, a team of four lanes has a token.
template <int READING, int HEADS>
struct Attention {
    static constexpr uint32_t SIZE = READING == READ_F32 ? 4 : 2;
    static constexpr int GROUPS = WALK_HEAD_GROUPS;  // pairs of elements of a head that a lane adds up

    const nocopy_stage& s;
    float* row;
    uint32_t* words;  // of the exchange
    const volatile int32_t* stop;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float largest[HEADS], sum[HEADS], seen[HEADS][GROUPS][2];

    // take() waits for the warp's next tile, release() lets go of it.
    template <typename Take, typename Release>
    __device__ __forceinline__ void run(uint32_t slot_bytes, Take take, Release release) {
        const nocopy_launch& launch = s.launch;
        const AttentionJob job(launch, HEADS);
        if (job.idle) return;
        const uint32_t n = job.n;
        const Tokens tokens(launch, 0);
        const Part part(tokens, job.split, job.most, FEWEST_TOKENS);
        const uint32_t parts = part.parts;
        const bool empty = tokens.start >= tokens.stop, alone = parts == 1;
        const CachedHead cached(launch, job, slot_bytes);
        // Whose row the blocks have just handed on.
        const uint32_t newest = (uint32_t)*Tensor(launch, 4).as<int32_t>();
        bring_heads(job);
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            largest[h] = LOWEST, sum[h] = 0.0f;
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) seen[h][g][0] = seen[h][g][1] = 0.0f;
        }
        const uint32_t end = (uint32_t)part.stop;
#pragma unroll 1
        for (uint32_t at = (uint32_t)part.start + warp * cached.tile; at < end;
             at += WALK_WARPS * cached.tile) {
            see(take(), min(cached.tile, end - at), newest - at, cached, job);
            release();
        }
        float* states = row + (job.heads + 2) * n;  // [warp][head]: largest, sum, n values
        auto state = [&](uint32_t r, uint32_t h) { return states + (r * HEADS + h) * (n + 2); };
        keep(job, [&](uint32_t h) { return state(warp, h); });
        meet(WALKERS);
        uint32_t* partial = (words + s.partial) + (uint64_t)job.job * job.most * HEADS * (n + 2);
        auto partial_of = [&](uint32_t p, uint32_t h) { return partial + (p * HEADS + h) * (n + 2); };
#pragma unroll 1
        for (uint32_t e = threadIdx.x; e < job.heads * n; e += WALKERS) {
            const uint32_t h = e / n, i = e % n;
            float largest = LOWEST, sum = 0.0f, value = 0.0f;
#pragma unroll
            for (uint32_t r = 0; r < WALK_WARPS; ++r) largest = nan_max(largest, state(r, h)[0]);
#pragma unroll
            for (uint32_t r = 0; r < WALK_WARPS; ++r) {
                const float keep = expf(state(r, h)[0] - largest);
                sum = fmaf(keep, state(r, h)[1], sum);
                value = fmaf(keep, state(r, h)[2 + i], value);
            }
            if (alone && job.split == 0) publish_head(job.head + h, i, n, empty ? 0.0f : value / sum);
            // Parts that nobody needs too: every use of a place writes all of it.
            uint32_t* to = partial_of(job.split, h);
            store_tagged(to + 2 + i, __float_as_uint(value), s.partial_tag);
            if (i == 0) {
                store_tagged(to, __float_as_uint(largest), s.partial_tag);
                store_tagged(to + 1, __float_as_uint(sum), s.partial_tag);
            }
        }
        meet(WALKERS);  // all have read the states
        if (alone || job.split >= parts) return;
        // The block's share of the elements: a lane reads that of one part.
        const uint32_t all = job.heads * n, lanes = lanes_for(parts), p = lane % lanes;
        const uint32_t first = all * job.split / parts, stop = all * (job.split + 1) / parts;
#pragma unroll 1
        for (uint32_t base = first + warp * (32 / lanes); base < stop; base += WALKERS / lanes) {
            const uint32_t e = min(base + lane / lanes, stop - 1), h = e / n, i = e % n;
            float largest = LOWEST, sum = 0.0f, value = 0.0f;
            if (p < parts) read_part(partial_of(p, h), i, s.partial_tag, largest, sum, value);
            float top = largest;
            for (uint32_t mask = lanes / 2; mask; mask /= 2)
                top = nan_max(top, __shfl_xor_sync(~0u, top, mask));
            const float keep = p < parts ? expf(largest - top) : 0.0f;
            sum *= keep, value *= keep;
            for (uint32_t mask = lanes / 2; mask; mask /= 2) {
                sum += __shfl_xor_sync(~0u, sum, mask);
                value += __shfl_xor_sync(~0u, value, mask);
            }
            if (p == 0 && base + lane / lanes < stop) publish_head(job.head + h, i, n, value / sum);
        }
    }

    // The smallest power of two that is as large.
    static __device__ __forceinline__ uint32_t lanes_for(uint32_t parts) {
        uint32_t lanes = 1;
        while (lanes < parts) lanes *= 2;
        return lanes;
    }

    // Largest, sum and value i of a part.
    __device__ __forceinline__ void read_part(const uint32_t* at, uint32_t i, uint32_t tag, float& largest,
                                              float& sum, float& value) const {
        Patience patience{stop};
        uint32_t words[3];
        bool missing;
        do {
            words[0] = load_tagged_word(at), words[1] = load_tagged_word(at + 1);
            words[2] = load_tagged_word(at + 2 + i);
            missing = (((words[0] ^ tag) | (words[1] ^ tag) | (words[2] ^ tag)) & 1) != 0;
            if (missing) relax();
        } while (missing && !patience.over());
        largest = __uint_as_float(words[0]), sum = __uint_as_float(words[1]);
        value = __uint_as_float(words[2]);
    }

    __device__ __forceinline__ void publish_head(uint32_t head, uint32_t i, uint32_t n, float value) const {
        store_tagged((words + s.target + head * n + i), __float_as_uint(value), s.target_tag);
    }

    // A tile of `count` tokens, of which the newest one, if it is there, is not in the cache yet.
    __device__ __forceinline__ void see(const uint8_t* slot, uint32_t count, uint32_t newest,
                                        const CachedHead& cached, const AttentionJob& job) {
        const uint32_t n = job.n, token = min(lane / 4, count - 1);
        const uint8_t *newest_key = (const uint8_t*)(row + job.heads * n),
                      *newest_value = newest_key + cached.bytes;
        const uint8_t* key = token == newest ? newest_key : slot + token * cached.step;
        float scores[HEADS] = {};
#pragma unroll 1
        for (uint32_t c = EIGHT * (lane % 4); c < n; c += 4 * EIGHT) {
            const Eight k = RawEight<READING>(key + c * SIZE).decoded();
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                const uint8_t* query = (const uint8_t*)(row + min((uint32_t)h, job.heads - 1) * n + c);
                scores[h] += dot(RawEight<READ_F32>(query).decoded(), k);
            }
        }
        float weights[HEADS];
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float score = scores[h];
            score += __shfl_xor_sync(~0u, score, 1);
            score += __shfl_xor_sync(~0u, score, 2);
            score *= param_f32(s.launch, 0);
#ifndef NO_SOFTCAP
            const float softcap = param_f32(s.launch, 1);
            if (softcap != 0.0f) score = capped(score, softcap);
#endif
            const bool there = lane / 4 < count;
            float top = there ? score : LOWEST;
            for (int mask = 4; mask < 32; mask *= 2) top = nan_max(top, __shfl_xor_sync(~0u, top, mask));
            top = nan_max(top, largest[h]);
            const float before = expf(largest[h] - top);
            weights[h] = there ? expf(score - top) : 0.0f;
            largest[h] = top;
            sum[h] = fmaf(sum[h], before, weights[h]);
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) seen[h][g][0] *= before, seen[h][g][1] *= before;
        }
#pragma unroll
        for (uint32_t t = 0; t < MOST_TOKENS; ++t) {
            if (t >= count) continue;
            const uint8_t* value = t == newest ? newest_value : slot + (cached.tile + t) * cached.step;
            float w[HEADS];
#pragma unroll
            for (int h = 0; h < HEADS; ++h) w[h] = __shfl_sync(~0u, weights[h], 4 * t);
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                const uint32_t e = 64 * g + 2 * lane;
                if (e >= n) continue;
                float v[2];
                two_at(value + e * SIZE, v);
#pragma unroll
                for (int h = 0; h < HEADS; ++h) {
                    seen[h][g][0] = fmaf(w[h], v[0], seen[h][g][0]);
                    seen[h][g][1] = fmaf(w[h], v[1], seen[h][g][1]);
                }
            }
        }
    }

    static __device__ __forceinline__ void two_at(const uint8_t* at, float (&v)[2]) {
        if constexpr (READING == READ_F32) {
            v[0] = read_as<float>(at), v[1] = read_as<float>(at + 4);
        } else {
            const uint32_t pair = read_as<uint32_t>(at);
            v[0] = READING == READ_BF16 ? __uint_as_float(pair << 16) : f16_to_f32((uint16_t)pair);
            v[1] = READING == READ_BF16 ? __uint_as_float(pair & 0xffff0000)
                                        : f16_to_f32((uint16_t)(pair >> 16));
        }
    }

    // What the warp has seen, for the others.
    template <typename State>
    __device__ __forceinline__ void keep(const AttentionJob& job, State state) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            for (int mask = 4; mask < 32; mask *= 2) sum[h] += __shfl_xor_sync(~0u, sum[h], mask);
            if (h >= job.heads) continue;
            float* to = state(h);
            if (lane == 0) to[0] = largest[h], to[1] = sum[h];
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                const uint32_t e = 64 * g + 2 * lane;
                if (e < job.n) to[2 + e] = seen[h][g][0], to[3 + e] = seen[h][g][1];
            }
        }
    }

    // Queries of the block's heads, then the newest key and value of their group.
    __device__ __forceinline__ void bring_heads(const AttentionJob& job) const {
        const uint32_t n = job.n / 4, queries = job.heads * n;
        const uint32_t from[3] = {s.source + job.head * job.n, s.source + s.keys + job.group * job.n,
                                  s.source + s.values + job.group * job.n};
        bring_words<1>(
            threadIdx.x, WALKERS, queries + 2 * n, s.source_tag, stop,
            [&](uint32_t i) {
                if (i < queries) return words + from[0] + 4 * i;
                return i < queries + n ? words + from[1] + 4 * (i - queries)
                                       : words + from[2] + 4 * (i - queries - n);
            },
            Nothing(),
            [&](uint32_t i, const Words4& four, const Words4&) {
                if (i < queries)
                    ((Words4*)row)[i] = four;
                else
                    encode((uint8_t*)(row + job.heads * job.n) + 4 * (i - queries) * SIZE, four);
            });
        meet(WALKERS);
    }

    // Four elements as the cache holds them.
    static __device__ __forceinline__ void encode(uint8_t* to, const Words4& four) {
        if constexpr (READING == READ_F32) {
            *(Words4*)to = four;
        } else {
            Words<2> halves;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float a = __uint_as_float(four.v[2 * i]), b = __uint_as_float(four.v[2 * i + 1]);
                halves.v[i] = READING == READ_F16 ? f32_to_f16(a) | (uint32_t)f32_to_f16(b) << 16
                                                  : f32_to_bf16(a) | (uint32_t)f32_to_bf16(b) << 16;
            }
            *(Words<2>*)to = halves;
        }
    }
};

#endif
