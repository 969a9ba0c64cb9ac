// A language model's pass over one row, or several such passes one after another, in one kernel: its stages
// are products (row_product.cuh), attention (walk_attention.cuh), the look-up of a row, and the likeliest
// token.
//
// As many blocks as multiprocessors run to the end of the program together. A stage needs all results of the
// one before it, so blocks hand them on through words that carry a tag (barrier.cuh); no block waits for a
// fence or a counter. Of a block, WALK_WARPS warps compute, each with a ring in shared memory through which
// its own weights come (walk_stream.cuh). STREAMERS warps start all copies, across stages: while a row is
// awaited, what the next stages read arrives. Only some bytes are on their way at a time, since a longer
// queue delays the words that blocks wait for. The warps that compute read what was handed on until all of it
// is there, apply the norm's weight, and hold their part of it in registers (walk_row.cuh); weights in bf16
// and in blocks are multiplied as matrices (walk_product.cuh). The kernel is compiled for the model at hand,
// and little of it is repeated, so that it fits the instruction cache of 128 KiB. Bound: the bytes of the
// weights and of the cache.
//
// Words of the exchange are zero when the kernel starts, and a place is used again only after every block has
// written something that it could not know before it had read the place: the host sees to that
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
    const WalkMemory& shared;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t slot = 0, slot_parity = 0;
    int32_t token = 0;

    __device__ __forceinline__ uint32_t* exchange(uint32_t word) const {
        return (uint32_t*)walk.exchange + word;
    }

    __device__ __forceinline__ void run() {
        for (uint32_t s = 0; s < walk.count; ++s) {
            begin_stage(s);
            const nocopy_stage& stage = shared.stages[s % STAGES_HELD];
            switch (stage.kind) {
                case STAGE_PRODUCT:
                    product(stage);
                    break;
                case STAGE_ATTENTION:
                    attention(stage, shared.shares[s % TURNS]);
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

    __device__ __forceinline__ void begin_stage(uint32_t index) const {
        arrive(shared.begins + index % TURNS);
        await(shared.prepared + index % TURNS, index / TURNS % 2);
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

        template <typename B>
        __device__ __forceinline__ void operator()(B) const {
            walker.product_held<B, 0>(stage);
        }
    };

    __device__ __forceinline__ void product(const nocopy_stage& s) {
        with_type(s.dtype, ProductOf{*this, s});
    }

    template <typename B, int HELD>
    __device__ __forceinline__ void product_held(const nocopy_stage& s) {
        if constexpr (WALK_HELD >> HELD & 1)
            if (s.held == HELD) return product_of<B, HELD>(s);
        if constexpr (HELD < MOST_HELD) product_held<B, HELD + 1>(s);
    }

    template <typename B, int HELD>
    __device__ __forceinline__ void product_of(const nocopy_stage& s) {
        const nocopy_fused& f = s.product;
        const uint32_t chunks = s.chunks, pairs = all_own_pairs(s);
        const uint32_t most = f.reciprocal ? __umulhi(MAX_PIECES, f.reciprocal) : MAX_PIECES;
        const uint32_t at_once = min(most, WALKERS) / WALK_WARPS * WALK_WARPS;
        const HeldRow<B, HELD> row(walk, shared, s);
        uint64_t best = 0;
        float scale = 1.0f;
        Words4 x[HeldRow<B, HELD>::WORDS] = {};
        if (s.best != NOWHERE && threadIdx.x == 0) __threadfence();  // see Keeper::see_cache
#pragma unroll 1
        for (uint32_t start = 0; start < pairs; start += at_once) {
            const uint32_t stop = min(pairs, start + at_once);
            // What is needed beside the row is read while the first look at it is on its way.
            if (start == 0) row.look(x);
            const RowPair place = own_pair(s, min(start + threadIdx.x, stop - 1));
            const Beside beside(f, place);
            const Target target(s, place);
            if (start == 0) scale = row.bring(x);
            if constexpr (HELD == 0)
                multiply_pieces<B>(f, start * chunks, stop * chunks, chunks);
            else
                multiply_held<B, HELD>(x, start * chunks, stop * chunks);
            meet(WALKERS);
            if (start + threadIdx.x < stop) {
                const Sums sums = sums_of<HELD != 0>(threadIdx.x * chunks, chunks);
                const Results results(beside, {sums.a * scale, sums.b * scale});
                publish_pair(target, results.next, s.target_tag);
                if (s.best != NOWHERE)
                    best = Larger()(best, Larger()(rank_key(results.next.a, place.a_row),
                                                   rank_key(results.next.b, place.b_row)));
                results.keep(f, place, beside);
            }
            if (stop < pairs) meet(WALKERS);  // all have read the sums
        }
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
            const uint32_t taken = slot;
            const uint8_t* a = take();
            const Sums sums[1] = {multiply_pair<B>(a, a + elements / B::ELEMENTS * B::BYTES,
                                                   (const Words4*)shared.row, from, elements)};
            release(taken);
            add_up(sums, shared.sums + (piece - start), false);
        }
    }

    template <typename B, int HELD>
    __device__ __forceinline__ void multiply_held(const Words4* x, uint32_t start, uint32_t stop) {
        constexpr int QUADS = B::QUADS;
        constexpr uint32_t BYTES = 128 * HELD / B::ELEMENTS * B::BYTES, STEP = 32 / B::LANES * B::BYTES;
        const uint32_t own = lane / B::LANES * B::BYTES;
        // Of short pieces two at once: more loads are on their way, and their sums are added up together.
        constexpr uint32_t TOGETHER = HELD > 8 ? 1 : 2;
#pragma unroll 1
        for (uint32_t piece = start + warp; piece < stop; piece += TOGETHER * WALK_WARPS) {
            const bool both = TOGETHER == 2 && piece + WALK_WARPS < stop;
            const uint32_t first_slot = slot;
            const uint8_t* first = take() + own;
            const uint32_t second_slot = slot;
            const uint8_t* second = both ? take() + own : first;
            Dot<B> dots[2 * TOGETHER];
#pragma unroll
            for (int i = 0; i < HELD / QUADS; ++i) {
                dots[0].add(first + i * STEP, x + i * QUADS);
                dots[1].add(first + BYTES + i * STEP, x + i * QUADS);
                if constexpr (TOGETHER == 1) continue;
                dots[TOGETHER].add(second + i * STEP, x + i * QUADS);
                dots[TOGETHER + 1].add(second + BYTES + i * STEP, x + i * QUADS);
            }
            release(first_slot);
            if (both) release(second_slot);
            Sums sums[TOGETHER];
#pragma unroll
            for (uint32_t i = 0; i < TOGETHER; ++i) sums[i] = {dots[2 * i].total(), dots[2 * i + 1].total()};
            add_up(sums, shared.sums + (piece - start), both);
        }
    }

    // Where two rows' pieces lie, one behind the other, once they are there.
    __device__ __forceinline__ const uint8_t* take() {
        const uint32_t at = warp * walk.slots + slot;
        await(shared.filled + at, slot_parity);
        if (++slot == walk.slots) slot = 0, slot_parity ^= 1;
        return shared.rings + at * walk.slot_bytes;
    }

    // All lanes have read the slot.
    __device__ __forceinline__ void release(uint32_t taken) const {
        arrive(shared.emptied + warp * walk.slots + taken);
    }

    // A pair's sums over all chunks. HELD: there are eight at most, which are read at once.
    template <bool HELD>
    __device__ __forceinline__ Sums sums_of(uint32_t first, uint32_t chunks) const {
        Sums sums = {};
#pragma unroll(HELD ? 8 : 1)
        for (uint32_t c = 0; c < (HELD ? 8 : chunks); ++c) {
            const Sums part = shared.sums[first + min(c, chunks - 1)];
            if (c < chunks) sums.a += part.a, sums.b += part.b;
        }
        return sums;
    }

    // Where a pair's results go: words of the exchange.
    struct Target {
        uint32_t a = NOWHERE, b = NOWHERE;

        __device__ __forceinline__ Target(const nocopy_stage& s, const RowPair& pair) {
            if (s.target == NOWHERE) return;
            a = s.target + pair.a_row;
            if (s.product.gate) return;
            if (pair.a_product >= 1) a += s.product.products[0].rows;
            if (pair.a_product == 2) a += s.product.products[1].rows;
            b = a + pair.b_row - pair.a_row;
        }
    };

    __device__ __forceinline__ void publish_pair(const Target& target, const Sums& y, uint32_t tag) const {
        if (target.a == NOWHERE) return;
        if (target.b == target.a + 1) return store_tagged(exchange(target.a), y.a, y.b, tag);
        store_tagged(exchange(target.a), __float_as_uint(y.a), tag);
        if (target.b != NOWHERE) store_tagged(exchange(target.b), __float_as_uint(y.b), tag);
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
            store_tagged(exchange(s.target + at), a, b, s.target_tag);
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
        Attention<READING, HEADS>{s, share, shared.row, exchange(0), walk.stop}.run();
    }
};

#endif

extern "C" __global__ void __launch_bounds__(WALK_THREADS, 1) walk(const __grid_constant__ nocopy_walk walk) {
#if __CUDA_ARCH__ >= 900
    const WalkMemory shared(walk);
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < WALK_WARPS * walk.slots; ++i)
            begin_barrier(shared.filled + i, 1), begin_barrier(shared.emptied + i, 32);
        for (uint32_t i = 0; i < STAGES_HELD; ++i)
            begin_barrier(shared.held + i, 32), begin_barrier(shared.left + i, WALK_WARPS);
        for (uint32_t i = 0; i < TURNS; ++i)
            begin_barrier(shared.begins + i, WALKERS), begin_barrier(shared.prepared + i, 32);
        show_barriers();
    }
    __syncthreads();
    if (threadIdx.x < WALKERS)
        Walker{walk, shared}.run();
    else if (threadIdx.x >= WALK_THREADS - 32 * STREAMERS)
        Stream{walk, shared}.run();
    else
        Keeper{walk, shared}.run();
#endif
}
