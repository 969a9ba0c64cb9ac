// How a token is chosen from scores.
//
//     penalize  out[r,n] = x; where n is among recent[r,w]: shrunk or grown, less frequency and presence
//     sample    out[r] = an n drawn from x[r,n] with weights 2^(steepness x), among top_k, top_p, min_p
//
// tape/reference_sample.py says what each number means. Weights are whole numbers and no sum depends on its
// order, so that every player draws the same. Elements are ordered by the keys of argmax and topk; what a
// filter keeps are the keys from `lowest` on. Where that is, a radix selection by count or by weight says.
//
// sample gives a row to one block, which reads it up to 20 times. For few long rows launch.splits blocks
// share a row in six launches: the largest score; twice, for top_k and then top_p, a histogram over the
// distance from it and a selection among one bucket's elements; the draw. What they hand on lies in the
// workspace. Bound: the launches, 1 to 2 us each; the bytes of x come from the cache.
#include "keys.cuh"
#include "rows.cuh"
#include "split.cuh"

constexpr uint32_t DIGIT = 256;
constexpr uint32_t BUCKETS = 2048;  // of 1/64 each in the score; the last one is for all that is further
constexpr float BUCKETS_PER_ONE = 64.0f;  // device/cuda_launch.py has their number
constexpr float LOG2_E = 1.44269504f, SMALLEST = 1.17549435e-38f, FURTHEST = 63.0f;
constexpr uint64_t WHOLE = (uint64_t)1 << 40;
constexpr uint32_t MOST_RECENT = 4096;
constexpr uint32_t FEW = 512;  // keys that are ordered by comparing each with all others

struct Choice {
    float steepness, top_p, min_p;
    int32_t top_k;
    uint64_t bits;  // the random number
};

// The first word of Philox4x64-10 with key `seed` and counter `draw` + 1.
__device__ inline uint64_t random_bits(uint64_t seed, uint64_t draw) {
    uint64_t c0 = draw + 1, c1 = c0 == 0, c2 = 0, c3 = 0, k0 = seed, k1 = 0;
    for (int round = 0; round < 10; ++round) {
        uint64_t a = c0, b = c2;
        c0 = __umul64hi(0xCA5A826395121157u, b) ^ c1 ^ k0;
        c1 = 0xCA5A826395121157u * b;
        c2 = __umul64hi(0xD2E7470EE14C6C93u, a) ^ c3 ^ k1;
        c3 = 0xD2E7470EE14C6C93u * a;
        k0 += 0x9E3779B97F4A7C15u;
        k1 += 0xBB67AE8584CAA73Bu;
    }
    return c0;
}

__device__ inline Choice choice_of(const nocopy_launch& launch, uint64_t row) {
    Tensor options(launch, 2), state(launch, 3);
    auto number = [&](uint64_t i) { return options.as<float>()[options.at(row, i)]; };
    auto word = [&](uint64_t i) { return (uint64_t)state.as<uint32_t>()[state.at(row, i)]; };
    uint64_t seed = word(1) | word(2) << 32, draw = word(3) | word(4) << 32;
    return {number(0), number(1), number(2), (int32_t)word(0),
            random_bits(seed, draw + launch.record.params[0])};
}

// 2^(40 - steepness below), rounded down.
__device__ inline uint64_t weight(float below, float steepness) {
    float halvings = below < SMALLEST ? 0.0f : below * steepness;
    halvings = halvings < FURTHEST ? halvings : FURTHEST;
    uint32_t q = (uint32_t)(halvings * 16777216.0f), fraction = q & 0xffffff;
    const uint32_t terms[] = {NOCOPY_EXP2_0, NOCOPY_EXP2_1, NOCOPY_EXP2_2, NOCOPY_EXP2_3,
                              NOCOPY_EXP2_4, NOCOPY_EXP2_5, NOCOPY_EXP2_6, NOCOPY_EXP2_7};
    uint32_t p = terms[7];
#pragma unroll
    for (int i = 6; i >= 0; --i) p = terms[i] - (uint32_t)((uint64_t)p * fraction >> 24);
    return (uint64_t)p << 10 >> (q >> 24);
}

// total * p / 2^32, where p is a part of one in 2^-32 ths, both rounded down.
__device__ inline uint64_t part_of(uint64_t total, float p) {
    uint64_t part = p >= 1.0f ? (uint64_t)1 << 32 : p > 0.0f ? (uint64_t)(p * 4294967296.0f) : 0;
    return part * (total >> 32) + (part * (total & 0xffffffff) >> 32);
}

// One row of scores, and what is kept of it: keys from `lowest` on.
struct Scores {
    Tensor x;
    uint64_t start, n;
    float top;
    uint64_t lowest;

    __device__ float score(uint64_t i) const {
        float value = load(x, start + i * x.strides[1]);
        return value == value ? value : __uint_as_float(0xff800000);
    }
    __device__ uint64_t key(uint64_t i) const { return rank_key(score(i), i); }
    __device__ bool kept(uint64_t key) const { return key >= lowest; }
    __device__ uint64_t likelihood(uint64_t key) const { return weight(top - score_of(key), LOG2_E); }
    __device__ uint32_t bucket(uint64_t key) const {
        float at = (top - score_of(key)) * BUCKETS_PER_ONE;
        return at < (float)(BUCKETS - 1) ? (uint32_t)at : BUCKETS - 1;
    }
};

// The sum of `value` over this thread of the block and those before it.
__device__ inline uint64_t sum_to_here(uint64_t value) {
    __shared__ uint64_t sums[32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint64_t other = __shfl_sync(0xffffffffu, value, (int)(lane >= step ? lane - step : lane));
        if (lane >= step) value += other;
    }
    if (lane == 31) sums[warp] = value;
    __syncthreads();
    for (uint32_t before = 0; before < warp; ++before) value += sums[before];
    __syncthreads();  // all have read; the next call may write
    return value;
}

struct Reached {
    uint64_t at;    // an index
    uint64_t left;  // of what was wanted, before the value there
};

// Where the sum of get(0), get(1), ... reaches `wanted`, which lies between 1 and the sum of all n.
template <typename Get>
__device__ inline Reached reach(uint64_t n, uint64_t wanted, Get get) {
    __shared__ Reached found;
    uint64_t share = (n + blockDim.x - 1) / blockDim.x;
    uint64_t first = min(n, threadIdx.x * share), stop = min(n, first + share), mine = 0;
    for (uint64_t i = first; i < stop; ++i) mine += get(i);
    uint64_t before = sum_to_here(mine) - mine;
    if (threadIdx.x == 0) found = {0, wanted};
    __syncthreads();
    if (before < wanted && wanted - before <= mine) {
        uint64_t left = wanted - before, i = first;
        for (; i + 1 < stop; ++i) {
            uint64_t value = get(i);
            if (value >= left) break;
            left -= value;
        }
        found = {i, left};
    }
    __syncthreads();
    Reached result = found;
    __syncthreads();
    return result;
}

// The key at which the weights of n keys, summed from the largest key down, reach `wanted`, or a bound just
// below it.
template <typename Key, typename Weight>
__device__ inline uint64_t select_weighted(uint64_t n, Key key, Weight weight_of, uint64_t wanted) {
    __shared__ uint64_t sums[DIGIT];
    uint64_t prefix = 0, mask = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (uint32_t d = threadIdx.x; d < DIGIT; d += blockDim.x) sums[d] = 0;
        __syncthreads();
        row_each(n, [&](uint64_t i) {
            uint64_t k = key(i);
            if ((k & mask) == prefix) atomicAdd(&sums[k >> shift & (DIGIT - 1)], weight_of(k));
        });
        __syncthreads();
        Reached digit = reach(DIGIT, wanted, [&](uint64_t i) { return sums[DIGIT - 1 - i]; });
        wanted = digit.left;
        prefix |= (DIGIT - 1 - digit.at) << shift;
        mask |= (uint64_t)(DIGIT - 1) << shift;
        if (sums[DIGIT - 1 - digit.at] == wanted) break;  // all that share the prefix are wanted
        __syncthreads();
    }
    __syncthreads();
    return prefix;
}

// The same for at most FEW keys: each is compared with all others.
template <typename Key, typename Weight>
__device__ inline uint64_t select_of_few(uint64_t n, Key key, Weight weight_of, uint64_t wanted) {
    __shared__ uint64_t keys[FEW], weights[FEW], found;
    if (threadIdx.x == 0) found = 0;
    row_each(n, [&](uint64_t i) {
        keys[i] = key(i);
        weights[i] = weight_of(keys[i]);
    });
    __syncthreads();
    row_each(n, [&](uint64_t i) {
        uint64_t before = 0;
        for (uint64_t j = 0; j < n; ++j)
            if (keys[j] > keys[i]) before += weights[j];
        if (before < wanted && wanted - before <= weights[i]) found = keys[i];
    });
    __syncthreads();
    return found;
}

struct Plus {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};

// The weight in the draw of one that is kept; 0 for one that is not likely enough.
__device__ inline uint64_t share_of(const Scores& s, const Choice& choice, uint64_t least, uint64_t key) {
    if (!s.kept(key) || (least && s.likelihood(key) < least)) return 0;
    return weight(s.top - score_of(key), choice.steepness);
}

// True if there is nothing to draw: the largest key says which index it is, -1 if it is not finite.
__device__ inline bool decided(uint64_t best, const Choice& choice, int32_t* found) {
    float top = score_of(best);
    bool finite = top - top == 0.0f;
    *found = finite ? (int32_t)index_of(best) : -1;
    return !finite || !(choice.steepness >= SMALLEST);
}

NOCOPY_KERNEL(sample, 1024, 1) {
    const uint32_t* d = launch.record.dims;
    Tensor out(launch, 0);
    Scores s{Tensor(launch, 1), 0, d[1], 0, 0};
    for (uint64_t row = blockIdx.x; row < d[0]; row += gridDim.x) {
        if (block_stopped(launch)) return;
        const Choice choice = choice_of(launch, row);
        s.start = s.x.at(row);
        s.lowest = 0;
        auto key = [&](uint64_t i) { return s.key(i); };
        uint64_t best = row_combine(launch, s.n, (uint64_t)0, key, Larger());
        s.top = score_of(best);
        int32_t found;
        if (!decided(best, choice, &found)) {
            if (choice.top_k > 0 && (uint64_t)choice.top_k < s.n)
                s.lowest = select_weighted(s.n, key, [](uint64_t) { return (uint64_t)1; }, choice.top_k);
            auto likelihood = [&](uint64_t k) { return s.kept(k) ? s.likelihood(k) : 0; };
            if (choice.top_p < 1.0f) {
                uint64_t total = row_combine(
                    launch, s.n, (uint64_t)0, [&](uint64_t i) { return likelihood(key(i)); }, Plus());
                uint64_t wanted = max(part_of(total, choice.top_p), (uint64_t)1);
                s.lowest = max(s.lowest, select_weighted(s.n, key, likelihood, wanted));
            }
            uint64_t least = part_of(WHOLE, choice.min_p);
            auto share = [&](uint64_t i) { return share_of(s, choice, least, key(i)); };
            uint64_t total = row_combine(launch, s.n, (uint64_t)0, share, Plus());
            found = (int32_t)reach(s.n, __umul64hi(choice.bits, total) + 1, share).at;
        }
        if (threadIdx.x == 0) out.as<int32_t>()[out.at(row)] = found;
    }
}

// What the launches of a row hand on. `done` is set once the index is known.
struct Progress {
    Choice choice;
    uint64_t lowest;
    uint64_t wanted;  // of the bucket in which a filter ends
    float top;
    uint32_t bucket, listed, done;
};
static_assert(sizeof(Progress) == 56, "device/cuda_launch.py has this number");

// A block's part of a row.
struct RowPart {
    uint64_t row, split, first, stop;
    Progress* progress;
    uint64_t *parts, *sums, *keys;
    Scores s;

    __device__ explicit RowPart(const nocopy_launch& launch)
        : s{Tensor(launch, 1), 0, launch.record.dims[1], 0, 0} {
        row = blockIdx.x / launch.splits;
        split = blockIdx.x % launch.splits;
        first = s.n * split / launch.splits;
        stop = s.n * (split + 1) / launch.splits;
        s.start = s.x.at(row);
        uint64_t words = sizeof(Progress) / 8 + launch.splits + BUCKETS + s.n;
        uint64_t* own = (uint64_t*)launch.workspace + row * words;
        progress = (Progress*)own;
        parts = own + sizeof(Progress) / 8;
        sums = parts + launch.splits;
        keys = sums + BUCKETS;
    }

    // Takes over what the launches before found out; false if there is nothing left to do.
    __device__ bool go_on() {
        s.top = progress->top;
        s.lowest = progress->lowest;
        return !progress->done;
    }

    template <typename Body>
    __device__ void each(Body body) const {
        for (uint64_t i = first + threadIdx.x; i < stop; i += blockDim.x) body(s.key(i));
    }
};

NOCOPY_KERNEL(sample_largest, 256, 4) {
    RowPart part(launch);
    for (uint32_t i = (uint32_t)part.split * blockDim.x + threadIdx.x; i < BUCKETS;
         i += (uint32_t)launch.splits * blockDim.x)
        part.sums[i] = 0;
    auto key = [&](uint64_t i) { return part.s.key(part.first + i); };
    uint64_t best = row_combine(launch, part.stop - part.first, (uint64_t)0, key, Larger());
    if (threadIdx.x == 0) part.parts[part.split] = best;
    if (!last_of(launch, part.row, (uint32_t)launch.splits)) return;
    auto largest = [&](uint64_t i) { return *(volatile uint64_t*)(part.parts + i); };
    best = row_combine(launch, launch.splits, (uint64_t)0, largest, Larger());
    if (threadIdx.x) return;
    const Choice choice = choice_of(launch, part.row);
    int32_t found;
    bool done = decided(best, choice, &found);
    *part.progress = {choice, 0, 0, score_of(best), 0, 0, done};
    Tensor out(launch, 0);
    if (done) out.as<int32_t>()[out.at(part.row)] = found;
}

__device__ inline bool asks(const Progress& progress, uint64_t n, bool by_weight) {
    if (by_weight) return progress.choice.top_p < 1.0f;
    return progress.choice.top_k > 0 && (uint64_t)progress.choice.top_k < n;
}

// In which bucket a filter ends.
__device__ inline void find_bucket(const nocopy_launch& launch, bool by_weight) {
    __shared__ uint64_t own[BUCKETS];
    RowPart part(launch);
    if (!part.go_on() || !asks(*part.progress, part.s.n, by_weight)) return;
    for (uint32_t i = threadIdx.x; i < BUCKETS; i += blockDim.x) own[i] = 0;
    __syncthreads();
    part.each([&](uint64_t key) {
        if (!part.s.kept(key)) return;
        uint64_t value = by_weight ? part.s.likelihood(key) : 1;
        if (value) atomicAdd(&own[part.s.bucket(key)], value);
    });
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < BUCKETS; i += blockDim.x)
        if (own[i]) atomicAdd(&part.sums[i], own[i]);
    if (!last_of(launch, part.row, (uint32_t)launch.splits)) return;
    for (uint32_t i = threadIdx.x; i < BUCKETS; i += blockDim.x) {
        own[i] = *(volatile uint64_t*)(part.sums + i);
        part.sums[i] = 0;
    }
    __syncthreads();
    auto sum = [&](uint64_t i) { return own[i]; };
    uint64_t wanted = (uint64_t)part.progress->choice.top_k;
    if (by_weight) {
        uint64_t total = row_combine(launch, BUCKETS, (uint64_t)0, sum, Plus());
        wanted = max(part_of(total, part.progress->choice.top_p), (uint64_t)1);
    }
    Reached end = reach(BUCKETS, wanted, sum);
    if (threadIdx.x) return;
    part.progress->bucket = (uint32_t)end.at;
    part.progress->wanted = end.left;
    part.progress->listed = 0;
}

// At which key of the bucket it ends.
__device__ inline void find_key(const nocopy_launch& launch, bool by_weight) {
    RowPart part(launch);
    if (!part.go_on() || !asks(*part.progress, part.s.n, by_weight)) return;
    const uint32_t bucket = part.progress->bucket;
    part.each([&](uint64_t key) {
        if (part.s.kept(key) && part.s.bucket(key) == bucket)
            part.keys[atomicAdd(&part.progress->listed, 1u)] = key;
    });
    if (!last_of(launch, part.row, (uint32_t)launch.splits)) return;
    const uint64_t listed = *(volatile uint32_t*)&part.progress->listed;
    auto key = [&](uint64_t i) { return *(volatile uint64_t*)(part.keys + i); };
    auto value = [&](uint64_t k) { return by_weight ? part.s.likelihood(k) : 1; };
    const uint64_t wanted = part.progress->wanted;
    uint64_t lowest = listed <= FEW ? select_of_few(listed, key, value, wanted)
                                    : select_weighted(listed, key, value, wanted);
    if (threadIdx.x == 0) part.progress->lowest = max(part.s.lowest, lowest);
}

NOCOPY_KERNEL(sample_count, 256, 4) {
    find_bucket(launch, false);
}
NOCOPY_KERNEL(sample_top_k, 256, 4) {
    find_key(launch, false);
}
NOCOPY_KERNEL(sample_weigh, 256, 4) {
    find_bucket(launch, true);
}
NOCOPY_KERNEL(sample_top_p, 256, 4) {
    find_key(launch, true);
}

NOCOPY_KERNEL(sample_draw, 256, 4) {
    RowPart part(launch);
    if (!part.go_on()) return;
    const Choice choice = part.progress->choice;
    const uint64_t least = part_of(WHOLE, choice.min_p);
    auto share = [&](uint64_t i) { return share_of(part.s, choice, least, part.s.key(i)); };
    auto own = [&](uint64_t i) { return share(part.first + i); };
    uint64_t sum = row_combine(launch, part.stop - part.first, (uint64_t)0, own, Plus());
    if (threadIdx.x == 0) part.parts[part.split] = sum;
    if (!last_of(launch, part.row, (uint32_t)launch.splits)) return;
    auto sum_of = [&](uint64_t i) { return *(volatile uint64_t*)(part.parts + i); };
    uint64_t total = row_combine(launch, launch.splits, (uint64_t)0, sum_of, Plus());
    Reached split = reach(launch.splits, __umul64hi(choice.bits, total) + 1, sum_of);
    uint64_t first = part.s.n * split.at / launch.splits, stop = part.s.n * (split.at + 1) / launch.splits;
    Reached found = reach(stop - first, split.left, [&](uint64_t i) { return share(first + i); });
    Tensor out(launch, 0);
    if (threadIdx.x == 0) out.as<int32_t>()[out.at(part.row)] = (int32_t)(first + found.at);
}

NOCOPY_KERNEL(penalize, 256, 4) {
    __shared__ int32_t tokens[MOST_RECENT];
    const uint32_t* d = launch.record.dims;
    Tensor out(launch, 0), x(launch, 1), recent(launch, 2), options(launch, 3);
    const uint64_t n = d[1], count = d[2];
    for (uint64_t job = blockIdx.x; job < d[0] * launch.splits; job += gridDim.x) {
        if (block_stopped(launch)) return;
        const uint64_t row = job / launch.splits, split = job % launch.splits;
        const uint64_t first = n * split / launch.splits, stop = n * (split + 1) / launch.splits;
        row_each(count, [&](uint64_t i) { tokens[i] = recent.as<int32_t>()[recent.at(row, i)]; });
        row_each(stop - first,
                 [&](uint64_t i) { store(out, out.at(row, first + i), load(x, x.at(row, first + i))); });
        __syncthreads();
        row_each(count, [&](uint64_t i) {
            const int64_t token = tokens[i];
            if (token < (int64_t)first || token >= (int64_t)stop) return;
            float times = 0;
            for (uint64_t j = 0; j < count; ++j) {
                if (tokens[j] != token) continue;
                if (j < i) return;  // another thread has it
                times += 1;
            }
            auto number = [&](uint64_t at) { return options.as<float>()[options.at(row, at)]; };
            float score = load(x, x.at(row, token));
            score = score > 0 ? score * number(0) : score * number(1);
            store(out, out.at(row, token), score - times * number(2) - number(3));
        });
        __syncthreads();  // all have read the tokens
    }
}
