// How a token is chosen from scores.
//
//     penalize  out[r,n] = x; where n is among recent[r,w]: shrunk or grown, less frequency and presence
//     sample    out[r] = an n drawn from x[r,n] with weights 2^(steepness x), among top_k, top_p, min_p
//
// tape/reference_sample.py says what each number means. Weights are whole numbers and no sum depends on its
// order, so that every player draws the same. Elements are ordered by the keys of argmax and topk; what a
// filter keeps are the keys from `lowest` on. Where that is, a histogram over the distance from the largest
// score says, and a selection among one bucket's keys.
//
// launch.splits blocks share a row, all at work at the same time; each keeps its part of the scores. Where
// top_k is small, as it mostly is, each hands on what may be among the first top_k, and the last one to do so
// chooses among them. Else they meet after each step: the largest score; for top_k and then top_p a histogram
// and the list of a bucket's keys; the sums of the draw. What they hand on lies in the workspace. Bound: the
// launch, and the meetings, about two microseconds each.
#include "keys.cuh"
#include "pause.cuh"
#include "rows.cuh"
#include "stream.cuh"

constexpr uint32_t DIGIT = 256;
constexpr uint32_t BUCKETS = 2048;  // of 1/64 each in the score; the last one is for all that is further
constexpr float BUCKETS_PER_ONE = 64.0f;  // device/cuda_launch.py has their number
constexpr float LOG2_E = 1.44269504f, SMALLEST = 1.17549435e-38f, FURTHEST = 63.0f;
constexpr uint64_t WHOLE = (uint64_t)1 << 40;
constexpr uint32_t MOST_RECENT = 4096;
constexpr uint32_t FEW = 512;    // keys that are ordered by comparing each with all others
constexpr uint32_t PART = 4096;  // scores that a block keeps; more are read again and again
constexpr uint32_t AT_ONCE = 8;  // scores of a thread that are on their way together
constexpr uint32_t HANDED = 64;  // keys that a block hands on, at most; and the top_k up to which it does
constexpr uint32_t MOST_HANDED = PART;

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

struct Choice {
    float steepness, top_p, min_p;
    int32_t top_k;
    uint64_t seed, draw;

    __device__ uint64_t bits() const { return random_bits(seed, draw); }
};

constexpr uint32_t CHOICE_WORDS = 8;

// Word i of what says how to draw: three options, five of the state.
__device__ inline uint32_t choice_word(const nocopy_launch& launch, uint64_t row, uint32_t i) {
    Tensor options(launch, 2), state(launch, 3);
    return i < 3 ? options.as<uint32_t>()[options.at(row, i)] : state.as<uint32_t>()[state.at(row, i - 3)];
}

__device__ inline Choice choice_of(const nocopy_launch& launch, const uint32_t* words) {
    auto number = [&](int i) { return __uint_as_float(words[i]); };
    uint64_t seed = words[4] | (uint64_t)words[5] << 32, draw = words[6] | (uint64_t)words[7] << 32;
    return {number(0), number(1), number(2), (int32_t)words[3], seed, draw + launch.record.params[0]};
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

// What a block works with, in dynamic shared memory: blocks of a row run side by side.
struct Desk {
    uint64_t sums[BUCKETS];
    uint64_t held[PART];  // keys that blocks have handed on, or what scores weigh
    float scores[PART];
    uint64_t keys[FEW], weights[FEW];
    uint64_t partial[32];
    uint64_t found, left;
    uint32_t choice[CHOICE_WORDS];
    uint32_t listed;
    bool last;
};
static_assert(sizeof(Desk) == 74040, "device/cuda_launch.py has this number");

// Adds to a sum in shared memory, whose own adds are of 32 bits.
__device__ inline void add_wide(uint64_t* sum, uint64_t value) {
    uint32_t *words = (uint32_t*)sum, low = (uint32_t)value, before = atomicAdd(words, low);
    uint32_t high = (uint32_t)(value >> 32) + (before + low < before ? 1u : 0u);
    if (high) atomicAdd(words + 1, high);
}

template <typename Combine>
__device__ inline uint64_t combined(Desk& desk, uint64_t value, Combine combine) {
    for (int mask = 16; mask; mask >>= 1) value = combine(value, __shfl_xor_sync(0xffffffffu, value, mask));
    const uint32_t warps = blockDim.x / 32;
    if (threadIdx.x % 32 == 0) desk.partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = desk.partial[0];
    for (uint32_t w = 1; w < warps; ++w) value = combine(value, desk.partial[w]);
    __syncthreads();  // all have read; the next call may write
    return value;
}

struct Plus {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};

// The sum of get(0) to get(n - 1).
template <typename Get>
__device__ inline uint64_t sum_of(Desk& desk, uint64_t n, Get get) {
    uint64_t sum = 0;
    for (uint64_t i = threadIdx.x; i < n; i += blockDim.x) sum += get(i);
    return combined(desk, sum, Plus());
}

// The sum of `value` over the threads of the block before this one.
__device__ inline uint64_t sum_before(Desk& desk, uint64_t value) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint64_t own = value;
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint64_t other = __shfl_sync(0xffffffffu, value, (int)(lane >= step ? lane - step : lane));
        if (lane >= step) value += other;
    }
    if (lane == 31) desk.partial[warp] = value;
    __syncthreads();
    for (uint32_t before = 0; before < warp; ++before) value += desk.partial[before];
    __syncthreads();  // all have read; the next call may write
    return value - own;
}

struct Reached {
    uint64_t at;    // an index
    uint64_t left;  // of what was wanted, before the value there
};

// Where the sum of get(0), get(1), ... reaches `wanted`, which lies between 1 and the sum of all n.
template <typename Get>
__device__ inline Reached reach(Desk& desk, uint64_t n, uint64_t wanted, Get get) {
    const uint64_t share = (n + blockDim.x - 1) / blockDim.x;
    const uint64_t first = min(n, threadIdx.x * share), stop = min(n, first + share);
    uint64_t mine = 0;
    for (uint64_t i = first; i < stop; ++i) mine += get(i);
    const uint64_t before = sum_before(desk, mine);
    if (threadIdx.x == 0) desk.found = 0, desk.left = wanted;
    __syncthreads();
    if (before < wanted && wanted - before <= mine) {
        uint64_t left = wanted - before, i = first;
        for (; i + 1 < stop; ++i) {
            uint64_t value = get(i);
            if (value >= left) break;
            left -= value;
        }
        desk.found = i, desk.left = left;
    }
    __syncthreads();
    const Reached result = {desk.found, desk.left};
    __syncthreads();
    return result;
}

// The key at which the weights of n keys, summed from the largest key down, reach `wanted`, or a bound just
// below it.
template <typename Key, typename Weight>
__device__ inline uint64_t select_weighted(Desk& desk, uint64_t n, Key key, Weight weight_of,
                                           uint64_t wanted) {
    uint64_t prefix = 0, mask = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (uint32_t d = threadIdx.x; d < DIGIT; d += blockDim.x) desk.sums[d] = 0;
        __syncthreads();
        row_each(n, [&](uint64_t i) {
            uint64_t k = key(i);
            if ((k & mask) == prefix) add_wide(&desk.sums[k >> shift & (DIGIT - 1)], weight_of(k));
        });
        __syncthreads();
        Reached digit = reach(desk, DIGIT, wanted, [&](uint64_t i) { return desk.sums[DIGIT - 1 - i]; });
        wanted = digit.left;
        prefix |= (DIGIT - 1 - digit.at) << shift;
        mask |= (uint64_t)(DIGIT - 1) << shift;
        if (desk.sums[DIGIT - 1 - digit.at] == wanted) break;  // all that share the prefix are wanted
        __syncthreads();
    }
    __syncthreads();
    return prefix;
}

// The same for at most FEW keys, which are compared each with all others, by eight lanes each. Before are
// those that come first in the order that `earlier` says.
template <typename Key, typename Weight, typename Earlier>
__device__ inline uint64_t select_of_few(Desk& desk, uint64_t n, Key key, Weight weight_of, uint64_t wanted,
                                         Earlier earlier) {
    constexpr uint32_t LANES = 8;
    __syncthreads();
    row_each(n, [&](uint64_t i) {
        desk.keys[i] = key(i);
        desk.weights[i] = weight_of(desk.keys[i]);
    });
    if (threadIdx.x == 0) desk.found = 0;
    __syncthreads();
    for (uint64_t first = 0; first < n; first += blockDim.x / LANES) {
        const uint64_t i = first + threadIdx.x / LANES, own = i < n ? desk.keys[i] : 0;
        uint64_t before = 0;
        for (uint64_t j = threadIdx.x % LANES; j < n; j += LANES)
            if (earlier(desk.keys[j], own)) before += desk.weights[j];
        for (int mask = LANES / 2; mask; mask >>= 1) before += __shfl_xor_sync(0xffffffffu, before, mask);
        if (i < n && before < wanted && wanted - before <= desk.weights[i]) desk.found = own;
    }
    __syncthreads();
    const uint64_t found = desk.found;
    __syncthreads();
    return found;
}

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

// A block's part of a row, and what it shares with the others of the row.
struct Sharer {
    const nocopy_launch& launch;
    Desk& desk;
    uint64_t row, first, stop;
    uint32_t split, splits, met = 0;
    uint32_t *arrivals, *listed;    // of two lists
    uint64_t *parts, *sums, *keys;  // sums: two histograms
    Scores s;
    Choice choice;

    __device__ Sharer(const nocopy_launch& l, Desk& d, uint64_t which)
        : launch(l), desk(d), row(which), s{Tensor(l, 1), 0, l.record.dims[1], 0, 0} {
        splits = (uint32_t)l.splits, split = (uint32_t)(blockIdx.x % l.splits);
        first = s.n * split / splits, stop = s.n * (split + 1) / splits;
        s.start = s.x.at(row);
        uint64_t* own = (uint64_t*)l.workspace + blockIdx.x / l.splits * (1 + splits + 2 * BUCKETS + s.n);
        listed = (uint32_t*)own;
        parts = own + 1;
        sums = parts + splits;
        keys = sums + 2 * BUCKETS;
        arrivals = (uint32_t*)l.workspace - 1 - blockIdx.x / l.splits;
    }

    // All blocks of the row come here; what each wrote before, the others may read behind it.
    __device__ void meet() {
        __syncthreads();
        if (splits == 1) return;
        ++met;
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(arrivals, 1u);
            while (*(volatile uint32_t*)arrivals < met * splits) pause_here();
            __threadfence();
        }
        __syncthreads();
    }

    // The last meeting, at which nobody waits: true for the last block to come.
    __device__ bool leave() {
        __syncthreads();
        if (splits == 1) return true;
        if (threadIdx.x == 0) {
            __threadfence();
            desk.last = atomicAdd(arrivals, 1u) == met * splits + splits - 1;
            if (desk.last) *arrivals = 0;
            __threadfence();
        }
        __syncthreads();
        return desk.last;
    }

    __device__ bool keeps() const { return stop - first <= PART; }
    __device__ uint64_t key(uint64_t i) const {
        return keeps() ? rank_key(desk.scores[i - first], i) : s.key(i);
    }

    template <typename Body>
    __device__ void each(Body body) const {
        for (uint64_t i = first + threadIdx.x; i < stop; i += blockDim.x) body(key(i));
    }

    // Reads this block's scores, and says which key is the largest.
    __device__ uint64_t read() {
        uint64_t best = 0;
        for (uint64_t from = first + threadIdx.x; from < stop; from += AT_ONCE * blockDim.x) {
            float found[AT_ONCE];
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j) {
                uint64_t i = from + j * blockDim.x;
                if (i < stop) found[j] = s.score(i);
            }
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j) {
                uint64_t i = from + j * blockDim.x;
                if (i >= stop) continue;
                best = max(best, rank_key(found[j], i));
                if (keeps()) desk.scores[i - first] = found[j];
            }
        }
        return combined(desk, best, Larger());
    }

    __device__ uint64_t part(uint64_t i) const { return *(volatile uint64_t*)(parts + i); }
    __device__ uint64_t listed_key(uint64_t i) const { return *(volatile uint64_t*)(keys + i); }

    // The largest key of the row, of which this block has `best`.
    __device__ uint64_t largest(uint64_t best) {
        for (uint32_t i = split * blockDim.x + threadIdx.x; i < 2 * BUCKETS; i += splits * blockDim.x)
            sums[i] = 0;
        if (split == 0 && threadIdx.x < 2) listed[threadIdx.x] = 0;
        if (splits == 1) return best;
        if (threadIdx.x == 0) parts[split] = best;
        meet();
        best = 0;
        for (uint32_t i = threadIdx.x; i < splits; i += blockDim.x) best = max(best, part(i));
        return combined(desk, best, Larger());
    }

    // desk.sums: what `value` gives for those of n keys that are kept, by buckets.
    template <typename Key, typename Value>
    __device__ void count(uint64_t n, Key key_at, Value value) {
        for (uint32_t i = threadIdx.x; i < BUCKETS; i += blockDim.x) desk.sums[i] = 0;
        __syncthreads();
        row_each(n, [&](uint64_t i) {
            uint64_t k = key_at(i), v = k && s.kept(k) ? value(k) : 0;  // 0 is no key
            if (v) add_wide(&desk.sums[s.bucket(k)], v);
        });
        __syncthreads();
    }

    // The same for the keys of the whole row.
    template <typename Value>
    __device__ void histogram(uint32_t which, Value value) {
        count(stop - first, [&](uint64_t i) { return key(first + i); }, value);
        if (splits == 1) return;
        uint64_t* all = sums + which * BUCKETS;
        for (uint32_t i = threadIdx.x; i < BUCKETS; i += blockDim.x)
            if (desk.sums[i]) atomicAdd(&all[i], desk.sums[i]);
        meet();
        for (uint32_t i = threadIdx.x; i < BUCKETS; i += blockDim.x)
            desk.sums[i] = *(volatile uint64_t*)(all + i);
        __syncthreads();
    }

    // Puts the kept keys of buckets `from` to `to` on a list.
    __device__ void list(uint32_t which, uint32_t from, uint32_t to) {
        __syncthreads();
        each([&](uint64_t key) {
            const uint32_t bucket = s.kept(key) ? s.bucket(key) : BUCKETS;
            if (bucket >= from && bucket <= to) keys[atomicAdd(&listed[which], 1u)] = key;
        });
    }

    // Keeps the keys whose `value`s, summed from the largest key down, reach what is wanted in `bucket`.
    template <typename Value>
    __device__ void narrow(uint32_t which, Reached end, Value value) {
        list(which, (uint32_t)end.at, (uint32_t)end.at);
        meet();
        const uint64_t count = *(volatile uint32_t*)&listed[which];
        auto at = [&](uint64_t i) { return listed_key(i); };
        auto larger = [](uint64_t a, uint64_t b) { return a > b; };
        uint64_t lowest = count <= FEW ? select_of_few(desk, count, at, value, end.left, larger)
                                       : select_weighted(desk, count, at, value, end.left);
        s.lowest = max(s.lowest, lowest);
        meet();  // all have read the list
    }

    __device__ uint64_t least() const { return part_of(WHOLE, choice.min_p); }

    __device__ void put(uint64_t index) const {
        Tensor out(launch, 0);
        if (threadIdx.x == 0) out.as<int32_t>()[out.at(row)] = (int32_t)index;
    }

    // Draws among `count` keys, which have the first top_k.
    __device__ void draw_of_few(uint64_t count, const uint64_t* few) {
        auto at = [&](uint64_t i) { return few[i]; };
        auto larger = [](uint64_t a, uint64_t b) { return a > b; };
        auto one = [](uint64_t) { return (uint64_t)1; };
        s.lowest = select_of_few(desk, count, at, one, min((uint64_t)choice.top_k, count), larger);
        auto likelihood = [&](uint64_t k) { return s.kept(k) ? s.likelihood(k) : 0; };
        if (choice.top_p < 1.0f) {
            uint64_t total = sum_of(desk, count, [&](uint64_t i) { return likelihood(at(i)); });
            uint64_t wanted = max(part_of(total, choice.top_p), (uint64_t)1);
            s.lowest = max(s.lowest, select_of_few(desk, count, at, likelihood, wanted, larger));
        }
        const uint64_t most = least();
        auto share = [&](uint64_t k) { return share_of(s, choice, most, k); };
        uint64_t total = sum_of(desk, count, [&](uint64_t i) { return share(at(i)); });
        auto before = [](uint64_t a, uint64_t b) { return index_of(a) < index_of(b); };
        put(index_of(select_of_few(desk, count, at, share, __umul64hi(choice.bits(), total) + 1, before)));
    }

    // Puts, of n keys, the first `wanted` and perhaps some more, `most` at most, in `to`; how many.
    template <typename Key>
    __device__ uint64_t gather(uint64_t n, Key key_at, uint64_t wanted, uint64_t most, uint64_t* to) {
        auto one = [](uint64_t) { return (uint64_t)1; };
        wanted = min(wanted, n);
        count(n, key_at, one);
        const Reached end = reach(desk, BUCKETS, wanted, [&](uint64_t i) { return desk.sums[i]; });
        const bool fits = wanted - end.left + desk.sums[end.at] <= most;
        __syncthreads();
        const uint64_t bound = fits ? 0 : select_weighted(desk, n, key_at, one, wanted);
        if (threadIdx.x == 0) desk.listed = 0;
        __syncthreads();
        row_each(n, [&](uint64_t i) {
            const uint64_t k = key_at(i);
            if (k && (fits ? s.bucket(k) <= end.at : k >= bound)) to[atomicAdd(&desk.listed, 1u)] = k;
        });
        __syncthreads();
        const uint64_t found = desk.listed;
        __syncthreads();
        return found;
    }

    // Reads what the blocks have handed on; the largest key. Lists have gaps behind them, which are 0.
    __device__ uint64_t take_over() {
        for (uint32_t i = threadIdx.x; i < splits; i += blockDim.x) desk.weights[i] = part(i);
        __syncthreads();
        uint64_t best = 0;
        for (uint32_t from = threadIdx.x; from < MOST_HANDED; from += AT_ONCE * blockDim.x) {
            uint64_t found[AT_ONCE];
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j) {
                const uint32_t i = from + j * blockDim.x;
                const bool there = i / HANDED < splits && i % HANDED < desk.weights[i / HANDED % FEW];
                found[j] = there ? listed_key(i) : 0;
            }
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j) {
                const uint32_t i = from + j * blockDim.x;
                if (i < MOST_HANDED) desk.held[i] = found[j];
                best = max(best, found[j]);
            }
        }
        return combined(desk, best, Larger());
    }

    // Each block hands on what may be among the first top_k; the last one draws.
    __device__ void sample_of_few(uint64_t best) {
        s.top = score_of(best);  // of this block
        const uint64_t own = gather(
            stop - first, [&](uint64_t i) { return key(first + i); }, (uint64_t)choice.top_k, HANDED,
            desk.held);
        if (splits > 1) {
            row_each(own, [&](uint64_t i) { keys[split * HANDED + i] = desk.held[i]; });
            if (threadIdx.x == 0) parts[split] = own;
            if (!leave()) return;
            best = take_over();
        }
        s.top = score_of(best);
        int32_t found;
        if (decided(best, choice, &found)) return put((uint64_t)(int64_t)found);
        if (splits == 1) return draw_of_few(own, desk.held);
        auto handed = [&](uint64_t i) { return desk.held[i]; };
        draw_of_few(gather(MOST_HANDED, handed, (uint64_t)choice.top_k, FEW, desk.sums), desk.sums);
    }

    // Draws among what is kept.
    __device__ void draw() {
        const uint64_t most = least();
        auto share = [&](uint64_t i) { return share_of(s, choice, most, key(first + i)); };
        uint64_t sum = 0;
        row_each(stop - first, [&](uint64_t i) {
            const uint64_t value = share(i);
            if (keeps()) desk.held[i] = value;
            sum += value;
        });
        sum = combined(desk, sum, Plus());
        Reached end = {0, __umul64hi(choice.bits(), sum) + 1};
        if (splits > 1) {
            if (threadIdx.x == 0) parts[split] = sum;
            meet();
            auto of_part = [&](uint64_t i) { return part(i); };
            uint64_t total = sum_of(desk, splits, of_part);
            end = reach(desk, splits, __umul64hi(choice.bits(), total) + 1, of_part);
        }
        if (end.at == split)
            put(first + reach(desk, stop - first, end.left, [&](uint64_t i) {
                            return keeps() ? desk.held[i] : share(i);
                        }).at);
        leave();
    }

    __device__ void sample() {
        // They may lie behind a bus: each is read once, while the scores are.
        if (threadIdx.x < CHOICE_WORDS) desk.choice[threadIdx.x] = choice_word(launch, row, threadIdx.x);
        uint64_t best = read();
        choice = choice_of(launch, desk.choice);
        const bool drawn = choice.steepness >= SMALLEST;
        if (drawn && choice.top_k > 0 && (uint32_t)choice.top_k <= HANDED && splits <= MOST_HANDED / HANDED)
            return sample_of_few(best);
        best = largest(best);
        s.top = score_of(best);
        int32_t found;
        if (decided(best, choice, &found)) {
            if (leave()) put((uint64_t)(int64_t)found);
            return;
        }
        if (choice.top_k > 0 && (uint64_t)choice.top_k < s.n) {
            auto one = [](uint64_t) { return (uint64_t)1; };
            histogram(0, one);
            auto in_bucket = [&](uint64_t i) { return desk.sums[i]; };
            narrow(0, reach(desk, BUCKETS, (uint64_t)choice.top_k, in_bucket), one);
        }
        if (choice.top_p < 1.0f) {
            auto likelihood = [&](uint64_t key) { return s.likelihood(key); };
            histogram(1, likelihood);
            auto in_bucket = [&](uint64_t i) { return desk.sums[i]; };
            const uint64_t total = sum_of(desk, BUCKETS, in_bucket);
            const uint64_t wanted = max(part_of(total, choice.top_p), (uint64_t)1);
            narrow(1, reach(desk, BUCKETS, wanted, in_bucket), likelihood);
        }
        draw();
    }
};

NOCOPY_KERNEL(sample, 512, 1) {
    Desk& desk = *(Desk*)dynamic_shared();
    for (uint64_t row = blockIdx.x / launch.splits; row < launch.record.dims[0];
         row += gridDim.x / launch.splits) {
        // Blocks that share a row wait for each other: none may stay away.
        if (launch.splits == 1 && block_stopped(launch)) return;
        Sharer(launch, desk, row).sample();
        __syncthreads();  // all have read the desk
    }
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
        for (uint64_t from = first + threadIdx.x; from < stop; from += AT_ONCE * blockDim.x) {
            float found[AT_ONCE];
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j)
                if (from + j * blockDim.x < stop) found[j] = load(x, x.at(row, from + j * blockDim.x));
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j)
                if (from + j * blockDim.x < stop) store(out, out.at(row, from + j * blockDim.x), found[j]);
        }
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
