// The warps of walk.cu that bring what others compute with: weights, stages, and what is to lie in the second
// cache.
#pragma once

#include "walk_attention.cuh"

#if __CUDA_ARCH__ >= 900

// Weights on their way to one warp: all that its pieces of all products need, in order. EACH lanes of a
// streamer keep one each. What is copied next is known before there is room for it.
struct Stream {
    static constexpr uint32_t EACH = WALK_WARPS / STREAMERS;

    const nocopy_walk& walk;
    const WalkMemory& shared;
    const uint32_t warp = (WALK_THREADS - 1 - threadIdx.x) / 32 * EACH + threadIdx.x % 32;
    uint64_t *filled = shared.filled + warp * walk.slots, *emptied = shared.emptied + warp * walk.slots;
    uint8_t* ring = shared.rings + warp * walk.slots * walk.slot_bytes;
    uint32_t stage = ~0u, product = 0, products = 0;  // of what is copied next
    uint32_t piece = 0, start = 0, stop = 0;          // of the stage; of them the product's
    bool attends = false;
    uint32_t begun = 0, arrived = 0;  // slots, counted from the start
    uint32_t begin_at = 0, begin_parity = 1, arrive_at = 0, arrive_parity = 0;
    const uint8_t* weight = nullptr;                            // the weight's first row
    uint64_t apart = 0;                                         // bytes from a row of a pair to the other
    uint32_t row_bytes = 0, first = 0;                          // the first pair
    uint32_t half = 0, half_reciprocal = 0;                     // pairs of a head that turns; 2^32 over it
    uint32_t chunks = 0, reciprocal = 0, width = 0, whole = 0;  // of a row; bytes of a chunk and of all
    const uint8_t* next = nullptr;                              // a piece of the pair's first row
    uint64_t next_apart = 0;
    uint32_t next_bytes = 0, next_tokens = 0;
    CachedHead cached;  // of a stage of attention: then pieces are tiles of its tokens [start, stop)

    __device__ __forceinline__ void run() {
        if (threadIdx.x % 32 >= EACH) return;
        const uint32_t limit = walk.ahead + (warp < walk.one_more);
        for (;;) {
            if (arrived < begun && passed(filled + arrive_at, arrive_parity)) {
                ++arrived;
                if (++arrive_at == walk.slots) arrive_at = 0, arrive_parity ^= 1;
            }
            // Nothing has emptied a slot before its first use: that phase counts as passed.
            if (next && begun - arrived < limit && passed(emptied + begin_at, begin_parity)) {
                copy(filled + begin_at, ring + begin_at * walk.slot_bytes);
                ++begun;
                if (++begin_at == walk.slots) begin_at = 0, begin_parity ^= 1;
                next = nullptr;
            }
            if (!next && !prepare() && stage + 1 == walk.count && arrived == begun) return;
            relax();
        }
    }

    __device__ __forceinline__ void copy(uint64_t* barrier, uint8_t* to) const {
        if (!next_tokens) return copy_pair(barrier, to, next, next + next_apart, next_bytes);
        announce(barrier, 2 * next_tokens * cached.bytes);
        const uint8_t *key = next, *value = next + next_apart;
        for (uint32_t i = 0; i < next_tokens; ++i) {
            copy_announced(barrier, to + i * cached.step, key, cached.bytes);
            copy_announced(barrier, to + (cached.tile + i) * cached.step, value, cached.bytes);
            key += cached.key_row, value += cached.value_row;
        }
    }

    // What is copied next; false if there is none, or if its stage is not held yet.
    __device__ __forceinline__ bool prepare() {
        if (piece >= stop && !(next_product() && piece < stop)) return false;
        if (attends) {
            next = cached.keys + piece * cached.key_row;
            next_apart = cached.values + piece * cached.value_row - next;
            next_tokens = min(cached.tile, stop - piece);
            piece += WALK_WARPS * cached.tile;
            return true;
        }
        next_tokens = 0;
        const uint32_t local = piece - start, index = reciprocal ? __umulhi(local, reciprocal) : local;
        const uint32_t skip = (local - index * chunks) * width, pair = first + index;
        const uint32_t head = half_reciprocal ? __umulhi(pair, half_reciprocal) : pair;
        const uint32_t row = half == ONE_BY_ONE ? pair : half ? pair + head * half : 2 * pair;
        next = weight + (uint64_t)row * row_bytes + skip;
        next_apart = apart, next_bytes = min(width, whole - skip);
        piece += WALK_WARPS;
        return true;
    }

    static constexpr uint32_t ONE_BY_ONE = ~0u;  // for `half`: rows of two weights make a pair

    // False if there is none, or if its stage is not held yet.
    __device__ __forceinline__ bool next_product() {
        if (product + 1 < products) {
            ++product;
        } else {
            if (stage + 1 == walk.count || stage + 1 >= *shared.kept + STAGES_AHEAD) return false;
            // The newest token of the pass before is in the cache once the block begins this one
            // (`see_cache`).
            if (shared.stages[(stage + 1) % STAGES_HELD].kind == STAGE_ATTENTION && stage > *shared.kept)
                return false;
            __threadfence_block();  // the stage is held
            ++stage;
            const nocopy_stage& s = shared.stages[stage % STAGES_HELD];
            product = products = piece = stop = 0;
            attends = s.kind == STAGE_ATTENTION;
            if (attends) next_tiles(s.launch);
            if (s.kind != STAGE_PRODUCT) return true;
            products = s.product.gate ? 1 : s.product.count;
            piece = warp;
        }
        const nocopy_stage& s = shared.stages[stage % STAGES_HELD];
        const nocopy_fused& f = s.product;
        const nocopy_product& p = f.products[product];
        chunks = s.chunks, reciprocal = f.reciprocal;
        width = bytes_of(s.dtype, f.chunk), whole = bytes_of(s.dtype, f.k);
        weight = (const uint8_t*)p.weight, row_bytes = p.row_bytes, first = first_pair(s, product);
        half = f.gate ? ONE_BY_ONE : p.turn == TURN_HALF ? p.head / 2 : 0;
        half_reciprocal = half > 1 ? ~0u / half + 1 : 0;
        apart = f.gate ? f.products[1].weight - p.weight : (uint64_t)row_bytes * (half ? half : 1);
        start = stop;
        stop += own_pairs(s, product) * chunks;
        return true;
    }

    __device__ __forceinline__ void next_tiles(const nocopy_launch& launch) {
        const AttentionJob job(launch, AttentionJob::at_once(launch));
        if (job.idle) return;
        const Part part(Tokens(launch, 0), job.split, job.most, FEWEST_TOKENS);
        cached = CachedHead(launch, job, walk.slot_bytes);
        piece = (uint32_t)part.start + warp * cached.tile, stop = (uint32_t)part.stop;
    }

    static __device__ __forceinline__ uint32_t bytes_of(uint32_t dtype, uint32_t elements) {
        if (is_blocks(dtype)) return elements / block_elements(dtype) * block_bytes(dtype);
        return elements * (dtype == NOCOPY_F32 ? 4 : 2);
    }
};

// The warp that has at hand what the others need soon.
struct Keeper {
    const nocopy_walk& walk;
    const WalkMemory& shared;
    const uint32_t lane = threadIdx.x % 32;

    __device__ __forceinline__ void run() const {
        for (uint32_t s = 0; s < walk.count; ++s) {
            while (*shared.stage < s + 1) relax();
            __threadfence_block();
            hold_stage(s + STAGES_AHEAD);  // where nobody looks any more
            prepare(s);
            __syncwarp();
            if (lane == 0) {
                __threadfence_block();
                *shared.kept = s + 1;
            }
        }
    }

    __device__ __forceinline__ void hold_stage(uint32_t index) const {
        if (index >= walk.count) return;
        const uint32_t words = sizeof(nocopy_stage) / 4;
        const uint32_t* from = (const uint32_t*)((const nocopy_stage*)walk.stages + index);
        uint32_t* to = (uint32_t*)(shared.stages + index % STAGES_HELD);
        for (uint32_t i = lane; i < words; i += 32) to[i] = from[i];
    }

    // While the block is at stage s: what the next one reads beside rows.
    __device__ __forceinline__ void prepare(uint32_t s) const {
        if (s && shared.stages[s % STAGES_HELD].kind == STAGE_GATHER)
            see_cache(shared.stages[(s - 1) % STAGES_HELD]);  // the block knows what is likeliest
        if (s + 1 == walk.count) return;
        const nocopy_stage& next = shared.stages[(s + 1) % STAGES_HELD];
        if (next.kind != STAGE_PRODUCT || !next.product.norm) return;
        for (uint32_t i = 32 * lane; i < next.product.k; i += 32 * 32)
            prefetch((const uint8_t*)((const float*)next.product.norm + i));
    }

    // Rows of the cache that other blocks wrote before they said what is likeliest are there for this block.
    __device__ __forceinline__ void see_cache(const nocopy_stage& s) const {
        for (uint32_t b = lane; b < gridDim.x; b += 32)
            load_tagged((const uint32_t*)walk.exchange + s.source + CANDIDATE_WORDS * b);
        __threadfence();
        show_global();  // to the copies of others too, which begin after `kept`
    }
};

#endif
