// One stage of attention of walk.cu: a block takes heads of one group and a part of the tokens, and a share
// of what the parts of its heads come to together.
#pragma once

#include "mma.cuh"
#include "walk_stage.cuh"

#if __CUDA_ARCH__ >= 900

// The share that this block has in a stage.
__device__ __forceinline__ Share share_of(const nocopy_launch& launch) {
    const uint32_t* d = launch.record.dims;
    const uint32_t at_once = heads_at_once(launch), a_group = d[1] / d[4];
    const uint32_t chunks = (a_group + at_once - 1) / at_once;
    Share y = {};
    y.n = d[2], y.most = (uint32_t)launch.splits;
    y.job = blockIdx.x / y.most, y.part = blockIdx.x % y.most;
    y.idle = y.job >= d[4] * chunks;
    if (y.idle) return y;
    y.group = y.job / chunks;
    y.head = y.group * a_group + y.job % chunks * at_once;
    y.heads = min(a_group - y.job % chunks * at_once, at_once);
    const Tokens tokens(launch, 0);
    const Part part(tokens, y.part, y.most, FEWEST_ELEMENTS / y.n);
    y.start = (uint32_t)part.start, y.stop = (uint32_t)part.stop, y.parts = part.parts;
    y.newest = (uint32_t)*Tensor(launch, 4).as<int32_t>(), y.empty = tokens.start >= tokens.stop;
    const Tensor k(launch, 2), v(launch, 3);
    const uint32_t size = k.dtype == NOCOPY_F32 ? 4 : 2;
    y.keys = k.as<uint8_t>() + k.at(0, y.group) * size, y.key_row = (uint64_t)k.strides[0] * size;
    y.values = v.as<uint8_t>() + v.at(0, y.group) * size, y.value_row = (uint64_t)v.strides[0] * size;
    return y;
}

// Keys and values of TILE tokens in a warp's registers. Of a key, four lanes have every fourth piece of eight
// elements; of the values of every second token, eight lanes have one piece of every 64.
constexpr uint32_t TILE = 8;
constexpr float WALK_LOG2_E = 1.44269504f;  // so that weights are powers of two

template <int READING>
struct CachedTile {
    static constexpr uint32_t SIZE = READING == READ_F32 ? 4 : 2;
    static constexpr int GROUPS = WALK_HEAD_GROUPS;

    RawEight<READING> keys[2 * GROUPS], values[GROUPS][2];

    static __device__ __forceinline__ uint32_t token() { return threadIdx.x % 32 / 4; }
    static __device__ __forceinline__ uint32_t at(uint32_t c) { return EIGHT * (4 * c + threadIdx.x % 4); }
    static __device__ __forceinline__ uint32_t value_token(uint32_t i) { return 2 * (threadIdx.x % 4) + i; }
    static __device__ __forceinline__ uint32_t value_at(uint32_t g) {
        return 64 * g + EIGHT * (threadIdx.x % 32 / 4);
    }

    // Of the tokens [first, first + count), but the newest one, which is not in the cache yet.
    __device__ __forceinline__ void bring(const Share& cached, uint32_t n, uint32_t first, uint32_t count,
                                          uint32_t newest) {
        const uint8_t* key = cached.keys + (first + token()) * cached.key_row;
        const bool there = token() < count && first + token() != newest;
#pragma unroll
        for (uint32_t c = 0; c < 2 * GROUPS; ++c)
            if (there && at(c) < n) keys[c] = RawEight<READING>::fresh(key + at(c) * SIZE);
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t t = first + value_token(i);
            const uint8_t* value = cached.values + t * cached.value_row;
#pragma unroll
            for (uint32_t g = 0; g < GROUPS; ++g)
                if (value_token(i) < count && t != newest && value_at(g) < n)
                    values[g][i] = RawEight<READING>::fresh(value + value_at(g) * SIZE);
        }
    }

    // The newest token is number `place` of the tile.
    __device__ __forceinline__ void put(uint32_t place, const uint8_t* key, const uint8_t* value,
                                        uint32_t n) {
#pragma unroll
        for (uint32_t c = 0; c < 2 * GROUPS; ++c)
            if (token() == place && at(c) < n) keys[c] = RawEight<READING>(key + at(c) * SIZE);
#pragma unroll
        for (uint32_t g = 0; g < GROUPS; ++g)
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i)
                if (value_token(i) == place && value_at(g) < n)
                    values[g][i] = RawEight<READING>(value + value_at(g) * SIZE);
    }
};

// Element `at` of a head, of heads of n elements one behind the other.
struct Element {
    uint32_t head, at;

    __device__ __forceinline__ Element(uint32_t index, uint32_t n) : head(index / n), at(index % n) {}
    __device__ __forceinline__ void advance(uint32_t by, uint32_t n) {
        for (at += by; at >= n; at -= n) ++head;
    }
};

// What a block's warps do. The row in shared memory: queries, the newest key and value as the cache will hold
// them, and behind them what warps have seen. The cache is read while queries are awaited.
//
// Scores are queries times keys, results values times weights: products of matrices that read 11 bits of a
// factor, as TF32. Queries and weights are two such parts each, which are rows of their own: row r is head
// r % 4, its upper part below 4, what is left from 4 on. The cache's 16 bits fit one.
template <int READING, int HEADS>
struct Attention {
    static constexpr uint32_t SIZE = READING == READ_F32 ? 4 : 2;
    static constexpr int GROUPS = WALK_HEAD_GROUPS;

    const nocopy_stage& s;
    const Share& share;
    float* row;
    uint32_t* words;  // of the exchange
    uint32_t replica_words;
    const volatile int32_t* stop;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Eight queries[2 * GROUPS];              // of row lane / 4: pieces as of keys
    float largest = LOWEST, sum = 0.0f;     // of its head; the sum of this lane's tokens
    float seen[GROUPS][EIGHT / 2][4] = {};  // of elements of a piece, two each, those of two rows

    __device__ __forceinline__ void run() {
        if (share.idle) return;
        const uint32_t n = share.n, newest = share.newest, end = share.stop;
        uint32_t at = share.start + warp * TILE;
        constexpr uint32_t STEP = WALK_WARPS * TILE;
        CachedTile<READING> tile, following;
        const auto bring = [&](CachedTile<READING>& to, uint32_t from) {
            if (from < end) to.bring(share, n, from, min(TILE, end - from), newest);
        };
        bring(tile, at);
        bring(following, at + STEP);
        const uint32_t parts = share.parts, most = share.most, heads = share.heads;
        const Element own(threadIdx.x, n);  // of what the warps have seen
        // The block's share of the elements that parts come to together.
        const uint32_t all = heads * n, width = (all + most - 1) / most;
        const uint32_t steps = steps_for(parts);
        const uint32_t first = min(share.part * width, all), count = min(width, all - first);
        bring_heads();
        hold_queries();
        const uint8_t *key = (const uint8_t*)(row + heads * n), *value = key + n * SIZE;
#pragma unroll 1
        for (; at < end; at += STEP) {
            if (newest - at < TILE) tile.put(newest - at, key, value, n);
            see(tile, min(TILE, end - at));
            tile = following;
            bring(following, at + 2 * STEP);
        }
        float *states = row + (heads + 2) * n, *tops = states + WALK_WARPS * HEADS * n;
        keep(states + warp * HEADS * n, tops + 2 * warp * HEADS);
        meet(WALKERS);
        uint32_t* partial = (words + s.partial) + (uint64_t)share.job * most * HEADS * (n + 2);
        add_warps(states, tops, own, partial + share.part * HEADS * (n + 2));
        meet(WALKERS);  // all have read the states
        if (parts > 1) add_parts(partial, first, count, steps);
    }

    // What the block's warps have seen, as the values of its part, the largest scores and the sums of
    // weights; as what all comes to where there is no other part. Parts that nobody needs too: every use of a
    // place writes all of it.
    __device__ __forceinline__ void add_warps(const float* states, const float* tops, const Element& own,
                                              uint32_t* to) const {
        const uint32_t n = share.n;
#pragma unroll 1
        for (Element e = own; e.head < share.heads; e.advance(WALKERS, n)) {
            float largest = LOWEST, sum = 0.0f, value = 0.0f;
#pragma unroll
            for (uint32_t r = 0; r < WALK_WARPS; ++r)
                largest = max_or_nan(largest, tops[2 * (r * HEADS + e.head)]);
#pragma unroll
            for (uint32_t r = 0; r < WALK_WARPS; ++r) {
                const uint32_t at = r * HEADS + e.head;
                const float keep = fast_exp2(tops[2 * at] - largest);
                sum = fmaf(keep, tops[2 * at + 1], sum);
                value = fmaf(keep, states[at * n + e.at], value);
            }
            if (share.parts == 1 && share.part == 0)
                publish_head(share.head + e.head, e.at, n, share.empty ? 0.0f : fast_divide(value, sum));
            store_tagged(to + e.head * n + e.at, __float_as_uint(value), s.partial_tag);
            if (e.at == 0) {
                store_tagged(to + HEADS * n + 2 * e.head, __float_as_uint(largest), s.partial_tag);
                store_tagged(to + HEADS * n + 2 * e.head + 1, __float_as_uint(sum), s.partial_tag);
            }
        }
    }

    // What parts come to: elements [first, first + count). Lanes next to each other read what the parts have
    // of one element.
    __device__ __forceinline__ void add_parts(const uint32_t* partial, uint32_t first, uint32_t count,
                                              uint32_t steps) const {
        const uint32_t n = share.n, parts = share.parts, lanes = 1u << steps;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i - lane < count * lanes; i += WALKERS) {
            const uint32_t p = i & lanes - 1, index = i >> steps;
            const bool there = p < parts && index < count;
            const Element e(first + min(index, count - 1), n);
            float words[3] = {0.0f, LOWEST, 0.0f};
            if (there)
                read_part(partial + p * HEADS * (n + 2), HEADS * n + 2 * e.head, e.head * n + e.at, words);
            __syncwarp();
            float top = words[1];
            for (uint32_t mask = lanes / 2; mask; mask /= 2)
                top = max_or_nan(top, __shfl_xor_sync(~0u, top, mask));
            const float keep = there ? fast_exp2(words[1] - top) : 0.0f;
            float value = keep * words[0], sum = keep * words[2];
            for (uint32_t mask = lanes / 2; mask; mask /= 2) {
                sum += __shfl_xor_sync(~0u, sum, mask);
                value += __shfl_xor_sync(~0u, value, mask);
            }
            if (there && p == 0) publish_head(share.head + e.head, e.at, n, fast_divide(value, sum));
        }
    }

    // The power of two whose lanes take so many parts.
    static __device__ __forceinline__ uint32_t steps_for(uint32_t parts) {
        uint32_t steps = 0;
        while (1u << steps < parts) ++steps;
        return steps;
    }

    // A value of a part, its largest score, and the sum of its weights.
    __device__ __forceinline__ void read_part(const uint32_t* part, uint32_t top, uint32_t at,
                                              float* to) const {
        uint32_t words[3];
        wait_while(stop, [&] {
            words[0] = load_tagged_word(part + at);
            words[1] = load_tagged_word(part + top), words[2] = load_tagged_word(part + top + 1);
            return (((words[0] ^ s.partial_tag) | (words[1] ^ s.partial_tag) | (words[2] ^ s.partial_tag)) &
                    1) != 0;
        });
#pragma unroll
        for (int i = 0; i < 3; ++i) to[i] = __uint_as_float(words[i]);
    }

    __device__ __forceinline__ void publish_head(uint32_t head, uint32_t i, uint32_t n, float value) const {
        uint32_t* to = words + s.target + head * n + i;
#pragma unroll 1
        for (uint32_t c = 0; c < s.replicas; ++c, to += replica_words)
            store_tagged(to, __float_as_uint(value), s.target_tag);
    }

    // The part of a value that row lane / 4 takes.
    __device__ __forceinline__ float part_of(float value) const {
        const float upper = tf32_part(value);
        return lane < 16 ? upper : value - upper;
    }

    __device__ __forceinline__ void hold_queries() {
        const uint32_t head = min(lane / 4 % 4, share.heads - 1);
#pragma unroll
        for (uint32_t c = 0; c < 2 * GROUPS; ++c) {
            const uint32_t at = CachedTile<READING>::at(c);
            const uint8_t* query = (const uint8_t*)(row + head * share.n + at);
            queries[c] = (at < share.n ? RawEight<READ_F32>(query) : RawEight<READ_F32>()).decoded();
#pragma unroll
            for (uint32_t j = 0; j < EIGHT; ++j) queries[c].v[j] = part_of(queries[c].v[j]);
        }
    }

    // A tile of `count` tokens; of its scores and weights, a lane has those of two tokens for one row.
    __device__ __forceinline__ void see(const CachedTile<READING>& tile, uint32_t count) {
        float scores[4] = {};
#pragma unroll
        for (uint32_t c = 0; c < 2 * GROUPS; ++c) {
            const Eight key = tile.keys[c].decoded(), &query = queries[c];
#pragma unroll
            for (uint32_t j = 0; j < EIGHT; j += 2) {
                multiply_tf32(scores, query.v[j], 0.0f, query.v[j + 1], 0.0f, key.v[j], key.v[j + 1]);
                if constexpr (READING == READ_F32)
                    multiply_tf32(scores, query.v[j], 0.0f, query.v[j + 1], 0.0f, rest(key.v[j]),
                                  rest(key.v[j + 1]));
            }
        }
        bool there[2];
        float top = largest, weights[2];
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            scores[i] = param_f32(s.launch, 0) * (scores[i] + __shfl_xor_sync(~0u, scores[i], 16));
#ifndef NO_SOFTCAP
            const float softcap = param_f32(s.launch, 1);
            if (softcap != 0.0f) scores[i] = capped(scores[i], softcap);
#endif
            scores[i] *= WALK_LOG2_E;
            there[i] = CachedTile<READING>::value_token(i) < count;
            if (there[i]) top = max_or_nan(top, scores[i]);
        }
        top = max_or_nan(top, __shfl_xor_sync(~0u, top, 1));
        top = max_or_nan(top, __shfl_xor_sync(~0u, top, 2));
        const float before = fast_exp2(largest - top);
        largest = top;
        sum *= before;
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            weights[i] = there[i] ? fast_exp2(scores[i] - top) : 0.0f;
            sum += weights[i];
            weights[i] = part_of(weights[i]);
        }
        const float even = __shfl_sync(~0u, before, 8 * lane % 16);
        const float odd = __shfl_sync(~0u, before, 8 * lane % 16 + 4);
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            const Eight a = tile.values[g][0].decoded(), b = tile.values[g][1].decoded();
#pragma unroll
            for (uint32_t j = 0; j < EIGHT / 2; ++j) {
                float (&d)[4] = seen[g][j];
                d[0] *= even, d[1] *= odd, d[2] *= even, d[3] *= odd;
                multiply_tf32(d, a.v[2 * j], a.v[2 * j + 1], b.v[2 * j], b.v[2 * j + 1], weights[0],
                              weights[1]);
                if constexpr (READING == READ_F32)
                    multiply_tf32(d, rest(a.v[2 * j]), rest(a.v[2 * j + 1]), rest(b.v[2 * j]),
                                  rest(b.v[2 * j + 1]), weights[0], weights[1]);
            }
        }
    }

    static __device__ __forceinline__ float rest(float value) { return value - tf32_part(value); }

    // What the warp has seen, for the others: of a head n values; its largest score and the sum of weights.
    __device__ __forceinline__ void keep(float* values, float* tops) {
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane % 4 == 0 && lane / 4 < share.heads)
            tops[2 * (lane / 4)] = largest, tops[2 * (lane / 4) + 1] = sum;
        // A lane has the upper parts of two heads, or what is left of them; then all of one of the two.
        const bool upper = lane % 4 < 2;
        const uint32_t head = lane % 2 * 2 + !upper;
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            float* to = values + head * share.n + CachedTile<READING>::value_at(g);
            const bool own = head < share.heads && CachedTile<READING>::value_at(g) < share.n;
#pragma unroll
            for (uint32_t j = 0; j < EIGHT / 2; ++j) {
                const float (&d)[4] = seen[g][j];
                TwoFloats both = {(upper ? d[0] : d[1]) + __shfl_xor_sync(~0u, upper ? d[1] : d[0], 2),
                                  (upper ? d[2] : d[3]) + __shfl_xor_sync(~0u, upper ? d[3] : d[2], 2)};
                if (own) *(TwoFloats*)(to + 2 * j) = both;
            }
        }
    }

    // Queries of the block's heads, then the newest key and value of their group.
    __device__ __forceinline__ void bring_heads() const {
        const uint32_t n = share.n / 4, queries = share.heads * n;
        const uint32_t from[3] = {s.source + share.head * share.n, s.source + s.keys + share.group * share.n,
                                  s.source + s.values + share.group * share.n};
        bring_words<1>(
            threadIdx.x, WALKERS, queries + 2 * n, s.source_tag, stop,
            [&](uint32_t i) {
                if (i < queries) return words + from[0] + 4 * i;
                return i < queries + n ? words + from[1] + 4 * (i - queries)
                                       : words + from[2] + 4 * (i - queries - n);
            },
            [&](uint32_t i, const Words4& four) {
                if (i < queries)
                    ((Words4*)row)[i] = four;
                else
                    encode((uint8_t*)(row + share.heads * share.n) + 4 * (i - queries) * SIZE, four);
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
