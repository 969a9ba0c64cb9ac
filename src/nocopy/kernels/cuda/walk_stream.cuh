// The warps of walk.cu that bring what others compute with: weights, stages, a block's share of the tokens,
// and what is to lie in the second cache.
#pragma once

#include "walk_attention.cuh"

#if __CUDA_ARCH__ >= 900

// The pieces of weights that one warp needs, of all products, in order: every WALK_WARPS-th of a stage.
struct Pieces {
    const nocopy_walk* walk;
    const WalkMemory* shared;
    uint32_t warp;
    uint32_t stage = ~0u, product = 0, products = 0;  // of the next piece
    uint32_t piece = 0, stop = 0;                     // of the stage; behind the product's last one
    // Of the product: where its weight's first row lies, bytes of a row, bytes from a row of a pair to the
    // other; pair p's first row is p * rows + p / half * half, where rows turn by halves of heads.
    const uint8_t* weight = nullptr;
    uint64_t apart = 0;
    uint32_t row_bytes = 0, rows = 0, half = 0, half_reciprocal = 0;
    uint32_t chunks = 0, width = 0, whole = 0;  // of a row; bytes of a chunk and of all
    uint32_t pair = 0, chunk = 0, step = 0, rest = 0;  // of the next piece; from there to the one behind it

    __device__ __forceinline__ Pieces(const nocopy_walk& w, const WalkMemory& m, uint32_t of)
        : walk(&w), shared(&m), warp(of) {}

    // Whether there is a next piece whose stage is held.
    __device__ __forceinline__ bool there() { return piece < stop || (next_product() && piece < stop); }

    // A piece of its pair's first row; the other row's lies `apart` behind it.
    __device__ __forceinline__ const uint8_t* at() const {
        const uint32_t row = pair * rows + __umulhi(pair, half_reciprocal) * half;
        return weight + (uint64_t)row * row_bytes + chunk * width;
    }

    __device__ __forceinline__ uint32_t bytes() const { return min(width, whole - chunk * width); }

    __device__ __forceinline__ void advance() {
        piece += WALK_WARPS, pair += step, chunk += rest;
        if (chunk >= chunks) chunk -= chunks, ++pair;
    }

    // False if there is none, or if its stage is not held yet.
    __device__ __forceinline__ bool next_product() {
        if (product + 1 < products) {
            ++product;
        } else {
            const uint32_t following = stage + 1;
            if (following == walk->count ||
                !passed(shared->held + following % STAGES_HELD, following / STAGES_HELD % 2))
                return false;
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
        chunks = s.chunks, width = bytes_of(s.dtype, f.chunk), whole = bytes_of(s.dtype, f.k);
        weight = (const uint8_t*)p.weight, row_bytes = p.row_bytes;
        half = !f.gate && p.turn == TURN_HALF ? p.head / 2 : 0;
        apart = f.gate ? f.products[1].weight - p.weight : (uint64_t)row_bytes * max(half, 1u);
        if (half == 1) half = 0;  // neighbours turn
        half_reciprocal = half ? ~0u / half + 1 : 0, rows = f.gate || half ? 1 : 2;
        const uint32_t local = piece - stop;
        pair = f.reciprocal ? __umulhi(local, f.reciprocal) : local;
        chunk = local - pair * chunks, pair += first_pair(s, product);
        step = WALK_WARPS / chunks, rest = WALK_WARPS % chunks;
        stop += own_pairs(s, product) * chunks;
        return true;
    }

    static __device__ __forceinline__ uint32_t bytes_of(uint32_t dtype, uint32_t elements) {
        if (is_blocks(dtype)) return elements / block_elements(dtype) * block_bytes(dtype);
        return elements * (dtype == NOCOPY_F32 ? 4 : 2);
    }
};

// Weights on their way to one warp. A lane of a streamer keeps one. While there is no room for what comes next,
// the second cache is to hold it, so that memory goes on while blocks wait for each other.
struct Stream {
    const nocopy_walk* walk;
    Pieces next, far;  // the next one to be copied; behind those that were fetched to the second cache
    uint64_t *filled, *emptied;
    uint8_t* ring;
    uint32_t begun = 0, arrived = 0;  // pieces, counted from the start
    uint32_t begin_at = 0, begin_parity = 1, arrive_at = 0, arrive_parity = 0;
    uint32_t fetched = 0, last = cycles();  // pieces before `far`; when the last one was asked for

    __device__ __forceinline__ Stream(const nocopy_walk& w, const WalkMemory& m)
        : walk(&w),
          next(w, m, (WALK_THREADS - 1 - threadIdx.x) / 32 + STREAMERS * (threadIdx.x % 32)),
          far(next),
          filled(m.filled + next.warp * w.slots),
          emptied(m.emptied + next.warp * w.slots),
          ring(m.rings + next.warp * w.slots * w.slot_bytes) {}

    __device__ __forceinline__ void run() {
        if (next.warp >= WALK_WARPS) return;
        const uint32_t limit = walk->ahead + (next.warp < walk->one_more);
        for (;;) {
            if (arrived < begun && passed(filled + arrive_at, arrive_parity)) {
                ++arrived;
                if (++arrive_at == walk->slots) arrive_at = 0, arrive_parity ^= 1;
            }
            if (!next.there()) {
                if (next.stage + 1 == walk->count && arrived == begun) return;
            } else if (begun - arrived < limit) {
                // Nothing has emptied a slot before its first use: that phase counts as passed.
                if (passed(emptied + begin_at, begin_parity))
                    begin();
                else if (walk->scouted)
                    scout();
            }
            relax();
        }
    }

    __device__ __forceinline__ void begin() {
        const uint8_t* at = next.at();
        copy_pair(filled + begin_at, ring + begin_at * walk->slot_bytes, at, at + next.apart, next.bytes());
        next.advance();
        ++begun;
        if (++begin_at == walk->slots) begin_at = 0, begin_parity ^= 1;
    }

    __device__ __forceinline__ void scout() {
        if (cycles() - last < walk->scouting) return;
        if ((int32_t)(fetched - begun) <= 0) far = next, fetched = begun;
        if (fetched - begun >= walk->scouted || !far.there()) return;
        const uint8_t* at = far.at();
        prefetch(at, far.bytes());
        prefetch(at + far.apart, far.bytes());
        far.advance();
        last = cycles(), ++fetched;
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
        nocopy_stage& s = shared.stages[index % STAGES_HELD];
        if (s.kind == STAGE_ATTENTION) share_tokens(s);
        if (s.kind == STAGE_PRODUCT && s.product.norm)
            for (uint32_t i = 32 * lane; i < s.product.k; i += 32 * 32)
                prefetch((const uint8_t*)((const float*)s.product.norm + i));
        __syncwarp();
        arrive(shared.prepared + index % TURNS);
    }

    // The block's part of the tokens that a stage attends to, whose first rows the second cache is to hold.
    __device__ __forceinline__ void share_tokens(nocopy_stage& s) const {
        const AttentionJob job(s.launch, AttentionJob::at_once(s.launch));
        if (job.idle) return;
        const Tokens tokens(s.launch, 0);
        const Part part(tokens, job.split, job.most, FEWEST_TOKENS);
        if (lane == 0) {
            const bool empty = tokens.start >= tokens.stop;
            const uint32_t newest = (uint32_t)*Tensor(s.launch, 4).as<int32_t>();
            s.share = {(uint32_t)part.start, (uint32_t)part.stop, newest, part.parts, empty};
        }
        const CachedHead cached(s.launch, job);
        const uint32_t bytes = job.n * (s.dtype == NOCOPY_F32 ? 4 : 2);
        const uint32_t stop = min((uint32_t)part.stop, (uint32_t)part.start + FETCHED);
#pragma unroll 1
        for (uint32_t t = (uint32_t)part.start + lane; t < stop; t += 32)
#pragma unroll 1
            for (uint32_t at = 0; at < bytes; at += 128) {
                prefetch(cached.keys + t * cached.key_row + at);
                prefetch(cached.values + t * cached.value_row + at);
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
