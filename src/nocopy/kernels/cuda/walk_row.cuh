// How the row that a product of walk.cu multiplies with comes to the lanes that hold it.
#pragma once

#include "walk_product.cuh"

#if __CUDA_ARCH__ >= 900

// A warp's units of a product's row, times the norm's weights, from the exchange straight into registers: no
// other warp needs them. A first look is taken at what a lane loads first, so that other work can be done
// meanwhile.
template <typename B, int STEPS>
struct HeldRow {
    using Own = Dot<B, STEPS>;
    static constexpr int UNITS = Own::UNITS_OF_A_STEP * STEPS, QUADS = Own::QUADS;
    // Units that are awaited together, and of them those whose norm's weights are loaded before.
    static constexpr int AT_ONCE = UNITS < WORDS_AWAITED / QUADS ? UNITS : WORDS_AWAITED / QUADS;
    static constexpr int WEIGHTED = AT_ONCE < WORDS_WEIGHTED / QUADS ? AT_ONCE : WORDS_WEIGHTED / QUADS;
    static constexpr int BATCHES = (UNITS + AT_ONCE - 1) / AT_ONCE;

    const nocopy_stage& s;
    const volatile int32_t* stop;
    const uint32_t* from;  // this lane's first quad, and the norm's weights for it
    const float* norm;
    typename Own::Held held[UNITS];
    Words4 words[AT_ONCE * QUADS], weights[WEIGHTED * QUADS];
    float squares = 0.0f;  // of the warp's elements
    float worth = 1.0f;    // of one that is held

    __device__ __forceinline__ HeldRow(const nocopy_walk& w, const nocopy_stage& stage)
        : s(stage), stop(w.stop), norm((const float*)stage.product.norm) {
        const uint32_t first = own_warp() * Own::UNIT + Own::element();
        from = (stage.source_tag == NO_TAG ? (const uint32_t*)stage.product.x
                                           : (const uint32_t*)w.exchange + stage.source +
                                                 blockIdx.x % w.replicas * w.replica_words) +
               first;
        if (norm) norm += first;
    }

    // Elements from a lane's first quad to its quad of the warp's unit i.
    static __device__ __forceinline__ constexpr uint32_t beyond(int i, int quad) {
        return i * WALK_WARPS * Own::UNIT + quad * Own::GAP;
    }

    // Whether the row has the warp's unit i.
    __device__ __forceinline__ bool has(int i) const {
        return i < UNITS && (WALK_WHOLE || (i * WALK_WARPS + own_warp()) * Own::UNIT < s.product.k);
    }

    // Whether it has elements in the slot whose first unit that is.
    __device__ __forceinline__ bool has_slot(int i) const {
        return WALK_WHOLE || i * WALK_WARPS * Own::UNIT < s.product.k;
    }

    __device__ __forceinline__ void look() {
        look_at(0);
        if (!norm) return;
#pragma unroll
        for (int i = 0; i < WEIGHTED * QUADS; ++i) weights[i] = weight(i / QUADS, i % QUADS);
    }

    // The row, of which words are what look() has left there.
    __device__ __forceinline__ void bring() {
        constexpr bool AGAIN = Own::SCALED && BATCHES > 1;
        float scale = 1.0f;
        if constexpr (Own::SCALED) {
            float most = 0.0f;
#pragma unroll
            for (int batch = 0; batch < BATCHES; ++batch) {
                obtain(batch, batch > 0);
#pragma unroll
                for (int i = 0; i < 4 * AT_ONCE * QUADS; ++i)
                    most = max_or_nan(most, fabsf(__uint_as_float(words[i / 4].v[i % 4])));
            }
            scale = scale_for(most);
            if (AGAIN) squares = 0.0f;
        }
#pragma unroll
        for (int batch = 0; batch < BATCHES; ++batch) {
            if (AGAIN || !Own::SCALED) obtain(batch, AGAIN || batch > 0);
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i)
                if (batch * AT_ONCE + i < UNITS)
                    held[batch * AT_ONCE + i] = Own::hold(words + QUADS * i, scale);
        }
        if (norm) squares = warp_sum(squares) / Own::LANES;
    }

    __device__ __forceinline__ void look_at(int batch) {
        const uint32_t tag = s.source_tag;
#pragma unroll
        for (int j = 0; j < AT_ONCE * QUADS; ++j) {
            const int i = batch * AT_ONCE + j / QUADS;
            // As good as nothing, where there is nothing.
            words[j] = has(i) ? load_tagged(from + beyond(i, j % QUADS)) : Words4{{tag, tag, tag, tag}};
        }
    }

    // What was there is not loaded again: of a long row that would be much for all blocks together.
    __device__ __forceinline__ void look_again(int batch) {
#pragma unroll
        for (int j = 0; j < AT_ONCE * QUADS; ++j) {
            const int i = batch * AT_ONCE + j / QUADS;
            if (has(i) && missing<1>(words + j, s.source_tag))
                words[j] = load_tagged(from + beyond(i, j % QUADS));
        }
    }

    __device__ __forceinline__ void obtain(int batch, bool look) {
        if (look) look_at(batch);
        wait_while(
            stop, [&] { return missing<AT_ONCE * QUADS>(words, s.source_tag); }, [&] { look_again(batch); });
        __syncwarp();
        if (!norm) return;
#pragma unroll
        for (int j = 0; j < AT_ONCE * QUADS; ++j) {
            const int i = batch * AT_ONCE + j / QUADS;
            const Words4 by = i < WEIGHTED ? weights[j] : weight(i, j % QUADS);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float v = __uint_as_float(words[j].v[e]);
                squares = fmaf(v, v, squares);
                words[j].v[e] = __float_as_uint(v * __uint_as_float(by.v[e]));
            }
        }
    }

    // Of the norm, for a quad.
    __device__ __forceinline__ Words4 weight(int i, int quad) const {
        return has(i) ? *(const Words4*)(norm + beyond(i, quad)) : Words4{};
    }

    // The power of two that takes the warp's largest element to 2^14.
    __device__ __forceinline__ float scale_for(float most) {
        for (int mask = 16; mask; mask >>= 1) most = max_or_nan(most, __shfl_xor_sync(~0u, most, mask));
        const uint32_t exponent = max(__float_as_uint(most) >> 23 & 255, 15u);
        worth = __uint_as_float(exponent - 14 << 23);
        return __uint_as_float(268 - exponent << 23);
    }
};

#endif
