// One row of a language model's pass through up to three weights, with the steps around that product:
//
//     x = norm ? x / sqrt(mean x^2 + eps) * norm : x
//     y[p][i] = scale[p] * sum over k of x[k] W[p][i,k] + bias[p][i]
//     then for each weight: rotary positions on y, y into a row of a KV cache, y added to a residual;
//     or, of two weights, out[i] = function(y[0][i]) * y[1][i]
//
// Two rows of the weights make a pair: one after the other, or those that a rotation or a gate combines. Here
// is what a pair is and what becomes of its sums; fused.cu and walk.cu play it. x lies in shared memory in
// the order in which lanes read it. A result whose address is 0 is not written.
#pragma once

#include "blocks.cuh"
#include "functions.cuh"
#include "mma.cuh"

struct nocopy_product {
    uint64_t weight, out;             // addresses; 0 below means that there is none
    uint64_t bias, residual;          // f32 [rows]
    uint64_t cache, cache_row_bytes;  // the KV cache's first row
    uint64_t frequencies;             // f32 [head / 2]
    uint32_t rows, row_bytes;         // of the weight
    uint32_t cache_dtype, cache_rows;
    uint32_t head, turn;  // elements that turn together; how
    float scale, turn_scale;
};

enum Turn : uint32_t { TURN_NONE, TURN_HALF, TURN_INTERLEAVED };

struct nocopy_fused {
    nocopy_product products[3];
    uint64_t x, norm, normed;  // f32 [k]; without a norm the last two are 0
    uint64_t positions;        // i32 [1]
    uint64_t gated;            // f32 [rows]
    uint32_t count, k;
    uint32_t gate;          // 1 + the function of a gate; 0 for none
    uint32_t chunk, slots;  // elements of a row in one slot; slots of each warp
    float eps;
    uint32_t reciprocal, reserved;  // 2^32 / pieces of a row, rounded up
};

static_assert(sizeof(nocopy_product) == 88, "device/cuda_fuse.py packs this struct");
static_assert(sizeof(nocopy_fused) == 336, "device/cuda_fuse.py packs this struct");

constexpr uint32_t MAX_PIECES = 1024;  // of pairs, whose sums a block keeps at a time

// A pair of rows: of which product (or products, behind a gate), and which.
struct RowPair {
    uint32_t a_product, b_product, a_row, b_row;
    uint32_t turn = 0;  // which of the frequencies turns it

    __device__ RowPair(const nocopy_fused& f, uint32_t index) {
        uint32_t p = 0;
        if (!f.gate)
            while (p + 1 < f.count && index >= f.products[p].rows / 2) index -= f.products[p++].rows / 2;
        place(f, p, index);
    }

    // Pair `index` of product p, or of both behind a gate.
    __device__ RowPair(const nocopy_fused& f, uint32_t p, uint32_t index) { place(f, p, index); }

    __device__ void place(const nocopy_fused& f, uint32_t p, uint32_t index) {
        if (f.gate) {
            a_product = 0, b_product = 1, a_row = b_row = index;
            return;
        }
        a_product = b_product = p;
        const uint32_t kind = f.products[p].turn, half = f.products[p].head / 2;
        if (kind != TURN_NONE) turn = index % half;
        a_row = 2 * index - (kind == TURN_HALF ? turn : 0);
        b_row = a_row + (kind == TURN_HALF ? half : 1);
    }

    static __device__ uint32_t count(const nocopy_fused& f) {
        if (f.gate) return f.products[0].rows;
        uint32_t pairs = 0;
        for (uint32_t p = 0; p < f.count; ++p) pairs += f.products[p].rows / 2;
        return pairs;
    }
};

__device__ inline const uint8_t* weight_row(const nocopy_product& p, uint32_t row) {
    return (const uint8_t*)p.weight + (uint64_t)row * p.row_bytes;
}

struct Sums {
    float a, b;
};

// A rotation, times its scale.
struct Rotation {
    float cosine = 1.0f, sine = 0.0f;

    __device__ Rotation() {}
    __device__ Rotation(float angle, float scale) {
        sincosf(angle, &sine, &cosine);
        cosine *= scale, sine *= scale;
    }

    __device__ void turn(float& a, float& b) const {
        const float turned = a * cosine - b * sine;
        b = a * sine + b * cosine;
        a = turned;
    }
};

// Of frequency number `turn` of a weight whose rows turn.
__device__ inline Rotation rotation_of(const nocopy_product& p, uint32_t turn, int32_t position) {
    return Rotation((float)position * ((const float*)p.frequencies)[turn], p.turn_scale);
}

// What a pair's results need beside its sums, read while the weights are still on their way.
struct Beside {
    float a_scale = 1.0f, b_scale = 1.0f;
    float a_bias = 0.0f, b_bias = 0.0f, a_residual = 0.0f, b_residual = 0.0f;
    Rotation rotation;
    int32_t position = -1;
    uint32_t gate = 0;  // as of nocopy_fused
    bool biased = false, turned = false, added = false;

    __device__ Beside() {}
    __device__ Beside(const nocopy_fused& f, const RowPair& pair)
        : Beside(f, pair, f.positions ? *(const int32_t*)f.positions : -1) {
        if (turned) rotation = rotation_of(f.products[pair.a_product], pair.turn, position);
    }
    // But the rotation.
    __device__ Beside(const nocopy_fused& f, const RowPair& pair, int32_t at) : position(at) {
        const nocopy_product &p = f.products[pair.a_product], &other = f.products[pair.b_product];
        a_scale = p.scale, b_scale = other.scale, gate = f.gate;
        biased = p.bias || other.bias, turned = p.turn != TURN_NONE, added = p.residual;
        if (p.bias) a_bias = ((const float*)p.bias)[pair.a_row];
        if (other.bias) b_bias = ((const float*)other.bias)[pair.b_row];
        if (!added) return;
        a_residual = load_fresh_float((const float*)p.residual + pair.a_row);
        b_residual = load_fresh_float((const float*)p.residual + pair.b_row);
    }
};

__device__ inline void store_cached(const nocopy_product& p, int32_t position, uint32_t row, float value) {
    if (!p.cache || position < 0 || (uint32_t)position >= p.cache_rows) return;
    uint8_t* line = (uint8_t*)p.cache + (uint64_t)position * p.cache_row_bytes;
    if (p.cache_dtype == NOCOPY_F32)
        ((float*)line)[row] = value;
    else
        ((uint16_t*)line)[row] = p.cache_dtype == NOCOPY_F16 ? f32_to_f16(value) : f32_to_bf16(value);
}

__device__ inline void store_if(uint64_t to, uint32_t row, float value) {
    if (to) ((float*)to)[row] = value;
}

struct alignas(8) TwoFloats {
    float a, b;
};

// Both results of a pair of one product; as one word where they are neighbours: memory behind a bus takes
// half words one by one.
__device__ inline void store_both(uint64_t to, uint32_t a_row, uint32_t b_row, float a, float b) {
    if (to && b_row == a_row + 1 && (to + 4 * (uint64_t)a_row) % 8 == 0) {
        *(TwoFloats*)(to + 4 * (uint64_t)a_row) = {a, b};
        return;
    }
    store_if(to, a_row, a);
    store_if(to, b_row, b);
}

__device__ inline uint32_t gate_of(uint32_t function) {
    return function == NOCOPY_GLU_SILU   ? NOCOPY_UNARY_SILU
           : function == NOCOPY_GLU_GELU ? NOCOPY_UNARY_GELU
                                         : NOCOPY_UNARY_GELU_TANH;
}

__device__ inline float gate_function(uint32_t gate, float x) {
#ifdef ONLY_SILU  // nothing else is gated: no call of a function that knows them all
    return fast_silu(x);
#else
    return unary_function(gate_of(gate - 1), x);
#endif
}

// What becomes of the sums of a pair.
struct Results {
    float a, b;  // of the products
    Sums next;   // what steps after this one go on with; of a gate, `a` alone

    __device__ Results(const Beside& beside, const Sums& sums) {
        a = beside.a_scale * sums.a, b = beside.b_scale * sums.b;
        if (beside.biased) a = a + beside.a_bias, b = b + beside.b_bias;
        if (beside.turned) beside.rotation.turn(a, b);
        next = {a, b};
        if (beside.gate) next = {gate_function(beside.gate, a) * b, 0.0f};
        if (beside.added) next = {beside.a_residual + a, beside.b_residual + b};
    }

    // Writes what is read from memory.
    __device__ void keep(const nocopy_fused& f, const RowPair& pair, const Beside& beside) const {
        const nocopy_product &p = f.products[pair.a_product], &other = f.products[pair.b_product];
        if (beside.gate) {
            store_if(p.out, pair.a_row, a);
            store_if(other.out, pair.b_row, b);
            store_if(f.gated, pair.a_row, next.a);
            return;
        }
        store_both(p.out, pair.a_row, pair.b_row, a, b);
        store_cached(p, beside.position, pair.a_row, a);
        store_cached(p, beside.position, pair.b_row, b);
        if (!beside.added) return;
        store_if(p.residual, pair.a_row, next.a);
        store_if(p.residual, pair.b_row, next.b);
    }
};

// How the elements of a row are cut into lanes' pieces: piece i of a row, and quad j of a piece.
template <typename B>
struct Cut {
    static __device__ uint32_t pieces(uint32_t elements) { return elements / B::ELEMENTS * B::LANES; }
    static __device__ uint32_t quads(uint32_t k) { return (pieces(k) + 31) / 32 * 32 * B::QUADS; }
    static __device__ uint32_t element(uint32_t piece, uint32_t j) {
        return piece / B::LANES * B::ELEMENTS + B::start(piece % B::LANES) + j * B::GAP;
    }
    // The quad of x that lies at place q of shared memory: its first element; k or more if there is none.
    static __device__ uint32_t at(uint32_t q, uint32_t k) {
        uint32_t piece = q / (32 * B::QUADS) * 32 + q % 32;
        return piece < pieces(k) ? element(piece, q / 32 % B::QUADS) : k;
    }
};

// This lane's share of the products of x with `elements` elements of two rows, from element `first` on.
template <typename B>
__device__ inline Sums multiply_pair(const uint8_t* a, const uint8_t* b, const Words4* x, uint32_t first,
                                     uint32_t elements) {
    constexpr int QUADS = B::QUADS;
    const uint32_t lane = threadIdx.x % 32, pieces = Cut<B>::pieces(elements);
    Sums sums[2] = {};
    const Words4* own = x + Cut<B>::pieces(first) * QUADS + lane;
#pragma unroll 4
    for (uint32_t piece = lane; piece < pieces; piece += 32, own += 32 * QUADS) {
        float wa[4 * QUADS], wb[4 * QUADS];
        B::decode(B::fetch(a + piece / B::LANES * B::BYTES, piece % B::LANES), wa);
        B::decode(B::fetch(b + piece / B::LANES * B::BYTES, piece % B::LANES), wb);
#pragma unroll
        for (int j = 0; j < QUADS; ++j) {
            Words4 words = own[32 * j];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float v = __uint_as_float(words.v[i]);
                sums[j % 2].a = fmaf(v, wa[4 * j + i], sums[j % 2].a);
                sums[j % 2].b = fmaf(v, wb[4 * j + i], sums[j % 2].b);
            }
        }
    }
    return {sums[0].a + sums[1].a, sums[0].b + sums[1].b};
}

__device__ inline float warp_sum(float value) {
    for (int mask = 16; mask; mask >>= 1) value += __shfl_xor_sync(0xffffffffu, value, mask);
    return value;
}
