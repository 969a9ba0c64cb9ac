// How the row that a product of walk.cu multiplies with comes to the lanes that hold it.
#pragma once

#include "walk_product.cuh"

#if __CUDA_ARCH__ >= 900

// A product's row. All of it comes through shared memory, in the order in which lanes read it, as they hold
// it and times the norm's weights; or, where each warp has a chunk of its own and there is no norm, straight
// into registers. A first look is taken at what a thread loads first, so that other work can be done
// meanwhile.
template <typename B, int HELD>
struct HeldRow {
    static constexpr uint32_t QUADS = B::QUADS;
    // Pieces that a thread awaits together, each with the norm's weights behind it; and room for them.
    static constexpr uint32_t TOGETHER = HELD >= 2 * QUADS ? HELD / (2 * QUADS) : 1;
    static constexpr uint32_t WORDS = HELD > 2 * QUADS ? HELD : 2 * QUADS;

    const nocopy_walk& walk;
    const WalkMemory& shared;
    const nocopy_stage& s;
    const uint32_t* from;
    const float* norm;
    const uint32_t pieces;
    const bool own;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    __device__ __forceinline__ HeldRow(const nocopy_walk& w, const WalkMemory& m, const nocopy_stage& stage)
        : walk(w),
          shared(m),
          s(stage),
          from(stage.source_tag == NO_TAG ? (const uint32_t*)stage.product.x
                                          : (const uint32_t*)w.exchange + stage.source),
          norm((const float*)stage.product.norm),
          pieces(Cut<B>::pieces(stage.product.k)),
          own(WALK_OWN && HELD && stage.chunks == WALK_WARPS && !norm) {}

    __device__ __forceinline__ void look(Words4* x) const {
        own ? look_at_own(x) : look_at(threadIdx.x, x, norm);
    }

    // The row, of which x holds what look() has left there; what sums are still to be multiplied with.
    __device__ __forceinline__ float bring(Words4* x) const {
        if (own) {
            bring_own(x);
            return 1.0f;
        }
        float squares = 0.0f;
#pragma unroll 1
        for (uint32_t first = threadIdx.x; first < pieces; first += TOGETHER * WALKERS) {
            if (first >= TOGETHER * WALKERS) look_at(first, x, norm);
            await_pieces(first, x);
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; ++j)
                if (first + j * WALKERS < pieces) put(first + j * WALKERS, x + 2 * QUADS * j, squares);
        }
        if (norm) {
            squares = warp_sum(squares);
            if (lane == 0) shared.squares[warp] = squares;
        }
        meet(WALKERS);
        if constexpr (HELD != 0) {
            const Words4* chunk = (const Words4*)shared.row + warp % s.chunks * s.product.chunk / 4 + lane;
#pragma unroll
            for (int i = 0; i < HELD; ++i) x[i] = chunk[32 * i];
        }
        if (!norm) return 1.0f;
        squares = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < WALK_WARPS; ++w) squares += shared.squares[w];
        return fast_root(squares / (float)s.product.k + s.product.eps);
    }

    // Loads pieces, and behind each the norm's weights for it, if they are given.
    __device__ __forceinline__ void look_at(uint32_t first, Words4* x, const float* weights) const {
        const uint32_t at = Cut<B>::element(first, 0);
#pragma unroll
        for (uint32_t i = 0; i < TOGETHER * QUADS; ++i) {
            const uint32_t piece = i / QUADS, j = i % QUADS;
            if (first + piece * WALKERS >= pieces) continue;
            const uint32_t element = at + piece * (WALKERS / B::LANES * B::ELEMENTS) + j * B::GAP;
            Words4* to = x + 2 * QUADS * piece + j;
            *to = load_tagged(from + element);
            if (weights) to[QUADS] = *(const Words4*)(weights + element);
        }
    }

    __device__ __forceinline__ void await_pieces(uint32_t first, Words4* x) const {
        const auto any_missing = [&] {
            bool any = false;
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; ++j)
                if (first + j * WALKERS < pieces) any |= missing<QUADS>(x + 2 * QUADS * j, s.source_tag);
            return any;
        };
        wait_while(walk.stop, any_missing, [&] { look_at(first, x, nullptr); });
        __syncwarp();
    }

    __device__ __forceinline__ void put(uint32_t piece, Words4* x, float& squares) const {
        if (norm) {
#pragma unroll
            for (uint32_t e = 0; e < 4 * QUADS; ++e) {
                uint32_t& word = x[e / 4].v[e % 4];
                const float v = __uint_as_float(word);
                squares = fmaf(v, v, squares);
                word = __float_as_uint(v * __uint_as_float(x[QUADS + e / 4].v[e % 4]));
            }
        }
        if constexpr (HELD != 0) Dot<B>::hold(x);
#pragma unroll
        for (uint32_t j = 0; j < QUADS; ++j)
            ((Words4*)shared.row)[piece / 32 * 32 * QUADS + lane + 32 * j] = x[j];
    }

    // This lane's quads of the warp's own chunk.
    __device__ __forceinline__ void look_at_own(Words4* x) const {
        const uint32_t* quads = from + Cut<B>::element(warp * s.product.chunk / (4 * QUADS) + lane, 0);
#pragma unroll
        for (uint32_t i = 0; i < HELD; ++i)
            x[i] = load_tagged(quads + i / QUADS * (32 / B::LANES * B::ELEMENTS) + i % QUADS * B::GAP);
    }

    __device__ __forceinline__ void bring_own(Words4* x) const {
        wait_while(walk.stop, [&] { return missing<HELD>(x, s.source_tag); }, [&] { look_at_own(x); });
        __syncwarp();
#pragma unroll
        for (int i = 0; i < HELD; i += QUADS) Dot<B>::hold(x + i);
        meet(WALKERS);  // all have read the sums of the stage before
    }
};

#endif
