// The warps of walk.cu that bring what others compute with: weights, stages, a block's share of the tokens.
#pragma once

#include "walk_attention.cuh"

#if __CUDA_ARCH__ >= 900

// The pieces of weights of a block, chunks of tiles, in order, across stages. A lane has one row of the tile.
struct Pieces {
    static constexpr uint32_t ROWS = 8;  // of a tile, that a warp brings

    const nocopy_stage* stages;
    uint64_t *held, *left;                            // barriers of stages
    uint32_t count;                                   // of stages
    uint32_t most = 0;                                // pairs of a tile
    uint32_t stage = ~0u, product = 0;                // of the piece
    uint32_t tile = 0, pairs = 0;                     // the next tile's first pair; of the stage
    uint32_t start = 0, stop = 0;                     // of them the product's
    uint32_t chunk = 0, chunks = 0, skip = 0;         // of a row; byte of the next chunk
    uint32_t width = 0, whole = 0, stride = 0;        // bytes of a chunk and of a row; of a row in a slot
    const uint8_t *weight = nullptr, *row = nullptr;  // the weight's first row; the lane's
    uint64_t apart = 0;                               // bytes from a row of a pair to the other
    uint32_t row_bytes = 0, first = 0;                // the product's first pair, less `start`
    uint32_t half = 0, half_reciprocal = 0;           // pairs of a head that turns; 2^32 over it
    // The piece: of the lane's row; how many pairs the tile has.
    const uint8_t* from = nullptr;
    uint32_t bytes = 0, tiled = 0;

    __device__ __forceinline__ Pieces(const nocopy_walk& w, const WalkMemory& m)
        : stages(m.stages), held(m.held), left(m.left), count(w.count) {}

    // The warp's first row of a tile; the lane's: of which pair, and whether it is the second one of it.
    static __device__ __forceinline__ uint32_t first_row() {
        return ROWS * (threadIdx.x / 32 - STREAMER_WARP);
    }
    static __device__ __forceinline__ uint32_t own_row() { return first_row() + threadIdx.x % ROWS; }
    __device__ __forceinline__ uint32_t pair() const { return own_row() & most - 1; }
    __device__ __forceinline__ bool second() const { return own_row() & most; }

    // Goes on to the next piece; false if there is none, or if its stage is not held yet.
    __device__ __forceinline__ bool next() {
        while (tile >= pairs)
            if (!next_stage()) return false;
        if (chunk == 0) {
            tiled = min(pairs - tile, most);
            find_row(tile + min(pair(), tiled - 1));
        }
        from = row + skip, bytes = min(width, whole - skip);
        skip += width;
        if (++chunk == chunks) chunk = skip = 0, tile += most;
        return true;
    }

    __device__ __forceinline__ bool next_stage() {
        const uint32_t following = stage + 1;
        if (following == count || !passed(held + following % STAGES_HELD, following / STAGES_HELD % 2))
            return false;
        if (following) arrive(left + stage % STAGES_HELD);
        stage = following;
        const nocopy_stage& s = stages[stage % STAGES_HELD];
        tile = pairs = 0;
        if (s.kind != STAGE_PRODUCT) return true;
        pairs = all_own_pairs(s), most = is_blocks(s.dtype) ? TILE_PAIRS_OF_BLOCKS : TILE_PAIRS;
        chunks = s.steps, stride = s.stride;
        width = bytes_of(s.dtype, s.product.chunk), whole = bytes_of(s.dtype, s.product.k);
        product = ~0u, start = stop = 0;
        return true;
    }

    static constexpr uint32_t ONE_BY_ONE = ~0u;  // for `half`: rows of two weights make a pair

    __device__ __forceinline__ void find_row(uint32_t own) {
        while (own >= stop) next_product();
        const uint32_t index = first + own, head = half_reciprocal ? __umulhi(index, half_reciprocal) : index;
        const uint32_t at = half == ONE_BY_ONE ? index : half ? index + head * half : 2 * index;
        row = weight + (uint64_t)at * row_bytes + (second() ? apart : 0);
    }

    __device__ __forceinline__ void next_product() {
        ++product;
        const nocopy_stage& s = stages[stage % STAGES_HELD];
        const nocopy_fused& f = s.product;
        const nocopy_product& p = f.products[product];
        weight = (const uint8_t*)p.weight, row_bytes = p.row_bytes;
        half = f.gate ? ONE_BY_ONE : p.turn == TURN_HALF ? p.head / 2 : 0;
        half_reciprocal = half > 1 ? ~0u / half + 1 : 0;
        apart = f.gate ? f.products[1].weight - p.weight : (uint64_t)row_bytes * (half ? half : 1);
        start = stop;
        first = first_pair(s, product) - start;
        stop += own_pairs(s, product);
    }

    static __device__ __forceinline__ uint32_t bytes_of(uint32_t dtype, uint32_t elements) {
        if (is_blocks(dtype)) return elements / block_elements(dtype) * block_bytes(dtype);
        return 2 * elements;
    }
};

// Weights on their way to the ring. A streamer brings eight rows of a tile.
struct Stream : Pieces {
    const nocopy_walk& walk;
    uint64_t *filled, *emptied;
    uint8_t* ring;
    uint64_t* waits;
    RingPlace begin, arrive;          // slots: of the next piece, of the oldest one on its way
    uint32_t begun = 0, arrived = 0;  // pieces, counted from the start
    uint32_t started = cycles();      // when the last copy was

    __device__ __forceinline__ Stream(const nocopy_walk& w, const WalkMemory& m)
        : Pieces(w, m), walk(w), filled(m.filled), emptied(m.emptied), ring(m.ring), waits(m.waits) {}

    __device__ __forceinline__ void run() {
        for (;; begin.advance(walk.slots)) {
            while (!next()) {
                if (stage + 1 == count) return;
                relax();
            }
            while (begun - arrived >= (passed(waits, 0) ? walk.waiting : walk.ahead)) {
                if (passed(filled + arrive.slot, arrive.parity)) arrive.advance(walk.slots), ++arrived;
                relax();
            }
            // Nothing has emptied a slot before its first use: that phase counts as passed.
            while (!passed(emptied + begin.slot, begin.parity ^ 1)) relax();
            while (cycles() - started < walk.pace) relax();
            started = cycles(), ++begun;
            copy();
        }
    }

    // One lane starts all copies, from where the others say: so each takes a few instructions.
    __device__ __forceinline__ void copy() const {
        uint64_t rows[ROWS];
#pragma unroll
        for (uint32_t row = 0; row < ROWS; ++row) rows[row] = __shfl_sync(~0u, (uint64_t)from, row);
        const Copies copies(filled + begin.slot, ring + begin.slot * walk.slot_bytes + first_row() * stride,
                            bytes);
        if (!elected()) return;
        const uint32_t own = first_row() >= 2 * most ? 0 : most < ROWS ? 2 * tiled : tiled;
        announce(filled + begin.slot, own * bytes);
        if (own == ROWS) return start<true>(copies, rows);
        if (own) start<false>(copies, rows);
    }

    // All rows, or those that are among the tile's.
    template <bool ALL>
    __device__ __forceinline__ void start(const Copies& copies, const uint64_t (&rows)[ROWS]) const {
#pragma unroll
        for (uint32_t row = 0; row < ROWS; ++row)
            if (ALL || (row & most - 1) < tiled) copies.start(row * stride, rows[row]);
    }
};

// The warp that has at hand what the others need soon.
struct Keeper {
    const nocopy_walk& walk;
    const WalkMemory shared;
    const uint32_t lane = threadIdx.x % 32;

    __device__ __forceinline__ void run() const {
        uint32_t held = 0;
#pragma unroll 1
        for (uint32_t ahead = 0; ahead < walk.count + PREPARED; ++ahead) {
            if (ahead >= PREPARED) begun(ahead - PREPARED);
            // Where nobody looks any more.
#pragma unroll 1
            for (; held < min(walk.count, ahead + 1 + STAGES_AHEAD - PREPARED); ++held) hold_stage(held);
            prepare(ahead);
        }
    }

    // The block has begun this stage.
    __device__ __forceinline__ void begun(uint32_t s) const {
        await(shared.begins + s % TURNS, s / TURNS % 2);
        if (s && shared.stages[s % STAGES_HELD].kind == STAGE_GATHER)
            see_cache(shared.stages[(s - 1) % STAGES_HELD]);  // the block knows what is likeliest
    }

    __device__ __forceinline__ void hold_stage(uint32_t index) const {
        if (index >= STAGES_HELD) await(shared.left + index % STAGES_HELD, (index / STAGES_HELD - 1) % 2);
        static_assert(sizeof(nocopy_stage) % 16 == 0 && sizeof(nocopy_stage) <= 32 * 16);
        const Words4* from = (const Words4*)((const nocopy_stage*)walk.stages + index);
        if (lane < sizeof(nocopy_stage) / 16)
            ((Words4*)(shared.stages + index % STAGES_HELD))[lane] = from[lane];
        __syncwarp();
        arrive(shared.held + index % STAGES_HELD);
    }

    // What a stage reads beside rows.
    __device__ __forceinline__ void prepare(uint32_t index) const {
        if (index >= walk.count) return;
        const nocopy_stage& s = shared.stages[index % STAGES_HELD];
        if (s.kind == STAGE_ATTENTION) share_tokens(s, shared.shares[index % TURNS]);
        if (s.kind == STAGE_PRODUCT && s.product.positions) reckon(s.product, index % TURNS);
        if (s.kind == STAGE_PRODUCT && s.product.norm)
            for (uint32_t i = 32 * lane; i < s.product.k; i += 32 * 32)
                prefetch((const uint8_t*)((const float*)s.product.norm + i));
        __syncwarp();
        arrive(shared.prepared + index % TURNS);
    }

    // Where the row is, which may lie behind a bus, and how its elements turn: all weights alike.
    __device__ __forceinline__ void reckon(const nocopy_fused& f, uint32_t turn) const {
        const int32_t position = *(const int32_t*)f.positions;
        if (lane == 0) shared.positions[turn] = position;
#pragma unroll 1
        for (uint32_t p = 0; p < f.count; ++p) {
            if (f.products[p].turn == TURN_NONE) continue;
#pragma unroll 1
            for (uint32_t i = lane; i < f.products[p].head / 2; i += 32)
                shared.rotations[turn * walk.turns + i] = rotation_of(f.products[p], i, position);
            return;
        }
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
