// The warps of walk.cu that bring what others compute with: weights, stages, a block's share of the tokens,
// and what is to lie in the second cache.
#pragma once

#include "walk_attention.cuh"

#if __CUDA_ARCH__ >= 900

// The pieces of weights that one warp needs, of all products, in order.
struct Pieces {
    const nocopy_walk* walk;
    const WalkMemory* shared;
    uint32_t warp;
    uint64_t* left;                                             // to be told that a stage is behind; or null
    uint32_t stage = ~0u, product = 0, products = 0;            // of the next piece
    uint32_t piece = 0, start = 0, stop = 0;                    // of the stage; of them the product's
    const uint8_t* weight = nullptr;                            // the weight's first row
    uint64_t apart = 0;                                         // bytes from a row of a pair to the other
    uint32_t row_bytes = 0, first = 0;                          // the first pair
    uint32_t half = 0, half_reciprocal = 0;                     // pairs of a head that turns; 2^32 over it
    uint32_t chunks = 0, reciprocal = 0, width = 0, whole = 0;  // of a row; bytes of a chunk and of all
    const uint8_t* next = nullptr;                              // a piece of the pair's first row
    uint64_t next_apart = 0;
    uint32_t next_bytes = 0;

    __device__ __forceinline__ Pieces(const nocopy_walk& w, const WalkMemory& m, uint32_t of)
        : walk(&w), shared(&m), warp(of), left(m.left) {}

    // False if there is none, or if its stage is not held yet.
    __device__ __forceinline__ bool prepare() {
        if (piece >= stop && !(next_product() && piece < stop)) return false;
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
            const uint32_t following = stage + 1;
            if (following == walk->count ||
                !passed(shared->held + following % STAGES_HELD, following / STAGES_HELD % 2))
                return false;
            if (left && following) arrive(left + stage % STAGES_HELD);
            stage = following;
            const nocopy_stage& s = shared->stages[stage % STAGES_HELD];
            product = products = piece = stop = 0;
            if (s.kind != STAGE_PRODUCT) return true;
            products = s.product.gate ? 1 : s.product.count;
            piece = warp;
        }
        const nocopy_stage& s = shared->stages[stage % STAGES_HELD];
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

    static __device__ __forceinline__ uint32_t bytes_of(uint32_t dtype, uint32_t elements) {
        if (is_blocks(dtype)) return elements / block_elements(dtype) * block_bytes(dtype);
        return elements * (dtype == NOCOPY_F32 ? 4 : 2);
    }
};

// Weights on their way to one warp. A lane of a streamer keeps one. What is copied next is known before there
// is room for it; while there is none, the second cache is to hold what comes next, so that memory goes on
// while blocks wait for each other.
struct Stream : Pieces {
    uint64_t *filled, *emptied;
    uint8_t* ring;
    uint32_t begun = 0, arrived = 0;  // pieces, counted from the start
    uint32_t begin_at = 0, begin_parity = 1, arrive_at = 0, arrive_parity = 0;
    uint32_t started = cycles();            // when the last copy was
    Pieces far;                             // of pieces that were fetched to the second cache, the next one
    uint32_t fetched = 0, last = cycles();  // pieces before that one; when the last one was asked for

    __device__ __forceinline__ Stream(const nocopy_walk& w, const WalkMemory& m)
        : Pieces(w, m, (WALK_THREADS - 1 - threadIdx.x) / 32 + STREAMERS * (threadIdx.x % 32)),
          filled(m.filled + warp * w.slots),
          emptied(m.emptied + warp * w.slots),
          ring(m.rings + warp * w.slots * w.slot_bytes),
          far(*this) {}

    __device__ __forceinline__ void run() {
        if (warp >= WALK_WARPS) return;
        for (;;) {
            if (arrived < begun && passed(filled + arrive_at, arrive_parity)) {
                ++arrived;
                if (++arrive_at == walk->slots) arrive_at = 0, arrive_parity ^= 1;
            }
            if (next && begun - arrived < walk->ahead && cycles() - started >= walk->pace) {
                // Nothing has emptied a slot before its first use: that phase counts as passed.
                if (passed(emptied + begin_at, begin_parity)) {
                    copy_pair(filled + begin_at, ring + begin_at * walk->slot_bytes, next, next + next_apart,
                              next_bytes);
                    ++begun, started = cycles();
                    if (++begin_at == walk->slots) begin_at = 0, begin_parity ^= 1;
                    next = nullptr;
                } else if (walk->scouted) {
                    scout();
                }
            }
            if (!next && !prepare() && stage + 1 == walk->count && arrived == begun) return;
            relax();
        }
    }

    __device__ __forceinline__ void scout() {
        if ((int32_t)(fetched - begun) <= 0) far = *this, far.left = nullptr, fetched = begun;
        if (fetched - begun >= walk->scouted || cycles() - last < walk->scouting) return;
        if (!far.next && !far.prepare()) return;
        prefetch(far.next, far.next_bytes);
        prefetch(far.next + far.next_apart, far.next_bytes);
        last = cycles(), ++fetched;
        far.next = nullptr;
    }
};

// The warp that has at hand what the others need soon.
struct Keeper {
    const nocopy_walk& walk;
    const WalkMemory& shared;
    const uint32_t lane = threadIdx.x % 32;

    __device__ __forceinline__ void run() const {
        for (uint32_t s = 0; s < STAGES_AHEAD; ++s) hold_stage(s);
#pragma unroll 1
        for (uint32_t ahead = 0; ahead < walk.count + PREPARED; ++ahead) {
            if (ahead >= PREPARED) begun(ahead - PREPARED);
            prepare(ahead);
        }
    }

    // The block has begun this stage.
    __device__ __forceinline__ void begun(uint32_t s) const {
        await(shared.begins + s % TURNS, s / TURNS % 2);
        hold_stage(s + STAGES_AHEAD);  // where nobody looks any more
        if (s && shared.stages[s % STAGES_HELD].kind == STAGE_GATHER)
            see_cache(shared.stages[(s - 1) % STAGES_HELD]);  // the block knows what is likeliest
    }

    __device__ __forceinline__ void hold_stage(uint32_t index) const {
        if (index >= walk.count) return;
        if (index >= STAGES_HELD) await(shared.left + index % STAGES_HELD, (index / STAGES_HELD - 1) % 2);
        const uint32_t words = sizeof(nocopy_stage) / 4;
        const uint32_t* from = (const uint32_t*)((const nocopy_stage*)walk.stages + index);
        uint32_t* to = (uint32_t*)(shared.stages + index % STAGES_HELD);
        for (uint32_t i = lane; i < words; i += 32) to[i] = from[i];
        __syncwarp();
        arrive(shared.held + index % STAGES_HELD);
    }

    // What a stage reads beside rows.
    __device__ __forceinline__ void prepare(uint32_t index) const {
        if (index >= walk.count) return;
        const nocopy_stage& s = shared.stages[index % STAGES_HELD];
        if (s.kind == STAGE_ATTENTION) share_tokens(s, shared.shares[index % TURNS]);
        if (s.kind == STAGE_PRODUCT && s.product.norm)
            for (uint32_t i = 32 * lane; i < s.product.k; i += 32 * 32)
                prefetch((const uint8_t*)((const float*)s.product.norm + i));
        __syncwarp();
        arrive(shared.prepared + index % TURNS);
    }

    // What the block does in a stage of attention, and the first rows of its part of the tokens in the second
    // cache.
    __device__ __forceinline__ void share_tokens(const nocopy_stage& s, Share& to) const {
        const Share share = share_of(s.launch);
        if (lane == 0) to = share;
        if (share.idle) return;
        const uint32_t bytes = share.n * (s.dtype == NOCOPY_F32 ? 4 : 2);
        const uint32_t stop = min(share.stop, share.start + FETCHED);
#pragma unroll 1
        for (uint32_t t = share.start + lane; t < stop; t += 32)
#pragma unroll 1
            for (uint32_t at = 0; at < bytes; at += 128) {
                prefetch(share.keys + t * share.key_row + at);
                prefetch(share.values + t * share.value_row + at);
            }
    }

    // Rows of the cache that other blocks wrote before they said what is likeliest are there for this block.
    __device__ __forceinline__ void see_cache(const nocopy_stage& s) const {
        for (uint32_t b = lane; b < gridDim.x; b += 32)
            load_tagged((const uint32_t*)walk.exchange + s.source + CANDIDATE_WORDS * b);
        __threadfence();
    }
};

#endif
