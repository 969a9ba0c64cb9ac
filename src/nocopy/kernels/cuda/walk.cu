// A language model's pass over one row, or several such passes one after another, in one kernel: its stages
// are products (row_product.cuh), attention (attention_row.cuh), the look-up of a row, and the likeliest
// token.
//
// As many blocks as multiprocessors run to the end of the program together. A stage needs all results of the
// one before it, so blocks hand them on through words that carry a tag (barrier.cuh); no block waits for a
// fence or a counter. Of a block, WALK_WARPS warps compute, each with a ring in shared memory through which
// its own weights come. STREAMERS warps start all copies, across stages: while a row is awaited,
// weights of the next stages arrive. Only some bytes are on their way at a time, since a longer queue delays
// the words that blocks wait for. ROW_BRINGERS warps bring rows: they read what was handed on until all of it
// is there, apply the norm's weight, and put it in shared memory in the order in which lanes read it. All
// that runs must fit the instruction cache, so code is compiled for the model at hand, and little of it is
// repeated. Bound: the bytes of the weights and of the cache.
//
// Words of the exchange are zero when the kernel starts, and a place is used again only after every block has
// written something that it could not know before it had read the place: the host sees to that
// (device/cuda_walk.py). Should the host ask the kernel to stop, it goes on to its end without waiting.
#include "attention_row.cuh"
#include "barrier.cuh"
#include "keys.cuh"
#include "row_product.cuh"

constexpr uint32_t WALK_WARPS = 8, ROW_BRINGERS = 4, STREAMERS = 4;  // warps
constexpr uint32_t WALK_THREADS = 32 * (WALK_WARPS + ROW_BRINGERS + STREAMERS), WALKERS = 32 * WALK_WARPS;
constexpr uint32_t NO_TAG = 2;           // the row lies in memory since before the kernel began
constexpr uint32_t NOWHERE = ~0u;        // nobody needs it
constexpr uint32_t FEWEST_TOKENS = 128;  // of a part of attention
constexpr uint32_t STAGES_HELD = 16, STAGES_AHEAD = 8;  // in shared memory; of them behind the one at hand
constexpr uint32_t CANDIDATE_WORDS = 4;

// What the kernel is compiled for: sets of dtypes, 1 << dtype each, of weights and caches.
#ifndef WALK_WEIGHTS
#define WALK_WEIGHTS ~0u
#define WALK_CACHES ~0u
#endif

// And heads that share keys and values, or heads that do not; 0 for either.
#ifndef WALK_HEADS
#define WALK_HEADS 0
#endif

enum StageKind : uint32_t { STAGE_PRODUCT, STAGE_ATTENTION, STAGE_GATHER, STAGE_ARGMAX };

struct nocopy_stage {
    uint32_t kind, dtype;           // of the weight
    uint32_t source, source_tag;    // word of the exchange where its row lies
    uint32_t target, target_tag;    // and where its results go
    uint32_t best, best_tag;        // where each block's likeliest result goes
    uint32_t partial, partial_tag;  // where parts of attention go
    uint32_t each[3], more[3];      // pairs of a product that each block has; how many blocks have one more
    uint32_t keys, values;          // words from the queries to the keys and to the values
    uint32_t reserved[2];
    union {
        nocopy_fused product;
        nocopy_launch launch;  // of the op
    };
};

struct nocopy_walk {
    uint64_t stages, exchange;
    const volatile int32_t* stop;
    uint32_t count;              // stages
    uint32_t slots, slot_bytes;  // of a warp's ring
    uint32_t ahead, one_more;    // copies of a warp that are on their way; how many warps have one more
    uint32_t row_words;          // of shared memory
};

static_assert(sizeof(nocopy_stage) == 416, "device/cuda_walk.py packs this struct");
static_assert(sizeof(nocopy_walk) == 48, "device/cuda_walk.py packs this struct");

#if __CUDA_ARCH__ >= 900

// Calls take with an object of the struct that reads a weight's type (blocks.cuh).
template <uint32_t DTYPE, typename B, typename Take>
__device__ __forceinline__ void with_type_if(uint32_t dtype, Take take) {
    if constexpr (WALK_WEIGHTS >> DTYPE & 1)
        if (dtype == DTYPE) take(B());
}
template <typename Take>
__device__ __forceinline__ void with_type(uint32_t dtype, Take take) {
    with_type_if<NOCOPY_F32, F32Words>(dtype, take);
    with_type_if<NOCOPY_F16, F16Words>(dtype, take);
    with_type_if<NOCOPY_BF16, Bf16Words>(dtype, take);
    with_type_if<NOCOPY_Q8_0, Q8_0>(dtype, take);
    with_type_if<NOCOPY_Q4_0, Q4_0>(dtype, take);
    with_type_if<NOCOPY_Q4_K, Q4_K>(dtype, take);
    with_type_if<NOCOPY_Q5_K, Q5_K>(dtype, take);
    with_type_if<NOCOPY_Q6_K, Q6_K>(dtype, take);
}

// Pairs of product p that this block has.
__device__ __forceinline__ uint32_t own_pairs(const nocopy_stage& s, uint32_t p) {
    return s.each[p] + (blockIdx.x < s.more[p]);
}
__device__ __forceinline__ uint32_t first_pair(const nocopy_stage& s, uint32_t p) {
    return blockIdx.x * s.each[p] + min(blockIdx.x, s.more[p]);
}
__device__ __forceinline__ uint32_t all_own_pairs(const nocopy_stage& s) {
    return own_pairs(s, 0) + own_pairs(s, 1) + own_pairs(s, 2);
}

// The block's pair of this index.
__device__ __forceinline__ RowPair own_pair(const nocopy_stage& s, uint32_t index) {
    uint32_t p = 0;
    for (; p < 2 && index >= own_pairs(s, p); ++p) index -= own_pairs(s, p);
    return RowPair(s.product, p, first_pair(s, p) + index);
}

__device__ __forceinline__ uint32_t chunks_of(const nocopy_fused& f) {
    return (f.k + f.chunk - 1) / f.chunk;
}

// The parts of a block's shared memory.
struct WalkMemory {
    uint8_t* rings;
    float* row;  // and the states of attention behind it
    Sums* sums;
    nocopy_stage* stages;
    uint64_t *filled, *full, *empty, *best;
    float* squares;
    volatile uint32_t* used;   // slots that each warp has read, counted from the start
    volatile uint32_t* stage;  // that the block is at

    __device__ __forceinline__ WalkMemory(const nocopy_walk& w) {
        rings = dynamic_shared();
        row = (float*)(rings + WALK_WARPS * w.slots * w.slot_bytes);
        sums = (Sums*)(row + w.row_words);
        stages = (nocopy_stage*)(sums + MAX_PIECES);
        filled = (uint64_t*)(stages + STAGES_HELD);
        full = filled + WALK_WARPS * w.slots;
        empty = full + 1;
        best = empty + 1;
        squares = (float*)(best + WALK_WARPS);
        used = (uint32_t*)(squares + 2 * ROW_BRINGERS);
        stage = used + WALK_WARPS;
    }
};

// Weights on their way to one warp: all that its pieces of all products need, in order. EACH lanes of a
// streamer keep one each.
struct Stream {
    static constexpr uint32_t EACH = WALK_WARPS / STREAMERS;

    const nocopy_walk& walk;
    const WalkMemory& shared;
    const uint32_t warp = (WALK_THREADS - 1 - threadIdx.x) / 32 * EACH + threadIdx.x % 32;
    uint64_t* filled = shared.filled + warp * walk.slots;
    uint32_t stage = ~0u, product = 0, products = 0;  // what is begun next
    uint32_t piece = 0, start = 0, stop = 0;          // of the stage; of them the product's
    uint32_t begun = 0, arrived = 0;                  // slots, counted from the start
    uint32_t begin_at = 0, arrive_at = 0, arrive_parity = 0;
    const uint8_t* weight = nullptr;                            // the weight's first row
    uint64_t apart = 0;                                         // bytes from a row of a pair to the other
    uint32_t row_bytes = 0, first = 0, half = 0;                // the first pair; pairs of a head that turns
    uint32_t chunks = 0, reciprocal = 0, width = 0, whole = 0;  // of a row; bytes of a chunk and of all

    __device__ __forceinline__ void run() {
        if (threadIdx.x % 32 >= EACH) return;
        const uint32_t limit = walk.ahead + (warp < walk.one_more);
        for (;;) {
            if (arrived < begun && passed(filled + arrive_at, arrive_parity)) {
                ++arrived;
                if (++arrive_at == walk.slots) arrive_at = 0, arrive_parity ^= 1;
            }
            const bool more = piece < stop || next_product();
            if (!more && stage + 1 == walk.count && arrived == begun) return;
            if (!more || begun - arrived >= limit || begun - shared.used[warp] >= walk.slots)
                relax();
            else if (piece < stop)
                begin();
        }
    }

    __device__ __forceinline__ void begin() {
        __threadfence_block();  // the warp has read what it says it has
        const uint32_t local = piece - start, index = reciprocal ? __umulhi(local, reciprocal) : local;
        const uint32_t skip = (local - index * chunks) * width, pair = first + index;
        const uint32_t row = half == ONE_BY_ONE ? pair : half ? pair + pair / half * half : 2 * pair;
        const uint8_t* a = weight + (uint64_t)row * row_bytes + skip;
        copy_pair(filled + begin_at, shared.rings + (warp * walk.slots + begin_at) * walk.slot_bytes, a,
                  a + apart, min(width, whole - skip));
        piece += WALK_WARPS;
        ++begun;
        if (++begin_at == walk.slots) begin_at = 0;
    }

    static constexpr uint32_t ONE_BY_ONE = ~0u;  // for `half`: rows of two weights make a pair

    // False if there is none, or if its stage is not held yet.
    __device__ __forceinline__ bool next_product() {
        if (product + 1 < products) {
            ++product;
        } else {
            if (stage + 1 == walk.count || stage + 1 >= *shared.stage + STAGES_AHEAD) return false;
            __threadfence_block();  // the stage is held
            ++stage;
            const nocopy_stage& s = shared.stages[stage % STAGES_HELD];
            product = products = piece = stop = 0;
            if (s.kind != STAGE_PRODUCT) return true;
            products = s.product.gate ? 1 : s.product.count;
            piece = warp;
        }
        const nocopy_stage& s = shared.stages[stage % STAGES_HELD];
        const nocopy_fused& f = s.product;
        const nocopy_product& p = f.products[product];
        chunks = chunks_of(f), reciprocal = f.reciprocal;
        width = bytes_of(s.dtype, f.chunk), whole = bytes_of(s.dtype, f.k);
        weight = (const uint8_t*)p.weight, row_bytes = p.row_bytes, first = first_pair(s, product);
        half = f.gate ? ONE_BY_ONE : p.turn == TURN_HALF ? p.head / 2 : 0;
        apart = f.gate ? f.products[1].weight - p.weight : (uint64_t)row_bytes * (half ? half : 1);
        start = stop;
        stop += own_pairs(s, product) * chunks;
        return true;
    }

    static __device__ __forceinline__ uint32_t bytes_of(uint32_t dtype, uint32_t elements) {
        if (is_blocks(dtype)) return elements / block_elements(dtype) * block_bytes(dtype);
        return elements * (dtype == NOCOPY_F32 ? 4 : 2);
    }
};

// For who waits for tags: now and then, whether to wait no longer.
struct Patience {
    const volatile int32_t* stop;
    uint32_t looks = 0;

    __device__ __forceinline__ bool over() { return ++looks % 4096 == 0 && stop && *stop; }
};

__device__ __forceinline__ bool all_tagged(const Words4& words, uint32_t tag) {
    return tag == NO_TAG ||
           (((words.v[0] ^ tag) | (words.v[1] ^ tag) | (words.v[2] ^ tag) | (words.v[3] ^ tag)) & 1) == 0;
}

// Calls take(i, words, beside(i)) for four words at from(i), for i = thread, thread + threads ... below
// count; where from(i) is null, for none. Loads of AT_ONCE are on their way together, again and again until
// they are there; what goes beside them is read before.
template <typename From, typename Aside, typename Take>
__device__ __forceinline__ void bring_words(uint32_t thread, uint32_t threads, uint32_t count, uint32_t tag,
                                            const volatile int32_t* stop, From from, Aside beside,
                                            Take take) {
    constexpr uint32_t AT_ONCE = 4;
#pragma unroll 1
    for (uint32_t first = thread; first < count; first += AT_ONCE * threads) {
        const uint32_t* at[AT_ONCE];
        Words4 aside[AT_ONCE];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; ++j) {
            uint32_t i = first + j * threads;
            at[j] = i < count ? from(i) : nullptr;
            if (at[j]) aside[j] = beside(i);
        }
        bool missing;
        Patience patience{stop};
        do {
            Words4 words[AT_ONCE];
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j)
                if (at[j]) words[j] = load_tagged(at[j]);
            missing = false;
            const bool any = patience.over();
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j) {
                if (!at[j]) continue;
                if (any || all_tagged(words[j], tag)) {
                    take(first + j * threads, words[j], aside[j]);
                    at[j] = nullptr;
                } else {
                    missing = true;
                }
            }
            if (missing) relax();
        } while (missing);
    }
}

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

// The warps that bring rows.
struct Bringer {
    const nocopy_walk& walk;
    const WalkMemory& shared;
    uint32_t thread = threadIdx.x - WALKERS;

    static constexpr uint32_t THREADS = 32 * ROW_BRINGERS;

    __device__ __forceinline__ const uint32_t* exchange(uint32_t word) const {
        return (const uint32_t*)walk.exchange + word;
    }

    __device__ __forceinline__ void hold_stage(uint32_t index) const {
        if (index >= walk.count) return;
        const uint32_t words = sizeof(nocopy_stage) / 4;
        const uint32_t* from = (const uint32_t*)((const nocopy_stage*)walk.stages + index);
        uint32_t* to = (uint32_t*)(shared.stages + index % STAGES_HELD);
        for (uint32_t i = thread; i < words; i += THREADS) to[i] = from[i];
    }

    __device__ __forceinline__ void run() {
        for (uint32_t s = 0; s < walk.count; ++s) {
            if (s) await(shared.empty, (s - 1) & 1);
            bring(shared.stages[s % STAGES_HELD], s);
            __syncwarp();
            if (thread % 32 == 0) arrive(shared.full);
            hold_stage(s + STAGES_AHEAD);  // nobody looks at it before the next row is full
        }
    }

    __device__ __forceinline__ void bring(const nocopy_stage& s, uint32_t index) {
        if (s.kind == STAGE_ATTENTION) return bring_heads(s);
        if (s.kind == STAGE_ARGMAX) {
            bring_linear(s.source, CANDIDATE_WORDS * gridDim.x, s.source_tag, 0);
            __threadfence();  // what other blocks wrote before they said what is likeliest: rows of the cache
            return;
        }
        if (s.kind != STAGE_PRODUCT) return;
        float squares = 0.0f;
        with_type(s.dtype, RowOf{*this, s, squares});
        if (!s.product.norm) return;
        squares = warp_sum(squares);
        if (thread % 32 == 0) shared.squares[index % 2 * ROW_BRINGERS + thread / 32] = squares;
    }

    __device__ __forceinline__ void bring_linear(uint32_t word, uint32_t count, uint32_t tag, uint32_t to) {
        bring_words(
            thread, THREADS, count / 4, tag, walk.stop, [&](uint32_t i) { return exchange(word + 4 * i); },
            [](uint32_t) { return Words4(); },
            [&](uint32_t i, const Words4& words, const Words4&) { ((Words4*)(shared.row + to))[i] = words; });
    }

    // Has the second cache hold the keys and values of the block's tokens, which were written in passes
    // before.
    __device__ __forceinline__ void fetch_cache(const nocopy_launch& launch, const AttentionJob& job) const;

    // Queries of the block's heads, then the newest key and value of their group.
    __device__ __forceinline__ void bring_heads(const nocopy_stage& s);

    struct RowOf {  // (a generic lambda is a host function to NVRTC 13.0)
        const Bringer& bringer;
        const nocopy_stage& stage;
        float& squares;

        template <typename B>
        __device__ __forceinline__ void operator()(B) const {
            squares = bringer.bring_row<B>(stage);
        }
    };

    // x times norm in the order in which lanes read it; this thread's share of the sum of squares.
    template <typename B>
    __device__ __forceinline__ float bring_row(const nocopy_stage& s) const {
        const nocopy_fused& f = s.product;
        const float* norm = (const float*)f.norm;
        const uint32_t* x = s.source_tag == NO_TAG ? (const uint32_t*)f.x : exchange(s.source);
        float squares = 0.0f;
        bring_words(
            thread, THREADS, Cut<B>::quads(f.k), s.source_tag, walk.stop,
            [&](uint32_t q) {
                uint32_t at = Cut<B>::at(q, f.k);
                return at < f.k ? x + at : nullptr;
            },
            [&](uint32_t q) { return norm ? *(const Words4*)(norm + Cut<B>::at(q, f.k)) : Words4(); },
            [&](uint32_t q, Words4 words, const Words4& weights) {
                if (norm) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float v = __uint_as_float(words.v[i]);
                        squares = fmaf(v, v, squares);
                        words.v[i] = __float_as_uint(v * __uint_as_float(weights.v[i]));
                    }
                }
                ((Words4*)shared.row)[q] = words;
            });
        return squares;
    }
};

__device__ __forceinline__ void Bringer::fetch_cache(const nocopy_launch& launch,
                                                     const AttentionJob& job) const {
    const Tensor k(launch, 2), v(launch, 3);
    const Part part(Tokens(launch, 0), job.split, job.most, FEWEST_TOKENS);
    const uint32_t size = k.dtype == NOCOPY_F32 ? 4 : 2, line = 128;
    for (int64_t token = part.start + thread; token < part.stop; token += THREADS)
        for (uint32_t i = 0; i < job.n * size; i += line) {
            prefetch((const uint8_t*)k.base + k.at((uint64_t)token, job.group) * size + i);
            prefetch((const uint8_t*)v.base + v.at((uint64_t)token, job.group) * size + i);
        }
}

__device__ __forceinline__ void Bringer::bring_heads(const nocopy_stage& s) {
    const AttentionJob job(s.launch, AttentionJob::at_once(s.launch));
    if (job.idle) return;
    fetch_cache(s.launch, job);
    // Words of the queries, of the key, of the value, one behind the other.
    const uint32_t n = job.n / 4, queries = job.heads * n;
    const uint32_t from[3] = {s.source + job.head * job.n, s.source + s.keys + job.group * job.n,
                              s.source + s.values + job.group * job.n};
    bring_words(
        thread, THREADS, queries + 2 * n, s.source_tag, walk.stop,
        [&](uint32_t i) {
            if (i < queries) return exchange(from[0] + 4 * i);
            return i < queries + n ? exchange(from[1] + 4 * (i - queries))
                                   : exchange(from[2] + 4 * (i - queries - n));
        },
        [](uint32_t) { return Words4(); },
        [&](uint32_t i, const Words4& words, const Words4&) { ((Words4*)shared.row)[i] = words; });
}

__device__ __noinline__ float table_element(const Tensor table, uint64_t at) {
    return is_blocks(table.dtype) ? load_block_element(table, at) : load(table, at);
}

// The warps that compute.
struct Walker {
    const nocopy_walk& walk;
    const WalkMemory& shared;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t slot = 0, slot_parity = 0, used = 0;
    int32_t token = 0;

    __device__ __forceinline__ uint32_t* exchange(uint32_t word) const {
        return (uint32_t*)walk.exchange + word;
    }

    __device__ __forceinline__ void run() {
        for (uint32_t s = 0; s < walk.count; ++s) {
            await(shared.full, s & 1);
            if (threadIdx.x == 0) {
                __threadfence_block();
                *shared.stage = s;
            }
            const nocopy_stage& stage = shared.stages[s % STAGES_HELD];
            switch (stage.kind) {
                case STAGE_PRODUCT:
                    product(stage, s);
                    break;
                case STAGE_ATTENTION:
                    attention(stage);
                    break;
                case STAGE_GATHER:
                    gather(stage);
                    break;
                default:
                    argmax(stage);
            }
        }
    }

    // This warp has read the row.
    __device__ __forceinline__ void release_row() {
        __syncwarp();
        if (lane == 0) arrive(shared.empty);
    }

    // Products

    struct ProductOf {
        Walker& walker;
        const nocopy_stage& stage;
        uint32_t index;

        template <typename B>
        __device__ __forceinline__ void operator()(B) const {
            walker.product_of<B>(stage, index);
        }
    };

    __device__ __forceinline__ void product(const nocopy_stage& s, uint32_t index) {
        with_type(s.dtype, ProductOf{*this, s, index});
    }

    template <typename B>
    __device__ __forceinline__ void product_of(const nocopy_stage& s, uint32_t index) {
        const nocopy_fused& f = s.product;
        const uint32_t chunks = chunks_of(f), pairs = all_own_pairs(s);
        const uint32_t at_once = min(MAX_PIECES / chunks, WALKERS) / WALK_WARPS * WALK_WARPS;
        uint64_t best = 0;
#pragma unroll 1
        for (uint32_t start = 0; start < pairs; start += at_once) {
            const uint32_t stop = min(pairs, start + at_once), own = min(start + threadIdx.x, stop - 1);
            const RowPair place = own_pair(s, own);
            const Beside beside(f, place);
            multiply_pieces<B>(f, start * chunks, stop * chunks, chunks);
            if (stop == pairs) release_row();
            meet(WALKERS);
            if (start + threadIdx.x < stop) finish(s, index, threadIdx.x, place, beside, best);
            if (stop < pairs) meet(WALKERS);  // all have read the sums
        }
        if (pairs == 0) release_row();
        if (s.best != NOWHERE) publish_best(s, best);
    }

    template <typename B>
    __device__ __forceinline__ void multiply_pieces(const nocopy_fused& f, uint32_t start, uint32_t stop,
                                                    uint32_t chunks) {
        const uint32_t k = f.k, chunk = f.chunk, reciprocal = f.reciprocal;
#pragma unroll 1
        for (uint32_t piece = start + warp; piece < stop; piece += WALK_WARPS) {
            const uint32_t index = reciprocal ? __umulhi(piece, reciprocal) : piece;
            const uint32_t from = (piece - index * chunks) * chunk, elements = min(chunk, k - from);
            const uint8_t* a = next_pieces();
            add_up(multiply_pair<B>(a, a + elements / B::ELEMENTS * B::BYTES, (const Words4*)shared.row, from,
                                    elements),
                   shared.sums + (piece - start));
        }
    }

    // Where the next two pieces lie, one behind the other, once they are there.
    __device__ __forceinline__ const uint8_t* next_pieces() {
        await(shared.filled + warp * walk.slots + slot, slot_parity);
        return shared.rings + (warp * walk.slots + slot) * walk.slot_bytes;
    }

    // All lanes have read them: this lane's sums of them are to be added up with those of the others.
    __device__ __forceinline__ void add_up(const Sums& sums, Sums* to) {
        if (++slot == walk.slots) slot = 0, slot_parity ^= 1;
        __syncwarp();
        ++used;
        if (lane == 0) {
            __threadfence_block();
            shared.used[warp] = used;
        }
        // The lower lanes sum up a, the upper ones b.
        float sum = lane < 16 ? sums.a : sums.b;
        sum += __shfl_xor_sync(0xffffffffu, lane < 16 ? sums.b : sums.a, 16);
        for (int mask = 8; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
        if (lane == 0) to->a = sum;
        if (lane == 16) to->b = sum;
    }

    // What becomes of a pair, the one with these sums.
    __device__ __forceinline__ void finish(const nocopy_stage& s, uint32_t index, uint32_t pair,
                                           const RowPair& place, const Beside& beside, uint64_t& best) {
        const nocopy_fused& f = s.product;
        const uint32_t chunks = chunks_of(f);
        const float scale = f.norm ? 1.0f / root_of(f, index) : 1.0f;
        Sums sums = {};
#pragma unroll 1
        for (uint32_t c = 0; c < chunks; ++c) {
            const Sums& part = shared.sums[pair * chunks + c];
            sums.a += part.a;
            sums.b += part.b;
        }
        const Sums y = finish_pair(f, place, beside, {sums.a * scale, sums.b * scale});
        if (s.target != NOWHERE) publish_pair(s, place, y);
        if (s.best == NOWHERE) return;
        best = Larger()(best, Larger()(rank_key(y.a, place.a_row), rank_key(y.b, place.b_row)));
    }

    __device__ __forceinline__ float root_of(const nocopy_fused& f, uint32_t index) {
        float sum = 0.0f;
        for (uint32_t w = 0; w < ROW_BRINGERS; ++w) sum += shared.squares[index % 2 * ROW_BRINGERS + w];
        return sqrtf(sum / (float)f.k + f.eps);
    }

    __device__ __forceinline__ void publish_pair(const nocopy_stage& s, const RowPair& pair, const Sums& y) {
        uint32_t* to = exchange(s.target + pair.a_row);
        if (s.product.gate) return store_tagged(to, __float_as_uint(y.a), s.target_tag);
        if (pair.a_product >= 1) to += s.product.products[0].rows;
        if (pair.a_product == 2) to += s.product.products[1].rows;
        if (pair.b_row == pair.a_row + 1) return store_tagged(to, y.a, y.b, s.target_tag);
        store_tagged(to, __float_as_uint(y.a), s.target_tag);
        store_tagged(to + (pair.b_row - pair.a_row), __float_as_uint(y.b), s.target_tag);
    }

    // The block's likeliest result: its key in three words.
    __device__ __forceinline__ void publish_best(const nocopy_stage& s, uint64_t best) {
        best = warp_best(best);
        if (lane == 0) shared.best[warp] = best;
        meet(WALKERS);
        if (threadIdx.x) return;
        for (uint32_t w = 1; w < WALK_WARPS; ++w) best = Larger()(best, shared.best[w]);
        __threadfence();  // rows of the cache that this block has written: see Bringer::bring
        uint32_t* to = exchange(s.best + CANDIDATE_WORDS * blockIdx.x);
        store_tagged(to, (uint32_t)(best >> 42) << 1, s.best_tag);
        store_tagged(to + 1, (uint32_t)(best >> 21) << 1, s.best_tag);
        store_tagged(to + 2, (uint32_t)best << 1, s.best_tag);
        store_tagged(to + 3, 0, s.best_tag);
    }

    static __device__ __forceinline__ uint64_t warp_best(uint64_t best) {
        for (int mask = 16; mask; mask >>= 1) best = Larger()(best, __shfl_xor_sync(0xffffffffu, best, mask));
        return best;
    }

    __device__ __forceinline__ void argmax(const nocopy_stage& s) {
        const uint32_t* words = (const uint32_t*)shared.row;
        uint64_t best = 0;
        for (uint32_t b = lane; b < gridDim.x; b += 32) {
            const uint32_t* w = words + CANDIDATE_WORDS * b;
            best = Larger()(best, (uint64_t)(w[0] >> 1) << 42 | (uint64_t)(w[1] >> 1 & 0x1fffff) << 21 |
                                      (w[2] >> 1 & 0x1fffff));
        }
        token = (int32_t)index_of(warp_best(best));
        release_row();
        if (blockIdx.x == 0 && threadIdx.x == 0) *Tensor(s.launch, 0).as<int32_t>() = token;
    }

    // Looking up a row of a table

    __device__ __forceinline__ void gather(const nocopy_stage& s) {
        release_row();
        Tensor out(s.launch, 0), table(s.launch, 1), indices(s.launch, 2);
        const int32_t last = (int32_t)(s.launch.record.dims[2] - 1);
        const int32_t index = s.source_tag == NO_TAG ? *indices.as<int32_t>() : token;
        const uint64_t row = table.at((uint64_t)min(max(index, 0), last));
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < own_pairs(s, 0); i += WALKERS) {
            const uint32_t at = 2 * (first_pair(s, 0) + i);
            const float a = table_element(table, row + at), b = table_element(table, row + at + 1);
            store(out, at, a);
            store(out, at + 1, b);
            store_tagged(exchange(s.target + at), a, b, s.target_tag);
        }
    }

    // Attention

    __device__ __forceinline__ void attention(const nocopy_stage& s) {
        if (s.dtype == NOCOPY_F32) return attend_if<NOCOPY_F32, READ_F32>(s);
        if (s.dtype == NOCOPY_F16) return attend_if<NOCOPY_F16, READ_F16>(s);
        attend_if<NOCOPY_BF16, READ_BF16>(s);
    }

    template <uint32_t DTYPE, int READING>
    __device__ __forceinline__ void attend_if(const nocopy_stage& s) {
        if constexpr (WALK_CACHES >> DTYPE & 1) {
            if constexpr (WALK_HEADS != 1)
                if (AttentionJob::at_once(s.launch) == 4) attend<READING, 4>(s);
            if constexpr (WALK_HEADS != 4)
                if (AttentionJob::at_once(s.launch) == 1) attend<READING, 1>(s);
        }
    }

    template <int READING, int HEADS>
    __device__ __forceinline__ void attend(const nocopy_stage& s) {
        const nocopy_launch& launch = s.launch;
        const AttentionJob job(launch, HEADS);
        if (job.idle) return release_row();
        constexpr int OWN = HEADS == 1 ? 1 : 2;
        constexpr uint32_t SIDE = HEADS / OWN, BEHIND = WALK_WARPS / SIDE;
        const uint32_t n = job.n;
        const Tokens tokens(launch, 0);
        const Part part(tokens, job.split, job.most, FEWEST_TOKENS);
        const uint32_t own = warp % SIDE * OWN, run = warp / SIDE, team = head_team(n);
        const uint32_t place = lane % team * EIGHT;
        float* states = shared.row + (job.heads + 2) * n;  // [run][head]: largest, sum, n values
        auto state = [&](uint32_t r, uint32_t h) { return states + (r * HEADS + h) * (n + 2); };
        Tensor last(launch, 4);
        const int64_t newest = *last.as<int32_t>();  // whose row the blocks have just handed on
        if (own < job.heads) {
            Tensor k(launch, 2), v(launch, 3);
            const float *key_row = shared.row + job.heads * n + place, *value_row = key_row + n;
            RowWalk<READING, OWN> walker;
            walker.scale = param_f32(launch, 0), walker.softcap = param_f32(launch, 1);
#pragma unroll
            for (int h = 0; h < OWN; ++h) {
                const float* query = shared.row + min(own + h, job.heads - 1) * n + place;
#pragma unroll
                for (uint32_t e = 0; e < EIGHT; ++e) walker.queries[h].v[e] = place < n ? query[e] : 0.0f;
            }
            RawEight<READING> newest_key, newest_value;
            if (place < n) newest_key = encoded<READING>(key_row), newest_value = encoded<READING>(value_row);
            walker.over(part, place, n, team, run, BEHIND,
                        [&](uint64_t token, RawEight<READING>& key, RawEight<READING>& value) {
                            key = RawEight<READING>(k, k.at(token, job.group), place);
                            value = RawEight<READING>(v, v.at(token, job.group), place);
                            if ((int64_t)token == newest) key = newest_key, value = newest_value;
                        });
#pragma unroll
            for (int h = 0; h < OWN; ++h) {
                if (own + h >= job.heads) continue;
                float* to = state(run, own + h);
                to[0] = walker.seen[h].largest, to[1] = walker.seen[h].sum;
                if (lane >= team) continue;
#pragma unroll
                for (uint32_t e = 0; e < EIGHT; ++e)
                    if (place + e < n) to[2 + place + e] = walker.seen[h].values.v[e];
            }
        }
        meet(WALKERS);
        const bool empty = tokens.start >= tokens.stop, alone = part.parts == 1;
        uint32_t* partial = exchange(s.partial) + (uint64_t)job.job * job.most * HEADS * (n + 2);
        auto partial_of = [&](uint32_t p, uint32_t h) { return partial + (p * HEADS + h) * (n + 2); };
#pragma unroll 1
        for (uint32_t e = threadIdx.x; e < job.heads * n; e += WALKERS) {
            const uint32_t h = e / n, i = e % n;
            float largest = LOWEST, sum = 0.0f, value = 0.0f;
#pragma unroll 1
            for (uint32_t r = 0; r < BEHIND; ++r) largest = nan_max(largest, state(r, h)[0]);
#pragma unroll 1
            for (uint32_t r = 0; r < BEHIND; ++r) {
                const float keep = expf(state(r, h)[0] - largest);
                sum = fmaf(keep, state(r, h)[1], sum);
                value = fmaf(keep, state(r, h)[2 + i], value);
            }
            if (alone && job.split == 0) publish_head(s, job.head + h, i, n, empty ? 0.0f : value / sum);
            // Parts that nobody needs too: every use of a place writes all of it.
            uint32_t* to = partial_of(job.split, h);
            store_tagged(to + 2 + i, __float_as_uint(value), s.partial_tag);
            if (i == 0) {
                store_tagged(to, __float_as_uint(largest), s.partial_tag);
                store_tagged(to + 1, __float_as_uint(sum), s.partial_tag);
            }
        }
        release_row();
        if (alone || job.split >= part.parts) return;
        const uint32_t all = job.heads * n;
        const uint32_t first = all * job.split / part.parts, stop = all * (job.split + 1) / part.parts;
#pragma unroll 1
        for (uint32_t e = first + threadIdx.x; e < stop; e += WALKERS) {
            const uint32_t h = e / n, i = e % n;
            float largest = LOWEST, sum = 0.0f, value = 0.0f;
#pragma unroll 1
            for (uint32_t p = 0; p < part.parts; p += 4) {
                uint32_t words[4][3];
                read_parts(
                    words, [&](uint32_t j) { return partial_of(min(p + j, part.parts - 1), h); }, i,
                    s.partial_tag);
#pragma unroll
                for (uint32_t j = 0; j < 4; ++j) {
                    if (p + j >= part.parts) continue;
                    const float theirs = __uint_as_float(words[j][0]), top = nan_max(largest, theirs);
                    const float before = expf(largest - top), now = expf(theirs - top);
                    largest = top;
                    sum = fmaf(now, __uint_as_float(words[j][1]), sum * before);
                    value = fmaf(now, __uint_as_float(words[j][2]), value * before);
                }
            }
            publish_head(s, job.head + h, i, n, value / sum);
        }
    }

    // Largest, sum and value i of four parts.
    template <typename At>
    __device__ __forceinline__ void read_parts(uint32_t (&words)[4][3], At at, uint32_t i, uint32_t tag) {
        Patience patience{walk.stop};
        bool missing;
        do {
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) {
                words[j][0] = load_tagged_word(at(j));
                words[j][1] = load_tagged_word(at(j) + 1);
                words[j][2] = load_tagged_word(at(j) + 2 + i);
            }
            missing = false;
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j)
                missing |= (((words[j][0] ^ tag) | (words[j][1] ^ tag) | (words[j][2] ^ tag)) & 1) != 0;
            if (missing) relax();
        } while (missing && !patience.over());
    }

    __device__ __forceinline__ void publish_head(const nocopy_stage& s, uint32_t head, uint32_t i, uint32_t n,
                                                 float value) {
        store_tagged(exchange(s.target + head * n + i), __float_as_uint(value), s.target_tag);
    }

    // What the cache will hold of eight elements.
    template <int READING>
    static __device__ __forceinline__ RawEight<READING> encoded(const float* from) {
        RawEight<READING> raw;
        encode(raw, from);
        return raw;
    }
    static __device__ __forceinline__ void encode(RawEight<READ_F32>& raw, const float* from) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            raw.low.v[i] = __float_as_uint(from[i]), raw.high.v[i] = __float_as_uint(from[4 + i]);
    }
    template <int READING>
    static __device__ __forceinline__ void encode(RawEight<READING>& raw, const float* from) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t low = READING == READ_F16 ? f32_to_f16(from[2 * i]) : f32_to_bf16(from[2 * i]);
            uint32_t high = READING == READ_F16 ? f32_to_f16(from[2 * i + 1]) : f32_to_bf16(from[2 * i + 1]);
            raw.words.v[i] = low | high << 16;
        }
    }
};

#endif

extern "C" __global__ void __launch_bounds__(WALK_THREADS, 1) walk(const __grid_constant__ nocopy_walk walk) {
#if __CUDA_ARCH__ >= 900
    const WalkMemory shared(walk);
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < WALK_WARPS * walk.slots; ++i) begin_barrier(shared.filled + i, 1);
        begin_barrier(shared.full, ROW_BRINGERS);
        begin_barrier(shared.empty, WALK_WARPS);
        for (uint32_t i = 0; i < WALK_WARPS; ++i) shared.used[i] = 0;
        *shared.stage = 0;
        show_barriers();
    }
    const bool walks = threadIdx.x < WALKERS, streams = threadIdx.x >= WALK_THREADS - 32 * STREAMERS;
    if (!walks && !streams)
        for (uint32_t s = 0; s < STAGES_AHEAD; ++s) Bringer{walk, shared}.hold_stage(s);
    __syncthreads();
    if (streams)
        Stream{walk, shared}.run();
    else if (walks)
        Walker{walk, shared}.run();
    else
        Bringer{walk, shared}.run();
#endif
}
