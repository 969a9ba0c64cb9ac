// What kernels share that attend to a row's tokens as decoding needs it: a block takes a part of the tokens,
// a warp up to two heads, so that a block has registers beside it for one of the next kernel, and reads
// IN_FLIGHT tokens a team of lanes before it uses the first.
#pragma once

#include "attention.cuh"
#include "stream.cuh"

constexpr uint32_t TOKENS = 128;   // of a part, at least
constexpr uint32_t IN_FLIGHT = 4;  // tokens that a team of lanes reads at once
constexpr uint32_t ROW_WARPS = 8;  // of a block

// Eight elements of a head as they lie in the cache.
template <int READING>
struct RawEight {
    Words4 words;

    __device__ RawEight() : words() {}
    __device__ RawEight(const Tensor& t, uint64_t head, uint64_t first)
        : RawEight(t.as<uint8_t>() + 2 * (head + first)) {}
    __device__ RawEight(const uint8_t* at) : words(read_as<Words4>(at)) {}
    // What other blocks may have written since the kernel began.
    static __device__ RawEight fresh(const uint8_t* at) {
        RawEight y;
        y.words = load_fresh(at);
        return y;
    }
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
    __device__ RawEight(const Tensor& t, uint64_t head, uint64_t first)
        : RawEight(t.as<uint8_t>() + 4 * (head + first)) {}
    __device__ RawEight(const uint8_t* at) : low(read_as<Words4>(at)), high(read_as<Words4>(at + 16)) {}
    static __device__ RawEight fresh(const uint8_t* at) {
        RawEight y;
        y.low = load_fresh(at), y.high = load_fresh(at + 16);
        return y;
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

    // At most `most` parts of `least` tokens or more.
    __device__ Part(const Tokens& tokens, uint32_t index, uint32_t most, uint32_t least = TOKENS) {
        const uint32_t count = (uint32_t)(tokens.stop - tokens.start);  // dims are below 2^31
        parts = max(min((count + least - 1) / least, most), 1u);
        const uint32_t each = (count + parts - 1) / parts;
        start = min(tokens.start + (int64_t)index * each, tokens.stop);
        stop = min(start + (int64_t)each, tokens.stop);
    }
};

// Rare, and long where it is repeated.
__device__ __noinline__ float capped(float score, float softcap) {
    return softcap * tanhf(score / softcap);
}

// What a warp makes of its tokens, for its own heads.
template <int READING, int OWN>
struct RowWalk {
    Eight queries[OWN];
    Seen seen[OWN];
    float scale, softcap;

    // Of the tokens of a part, warp `index` of `count` takes every count-th run. `team` lanes hold a head of
    // n elements, this one those from `place` on; fetch(token, key, value) reads a token's.
    template <typename Fetch>
    __device__ void over(const Part& part, uint64_t place, uint64_t n, uint32_t team, uint32_t index,
                         uint32_t count, Fetch fetch) {
        const uint32_t lane = threadIdx.x % 32, at_once = 32 / team, run = at_once * IN_FLIGHT;
#pragma unroll 1
        for (int64_t first = part.start + index * run; first < part.stop; first += count * run) {
            RawEight<READING> keys[IN_FLIGHT], values[IN_FLIGHT];
#pragma unroll
            for (uint32_t i = 0; i < IN_FLIGHT; ++i) {
                uint64_t token = (uint64_t)min(first + i * at_once + lane / team, part.stop - 1);
                if (place < n) fetch(token, keys[i], values[i]);
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
                    if (softcap != 0.0f) score = capped(score, softcap);
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
