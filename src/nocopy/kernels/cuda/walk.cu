// A language model's pass over one row, or several such passes one after another, in one kernel: its stages
// are products (row_product.cuh), attention (walk_attention.cuh), the look-up of a row, and the likeliest
// token.
//
// As many blocks as multiprocessors run to the end of the program together. A stage needs all results of the
// one before it, so blocks hand them on through words that carry a tag (barrier.cuh); no block waits for a
// fence or a counter. Weights come through a ring in shared memory, a tile of rows in each slot or the next
// few (walk_stream.cuh). One or two warps start all copies, across stages: while a row is awaited, what the
// next stages read arrives. Only some bytes are on their way at a time, since a longer queue delays the words
// that blocks wait for; how many, and whether fewer while the block does, the host chooses
// (device/cuda_walk_flow.py). WALK_WARPS warps compute: each has an eighth of the elements of all rows, reads
// that of what was handed on until it is there, applies the norm's weight and holds it in registers
// (walk_row.cuh), and multiplies it with the tiles as matrices (walk_product.cuh); so the block's warps meet
// once a product. The kernel is compiled for the model at hand: straight code is fast where all of it fits
// the instruction cache of 128 KiB. Bound: the bytes of the weights and of the cache.
//
// Tags of the exchange's words are 0 when the kernel starts, and a place is used again only after every block
// has written something that it could not know before it had read the place: the host sees to that
// (device/cuda_walk.py). Should the host ask the kernel to stop, it goes on to its end without waiting.
#include "keys.cuh"
#include "walk_row.cuh"
#include "walk_stream.cuh"

#if __CUDA_ARCH__ >= 900

__device__ __noinline__ float table_element(const Tensor table, uint64_t at) {
    return is_blocks(table.dtype) ? load_block_element(table, at) : load(table, at);
}

// The warps that compute.
struct Walker {
    const nocopy_walk& walk;
    const WalkMemory shared;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t index = 0;  // of the stage at hand
    RingPlace next;      // slot
    uint32_t round = 0;  // which of two places sums go to
    bool waiting = false;
    int32_t token = 0;

    __device__ __forceinline__ uint32_t* exchange(uint32_t word) const {
        return (uint32_t*)walk.exchange + word;
    }

    __device__ __forceinline__ void run() {
        for (; index < walk.count; ++index) {
            begin_stage();
            const nocopy_stage& stage = shared.stages[index % STAGES_HELD];
            switch (stage.kind) {
                case STAGE_PRODUCT:
                    product(stage);
                    break;
                case STAGE_ATTENTION:
                    attention(stage, shared.shares[index % TURNS]);
                    break;
                case STAGE_GATHER:
                    gather(stage);
                    break;
                default:
                    argmax(stage);
            }
        }
    }

    // Rows

    __device__ __forceinline__ void begin_stage() {
        set_waiting(true);
        arrive(shared.begins + index % TURNS);
        await(shared.prepared + index % TURNS, index / TURNS % 2);
    }

    // Whether this block waits for a row, as the streamers are told.
    __device__ __forceinline__ void set_waiting(bool now) {
        if (threadIdx.x == 0 && waiting != now) arrive(shared.waits);
        waiting = now;
    }

    __device__ __forceinline__ void bring_linear(uint32_t word, uint32_t count, uint32_t tag) const {
        bring_words<4>(
            threadIdx.x, WALKERS, count / 4, tag, walk.stop,
            [&](uint32_t i) { return exchange(word + 4 * i); },
            [&](uint32_t i, const Words4& words) { ((Words4*)shared.row)[i] = words; });
        meet(WALKERS);
    }

    // Products

    struct ProductOf {
        Walker& walker;
        const nocopy_stage& stage;
        uint64_t& best;

        template <typename B>
        __device__ __forceinline__ void operator()(B) const {
            steps<B, 1>();
        }
        template <typename B, int STEPS>
        __device__ __forceinline__ void steps() const {
            if constexpr (WALK_STEPS >> STEPS & 1)
                if (stage.steps == STEPS) best = walker.product_of<B, STEPS>(stage);
            if constexpr (STEPS < MOST_STEPS) steps<B, STEPS + 1>();
        }
    };

    __device__ __forceinline__ void product(const nocopy_stage& s) {
        if (s.best != NOWHERE && threadIdx.x == 0) __threadfence();  // see Keeper::see_cache
        uint64_t best = 0;
        with_type(s.dtype, ProductOf{*this, s, best});
        if (s.best != NOWHERE) publish_best(s, best);
    }

    // The block's likeliest result, if somebody asks.
    template <typename B, int STEPS>
    __device__ __forceinline__ uint64_t product_of(const nocopy_stage& s) {
        const uint32_t pairs = all_own_pairs(s);
        uint64_t best = 0;
        HeldRow<B, STEPS> row(walk, s);
        // What is needed beside the row is read while the first look at it is on its way.
        row.look();
        Own own(*this, s, 0);
        row.bring();
        if (lane == 0) squares_of_round()[warp] = row.squares;
        set_waiting(false);
        float scale = 1.0f;
#pragma unroll 1
        for (uint32_t start = 0;;) {
            const uint32_t stop = min(pairs, start + PAIRS_AT_ONCE);
            Sums* to = sums_of_round() + warp;
            constexpr uint32_t PAIRS = Dot<B, STEPS>::PAIRS;
#pragma unroll 1
            for (uint32_t tile = start; tile < stop; tile += PAIRS, to += PAIRS * WALK_WARPS)
                multiply_tile<B, STEPS>(row, to);
            meet(WALKERS);
            if (start == 0 && row.norm) scale = scale_of_norm(s.product);
            if (start + threadIdx.x < stop) finish(s, own, scale, best);
            round ^= 1;  // others still read the sums
            if ((start += PAIRS_AT_ONCE) >= pairs) return best;
            own = Own(*this, s, start);
        }
    }

    // Where a pair's results go: words of the exchange.
    struct Target {
        uint32_t a = NOWHERE, b = NOWHERE;

        __device__ __forceinline__ explicit Target(uint32_t word) : a(word), b(word + 1) {}
        __device__ __forceinline__ Target(const nocopy_stage& s, const RowPair& pair) {
            if (s.target == NOWHERE) return;
            a = s.target + pair.a_row;
            if (s.product.gate) return;
            if (pair.a_product >= 1) a += s.product.products[0].rows;
            if (pair.a_product == 2) a += s.product.products[1].rows;
            b = a + pair.b_row - pair.a_row;
        }
    };

    // A thread's pair of a round from `start` on, and what its results need beside its sums.
    struct Own {
        RowPair pair;
        Beside beside;
        Target target;

        __device__ __forceinline__ Own(const Walker& w, const nocopy_stage& s, uint32_t start)
            : pair(own_pair(s, min(start + threadIdx.x, all_own_pairs(s) - 1))),
              beside(s.product, pair, w.shared.positions[w.index % TURNS]),
              target(s, pair) {
            if (beside.turned)
                beside.rotation = w.shared.rotations[w.index % TURNS * w.walk.turns + pair.turn];
        }
    };

    __device__ __forceinline__ void finish(const nocopy_stage& s, const Own& own, float scale,
                                           uint64_t& best) const {
        const Sums sums = sums_of(threadIdx.x);
        const Results results(own.beside, {sums.a * scale, sums.b * scale});
        publish_pair(s, own.target, results.next);
        if (s.best != NOWHERE)
            best = Larger()(best, Larger()(rank_key(results.next.a, own.pair.a_row),
                                           rank_key(results.next.b, own.pair.b_row)));
        results.keep(s.product, own.pair, own.beside);
    }

    // The next tile, a slot after the other.
    template <typename B, int STEPS>
    __device__ __forceinline__ void multiply_tile(const HeldRow<B, STEPS>& row, Sums* to) {
        using Tile = Dot<B, STEPS>;
        constexpr int UNITS_OF_A_SLOT = Tile::UNITS_OF_A_SLOT, UNITS = HeldRow<B, STEPS>::UNITS;
        const uint32_t stride = row.s.stride;
        Tile dot(walk.mask);
#pragma unroll
        for (int first = 0; first < UNITS; first += UNITS_OF_A_SLOT) {
            if (!row.has_slot(first)) continue;
            const uint8_t* at = take();
#pragma unroll
            for (int unit = 0; unit < UNITS_OF_A_SLOT; ++unit)
                if (row.has(first + unit)) dot.add(at, stride, unit, row.held[first + unit]);
            release();
        }
        dot.add_up(to, row.worth);
    }

    // The next slot, once it is filled.
    __device__ __forceinline__ const uint8_t* take() const {
        await(shared.filled + next.slot, next.parity);
        return shared.ring + next.slot * walk.slot_bytes;
    }

    // This lane has read it.
    __device__ __forceinline__ void release() {
        arrive(shared.emptied + next.slot);
        next.advance(walk.slots);
    }

    __device__ __forceinline__ Sums* sums_of_round() const {
        return shared.sums + round * PAIRS_AT_ONCE * WALK_WARPS;
    }
    __device__ __forceinline__ float* squares_of_round() const { return shared.squares + round * WALK_WARPS; }

    // A pair's sums over all warps.
    __device__ __forceinline__ Sums sums_of(uint32_t pair) const {
        const Sums* parts = sums_of_round() + pair * WALK_WARPS;
        Sums sums = {};
#pragma unroll
        for (uint32_t w = 0; w < WALK_WARPS; ++w) sums.a += parts[w].a, sums.b += parts[w].b;
        return sums;
    }

    // What sums of a row that is to be normed are multiplied with.
    __device__ __forceinline__ float scale_of_norm(const nocopy_fused& f) const {
        float squares = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < WALK_WARPS; ++w) squares += squares_of_round()[w];
        return fast_root(squares / (float)f.k + f.eps);
    }

    __device__ __forceinline__ void publish_pair(const nocopy_stage& s, const Target& target,
                                                 const Sums& y) const {
        if (target.a == NOWHERE) return;
        const uint32_t tag = s.target_tag;
#pragma unroll 1
        for (uint32_t c = 0, beyond = 0; c < s.replicas; ++c, beyond += walk.replica_words) {
            uint32_t* to = exchange(target.a + beyond);
            if (target.b == target.a + 1) {
                store_tagged(to, y.a, y.b, tag);
            } else {
                store_tagged(to, __float_as_uint(y.a), tag);
                if (target.b != NOWHERE) store_tagged(exchange(target.b + beyond), __float_as_uint(y.b), tag);
            }
        }
    }

    // The block's likeliest result: its key in three words.
    __device__ __forceinline__ void publish_best(const nocopy_stage& s, uint64_t best) {
        best = warp_best(best);
        if (lane == 0) shared.best[warp] = best;
        meet(WALKERS);
        if (threadIdx.x) return;
        for (uint32_t w = 1; w < WALK_WARPS; ++w) best = Larger()(best, shared.best[w]);
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
        bring_linear(s.source, CANDIDATE_WORDS * gridDim.x, s.source_tag);
        const uint32_t* words = (const uint32_t*)shared.row;
        uint64_t best = 0;
        for (uint32_t b = lane; b < gridDim.x; b += 32) {
            const uint32_t* w = words + CANDIDATE_WORDS * b;
            best = Larger()(best, (uint64_t)(w[0] >> 1) << 42 | (uint64_t)(w[1] >> 1 & 0x1fffff) << 21 |
                                      (w[2] >> 1 & 0x1fffff));
        }
        token = (int32_t)index_of(warp_best(best));
        meet(WALKERS);  // all have read the words
        if (blockIdx.x == 0 && threadIdx.x == 0) *Tensor(s.launch, 0).as<int32_t>() = token;
    }

    // Looking up a row of a table

    __device__ __forceinline__ void gather(const nocopy_stage& s) {
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
            publish_pair(s, Target(s.target + at), {a, b});
        }
    }

    // Attention

    __device__ __forceinline__ void attention(const nocopy_stage& s, const Share& share) {
        if (s.dtype == NOCOPY_F32) return attend_if<NOCOPY_F32, READ_F32>(s, share);
        if (s.dtype == NOCOPY_F16) return attend_if<NOCOPY_F16, READ_F16>(s, share);
        attend_if<NOCOPY_BF16, READ_BF16>(s, share);
    }

    template <uint32_t DTYPE, int READING>
    __device__ __forceinline__ void attend_if(const nocopy_stage& s, const Share& share) {
        if constexpr (WALK_CACHES >> DTYPE & 1) {
            if constexpr (WALK_HEADS != 1)
                if (heads_at_once(s.launch) == 4) attend<READING, 4>(s, share);
            if constexpr (WALK_HEADS != 4)
                if (heads_at_once(s.launch) == 1) attend<READING, 1>(s, share);
        }
    }

    template <int READING, int HEADS>
    __device__ __forceinline__ void attend(const nocopy_stage& s, const Share& share) {
        Attention<READING, HEADS>{s, share, shared.row, exchange(0), walk.replica_words, walk.stop}.run();
    }
};

#endif

extern "C" __global__ void __launch_bounds__(WALK_THREADS, 1) walk(const __grid_constant__ nocopy_walk walk) {
#if __CUDA_ARCH__ >= 900
    const WalkMemory shared(walk);
    if (threadIdx.x == 0) {
        const uint32_t streamers = blockDim.x / 32 - STREAMER_WARP;
        begin_barrier(shared.waits, 1);
        for (uint32_t i = 0; i < walk.slots; ++i)
            begin_barrier(shared.filled + i, streamers), begin_barrier(shared.emptied + i, WALKERS);
        for (uint32_t i = 0; i < STAGES_HELD; ++i)
            begin_barrier(shared.held + i, 32), begin_barrier(shared.left + i, 32 * streamers);
        for (uint32_t i = 0; i < TURNS; ++i)
            begin_barrier(shared.begins + i, WALKERS), begin_barrier(shared.prepared + i, 32);
        show_barriers();
    }
    __syncthreads();
    if (threadIdx.x < WALKERS)
        Walker{walk, shared}.run();
    else if (threadIdx.x / 32 == KEEPER_WARP)
        Keeper{walk, shared}.run();
    else
        Stream{walk, shared}.run();
#endif
}
