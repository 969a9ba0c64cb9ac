// What the kernel of walk.cu plays: its stages, how blocks share their work out, the parts of a block's
// shared memory, and how rows are read that other blocks hand on.
#pragma once

#include "attention_row.cuh"
#include "barrier.cuh"
#include "row_product.cuh"
#include "walk_blocks.cuh"

constexpr uint32_t WALK_WARPS = 8, WALKERS = 32 * WALK_WARPS;
constexpr uint32_t KEEPER_WARP = WALK_WARPS, STREAMER_WARP = KEEPER_WARP + 1;  // the first one
constexpr uint32_t WALK_THREADS = 32 * (STREAMER_WARP + 2);                    // at most
constexpr uint32_t NO_TAG = 2;              // the row lies in memory since before the kernel began
constexpr uint32_t NOWHERE = ~0u;           // nobody needs it
constexpr uint32_t FEWEST_ELEMENTS = 8192;  // of the keys of a part of attention, of one head
constexpr uint32_t FETCHED = 256;           // tokens of a part that the second cache is to hold: all fit it
constexpr uint32_t STAGES_HELD = 16, STAGES_AHEAD = 8;  // in shared memory; of them behind the one at hand
constexpr uint32_t TURNS = 4;     // stages that have barriers of their own for what is begun and prepared
constexpr uint32_t PREPARED = 2;  // stages whose needs are seen to behind the one at hand
constexpr uint32_t CANDIDATE_WORDS = 4;
constexpr uint32_t TILE_PAIRS = 4, TILE_PAIRS_OF_BLOCKS = 8;  // of rows that come to the ring together
constexpr uint32_t PAIRS_AT_ONCE = 64;                        // whose sums a block keeps at a time
constexpr int MOST_STEPS = 16;                                // of 2,048 elements, of a row
constexpr int WORDS_AWAITED = 8, WORDS_WEIGHTED = 4;          // of four elements, by a lane together

// What the kernel is compiled for: sets of dtypes, 1 << dtype each, of weights and caches.
#ifndef WALK_WEIGHTS
#define WALK_WEIGHTS ~0u
#define WALK_CACHES ~0u
#endif

// And a set of how many steps rows have, 1 << steps each.
#ifndef WALK_STEPS
#define WALK_STEPS 0x409eu
#endif

// And whether all steps are whole.
#ifndef WALK_WHOLE
#define WALK_WHOLE 0
#endif

// And heads that share keys and values, or heads that do not; 0 for either.
#ifndef WALK_HEADS
#define WALK_HEADS 0
#endif

// And for heads of at most so many times 64 elements.
#ifndef WALK_HEAD_GROUPS
#define WALK_HEAD_GROUPS 4
#endif

enum StageKind : uint32_t { STAGE_PRODUCT, STAGE_ATTENTION, STAGE_GATHER, STAGE_ARGMAX };

struct nocopy_stage {
    uint32_t kind, dtype;           // of the weight
    uint32_t source, source_tag;    // word of the exchange where its row lies
    uint32_t target, target_tag;    // and where its results go
    uint32_t best, best_tag;        // where each block's likeliest result goes
    uint32_t partial, partial_tag;  // where parts of attention go
    uint32_t each[3], more[3];      // pairs of a product that each block has; how many have one more
    uint32_t keys, values;          // words from the queries to the keys and to the values
    uint32_t steps;                 // of a row, each of them in a slot
    uint32_t stride;                // bytes from a row of a slot to the next
    uint32_t replicas;              // of its results in the exchange
    uint32_t reserved[3];           // to a multiple of 16 bytes
    union {
        nocopy_fused product;
        nocopy_launch launch;  // of the op
    };
};

// What a block does in an attention stage: heads of one group, and a part of the tokens.
struct Share {
    const uint8_t *keys, *values;    // of token 0
    uint64_t key_row, value_row;     // bytes from a token to the next
    uint32_t start, stop, newest;    // the part; the token that is not in the cache yet
    uint32_t part, parts, most;      // which; of how many; of how many there may be
    uint32_t n, group, head, heads;  // elements of a head; the first head, and how many
    uint32_t job;                    // of those that have parts of their own
    bool idle, empty;                // nothing to do; no tokens
};

struct nocopy_walk {
    uint64_t stages, exchange;
    const volatile int32_t* stop;
    uint32_t count;              // stages
    uint32_t slots, slot_bytes;  // of the ring
    uint32_t ahead, waiting;     // slots whose copies are on their way; while the block waits for others
    uint32_t pace;               // cycles from one of them to the next, at least
    uint32_t row_words;          // of shared memory
    uint32_t turns;              // rotations of a stage, at most
    uint32_t mask;               // 0xf0f0f0f0, for a register: an instruction takes one constant
    uint32_t replicas;           // of rows that all blocks read, each one of them
    uint32_t replica_words;      // of the exchange, from one to the next
    uint32_t reserved;
};

static_assert(sizeof(nocopy_stage) == 432, "device/cuda_walk.py packs this struct");
static_assert(sizeof(nocopy_walk) == 72, "device/cuda_walk.py packs this struct");

#if __CUDA_ARCH__ >= 900

// Calls take with an object of the struct that reads a weight's type (blocks.cuh).
template <uint32_t DTYPE, typename B, typename Take>
__device__ __forceinline__ void with_type_if(uint32_t dtype, Take take) {
    if constexpr (WALK_WEIGHTS >> DTYPE & 1)
        if (dtype == DTYPE) take(B());
}
template <typename Take>
__device__ __forceinline__ void with_type(uint32_t dtype, Take take) {
    with_type_if<NOCOPY_F16, F16Words>(dtype, take);
    with_type_if<NOCOPY_BF16, Bf16Words>(dtype, take);
    with_type_if<NOCOPY_Q8_0, MatrixQ8_0>(dtype, take);
    with_type_if<NOCOPY_Q4_0, MatrixQ4_0>(dtype, take);
    with_type_if<NOCOPY_Q4_K, MatrixQ4_K>(dtype, take);
    with_type_if<NOCOPY_Q5_K, MatrixQ5_K>(dtype, take);
    with_type_if<NOCOPY_Q6_K, MatrixQ6_K>(dtype, take);
}

// Heads of a group that a block of attention takes.
__device__ __forceinline__ uint32_t heads_at_once(const nocopy_launch& launch) {
    return launch.record.dims[1] > launch.record.dims[4] ? 4 : 1;
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

// The parts of a block's shared memory.
struct WalkMemory {
    uint8_t* ring;
    float* row;  // and the states of attention behind it
    Sums* sums;  // of each warp, of each pair, of two rounds in turn
    nocopy_stage* stages;
    uint64_t *filled, *emptied;  // of each slot
    uint64_t* best;
    float* squares;         // of each warp, of two rounds in turn
    uint64_t *held, *left;  // barriers of each place for a stage: it is there; streamers need it no more
    uint64_t *begins, *prepared;  // of stages in turn: the block has begun it; what it needs is there
    Share* shares;                // of stages in turn
    uint64_t* waits;              // phases are odd while the block waits for others
    int32_t* positions;           // of stages in turn: where the row is
    Rotation* rotations;          // of stages in turn, as many as there may be

    __device__ __forceinline__ WalkMemory(const nocopy_walk& w) {
        ring = dynamic_shared();
        row = (float*)(ring + w.slots * w.slot_bytes);
        sums = (Sums*)(row + w.row_words);
        stages = (nocopy_stage*)(sums + 2 * PAIRS_AT_ONCE * WALK_WARPS);
        filled = (uint64_t*)(stages + STAGES_HELD);
        emptied = filled + w.slots;
        best = emptied + w.slots;
        squares = (float*)(best + WALK_WARPS);
        held = (uint64_t*)(squares + 2 * WALK_WARPS);
        left = held + STAGES_HELD;
        begins = left + STAGES_HELD;
        prepared = begins + TURNS;
        shares = (Share*)(prepared + TURNS);
        waits = (uint64_t*)(shares + TURNS);
        positions = (int32_t*)(waits + 1);
        rotations = (Rotation*)(positions + TURNS);
    }
};

// A place of the ring, and which time it is used.
struct RingPlace {
    uint32_t slot = 0, parity = 0;

    __device__ __forceinline__ void advance(uint32_t slots) {
        if (++slot == slots) slot = 0, parity ^= 1;
    }
};

// For who waits for tags: now and then, whether to wait no longer.
struct Patience {
    const volatile int32_t* stop;
    uint32_t looks = 0;

    __device__ __forceinline__ bool over() { return ++looks % 4096 == 0 && stop && *stop; }
};

// Until nothing is missing() of what other blocks hand on: again() before it is asked the next time.
template <typename Missing, typename Again>
__device__ __forceinline__ void wait_while(const volatile int32_t* stop, Missing missing, Again again) {
    for (Patience patience{stop}; missing() && !patience.over(); again()) relax();
}

// The same where missing() looks itself.
template <typename Missing>
__device__ __forceinline__ void wait_while(const volatile int32_t* stop, Missing missing) {
    wait_while(stop, missing, [] {});
}

// Whether some of the words are not there yet.
template <uint32_t COUNT>
__device__ __forceinline__ bool missing(const Words4* words, uint32_t tag) {
    uint32_t other = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4 * COUNT; ++i) other |= words[i / 4].v[i % 4] ^ tag;
    asm("" : "+r"(other));  // whole words are put together, one instruction each, not their lowest bits
    return tag != NO_TAG && other & 1;
}

// Calls take(i, words) for four words at from(i), for i = thread, thread + threads ... below count. Loads of
// AT_ONCE are on their way together, again and again until they are there.
template <uint32_t AT_ONCE, typename From, typename Take>
__device__ __forceinline__ void bring_words(uint32_t thread, uint32_t threads, uint32_t count, uint32_t tag,
                                            const volatile int32_t* stop, From from, Take take) {
#pragma unroll 1
    for (uint32_t first = thread; first < count; first += AT_ONCE * threads) {
        const uint32_t* at[AT_ONCE];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; ++j) {
            uint32_t i = first + j * threads;
            at[j] = i < count ? from(i) : nullptr;
        }
        wait_while(stop, [&] {
            Words4 words[AT_ONCE];
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j)
                if (at[j]) words[j] = load_tagged(at[j]);
            bool any = false;
#pragma unroll
            for (uint32_t j = 0; j < AT_ONCE; ++j) {
                if (!at[j]) continue;
                if (!missing<1>(words + j, tag)) {
                    take(first + j * threads, words[j]);
                    at[j] = nullptr;
                } else {
                    any = true;
                }
            }
            return any;
        });
    }
}

#endif
