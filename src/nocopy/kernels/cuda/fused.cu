// One row of a language model's pass through up to three weights, with the steps around that product:
//
//     x = norm ? x / sqrt(mean x^2 + eps) * norm : x
//     y[p][i] = scale[p] * sum over k of x[k] W[p][i,k] + bias[p][i]
//     then for each weight: rotary positions on y, y into a row of a KV cache, y added to a residual;
//     or, of two weights, out[i] = function(y[0][i]) * y[1][i]
//
// Every result that the separate ops would have written is written. Two rows of the weights make a pair: one
// after the other, or those that a rotation or a gate combines. Blocks share out the pairs evenly; the warps
// of a block share out pieces of them, `chunk` elements of both rows, which each streams through a ring of
// its own (stream.cuh), begun before the kernel waits for the one before it. x lies in shared memory in the
// order in which lanes read it. The norm's root multiplies sums, not elements, so that nobody waits for it.
// Bound: the bytes of the weights.
#include "blocks.cuh"
#include "functions.cuh"
#include "stream.cuh"

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
constexpr uint32_t MAX_FUSED_WARPS = 16;

// A pair of rows: of which product (or products, behind a gate), and which.
struct RowPair {
    uint32_t a_product, b_product, a_row, b_row;

    __device__ RowPair(const nocopy_fused& f, uint32_t index) {
        if (f.gate) {
            a_product = 0, b_product = 1, a_row = b_row = index;
            return;
        }
        uint32_t p = 0;
        while (p + 1 < f.count && index >= f.products[p].rows / 2) index -= f.products[p++].rows / 2;
        a_product = b_product = p;
        if (f.products[p].turn == TURN_HALF) {
            uint32_t half = f.products[p].head / 2, head = index / half;
            a_row = head * 2 * half + index % half;
            b_row = a_row + half;
        } else {
            a_row = 2 * index;
            b_row = a_row + 1;
        }
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

// What a pair's results need beside its sums, read while the weights are still on their way.
struct Beside {
    float a_bias = 0.0f, b_bias = 0.0f, a_residual = 0.0f, b_residual = 0.0f, frequency = 0.0f;
    int32_t position = -1;

    __device__ Beside() {}
    __device__ Beside(const nocopy_fused& f, const RowPair& pair) {
        const nocopy_product &p = f.products[pair.a_product], &other = f.products[pair.b_product];
        if (f.positions) position = *(const int32_t*)f.positions;
        if (p.bias) a_bias = ((const float*)p.bias)[pair.a_row];
        if (other.bias) b_bias = ((const float*)other.bias)[pair.b_row];
        if (p.residual) {
            a_residual = load_fresh_float((const float*)p.residual + pair.a_row);
            b_residual = load_fresh_float((const float*)p.residual + pair.b_row);
        }
        if (p.turn == TURN_NONE) return;
        uint32_t place = p.turn == TURN_HALF ? pair.a_row % p.head : pair.a_row % p.head / 2;
        frequency = ((const float*)p.frequencies)[place];
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

__device__ inline uint32_t gate_of(uint32_t function) {
    return function == NOCOPY_GLU_SILU   ? NOCOPY_UNARY_SILU
           : function == NOCOPY_GLU_GELU ? NOCOPY_UNARY_GELU
                                         : NOCOPY_UNARY_GELU_TANH;
}

// What becomes of the sums of a pair.
__device__ inline void finish_pair(const nocopy_fused& f, const RowPair& pair, const Beside& beside,
                                   const Sums& sums) {
    const nocopy_product &p = f.products[pair.a_product], &other = f.products[pair.b_product];
    float a = p.scale * sums.a, b = other.scale * sums.b;
    if (p.bias) a = a + beside.a_bias;
    if (other.bias) b = b + beside.b_bias;
    if (p.turn != TURN_NONE) {
        float angle = (float)beside.position * beside.frequency;
        float c = p.turn_scale * cosf(angle), s = p.turn_scale * sinf(angle);
        float turned = a * c - b * s;
        b = a * s + b * c;
        a = turned;
    }
    ((float*)p.out)[pair.a_row] = a;
    ((float*)other.out)[pair.b_row] = b;
    if (f.gate) {
        ((float*)f.gated)[pair.a_row] = unary_function(gate_of(f.gate - 1), a) * b;
        return;
    }
    store_cached(p, beside.position, pair.a_row, a);
    store_cached(p, beside.position, pair.b_row, b);
    if (p.residual) {
        ((float*)p.residual)[pair.a_row] = beside.a_residual + a;
        ((float*)p.residual)[pair.b_row] = beside.b_residual + b;
    }
}

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

// The parts of a block's shared memory.
struct FusedMemory {
    uint8_t *ring, *barriers;
    Words4* x;
    Sums* sums;
    float* squares;

    __device__ FusedMemory(const nocopy_fused& f, uint32_t ring_bytes, uint32_t quads) {
        const uint32_t warps = blockDim.x / 32;
        ring = dynamic_shared();
        x = (Words4*)(ring + warps * ring_bytes);
        sums = (Sums*)(x + quads);
        squares = (float*)(sums + MAX_PIECES);
        barriers = (uint8_t*)(squares + MAX_FUSED_WARPS);
    }
};

// Puts norm (or ones) in shared memory, before the kernel before this one has ended.
template <typename B>
__device__ inline void load_norm(const nocopy_fused& f, Words4* x) {
    if (!f.norm) return;
    const uint32_t quads = Cut<B>::quads(f.k);
    for (uint32_t q = threadIdx.x; q < quads; q += blockDim.x) {
        uint32_t at = Cut<B>::at(q, f.k);
        if (at < f.k) x[q] = *(const Words4*)((const float*)f.norm + at);
    }
}

// Puts x, times norm, in shared memory, and each warp's sum of squares beside it.
template <typename B>
__device__ inline void load_row(const nocopy_fused& f, const FusedMemory& shared) {
    constexpr uint32_t AT_ONCE = 8;  // quads of a thread that are on their way together
    const uint32_t quads = Cut<B>::quads(f.k);
    float squares = 0.0f;
    for (uint32_t first = threadIdx.x; first < quads; first += AT_ONCE * blockDim.x) {
        Words4 held[AT_ONCE];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; ++j) {
            uint32_t q = first + j * blockDim.x, at = q < quads ? Cut<B>::at(q, f.k) : f.k;
            if (at < f.k) held[j] = load_fresh((const float*)f.x + at);
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; ++j) {
            uint32_t q = first + j * blockDim.x;
            if (q >= quads || Cut<B>::at(q, f.k) >= f.k) continue;
            if (f.norm) {
                Words4 norm = shared.x[q];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float v = __uint_as_float(held[j].v[i]);
                    squares = fmaf(v, v, squares);
                    held[j].v[i] = __float_as_uint(v * __uint_as_float(norm.v[i]));
                }
            }
            shared.x[q] = held[j];
        }
    }
    if (!f.norm) return;
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) shared.squares[threadIdx.x / 32] = squares;
}

// Every block writes its share of the normed row.
template <typename B>
__device__ inline void store_normed(const nocopy_fused& f, const Words4* x, float root) {
    const uint32_t quads = Cut<B>::quads(f.k), each = (quads + gridDim.x - 1) / gridDim.x;
    const uint32_t stop = min(quads, (blockIdx.x + 1) * each);
    for (uint32_t q = blockIdx.x * each + threadIdx.x; q < stop; q += blockDim.x) {
        uint32_t at = Cut<B>::at(q, f.k);
        if (at >= f.k) continue;
        for (int i = 0; i < 4; ++i) ((float*)f.normed)[at + i] = __uint_as_float(x[q].v[i]) / root;
    }
}

// What sums are divided by.
__device__ inline float root_of(const nocopy_fused& f, const FusedMemory& shared) {
    if (!f.norm) return 1.0f;
    float sum = 0.0f;
    for (uint32_t w = 0; w < blockDim.x / 32; ++w) sum += shared.squares[w];
    return sqrtf(sum / (float)f.k + f.eps);
}

template <typename B>
__device__ inline void fused(const nocopy_fused& f) {
    let_next_start();
    const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32;
    const uint32_t chunk_bytes = f.chunk / B::ELEMENTS * B::BYTES, slot_bytes = 2 * chunk_bytes;
    const uint32_t chunks = (f.k + f.chunk - 1) / f.chunk;
    const uint32_t row_bytes = f.k / B::ELEMENTS * B::BYTES;
    const uint64_t all = RowPair::count(f);
    const uint32_t first = (uint32_t)(all * blockIdx.x / gridDim.x);
    const uint32_t pairs = (uint32_t)(all * (blockIdx.x + 1) / gridDim.x) - first, pieces = pairs * chunks;
    FusedMemory shared(f, f.slots * slot_bytes, Cut<B>::quads(f.k));
    Ring ring(shared.ring + warp * f.slots * slot_bytes,
              shared.barriers + warp * f.slots * Ring::BARRIER_BYTES, f.slots, slot_bytes);
    uint32_t begun = warp;
    auto pair_of = [&](uint32_t piece) { return __umulhi(piece, f.reciprocal); };  // piece / chunks
    auto begin = [&] {
        if (begun < pieces) {
            uint32_t index = chunks == 1 ? begun : pair_of(begun);
            RowPair pair(f, first + index);
            uint32_t skip = (begun - index * chunks) * chunk_bytes;
            ring.begin(weight_row(f.products[pair.a_product], pair.a_row) + skip,
                       weight_row(f.products[pair.b_product], pair.b_row) + skip,
                       min(chunk_bytes, row_bytes - skip));
        } else {
            ring.begin_nothing();
        }
        begun += warps;
    };
    for (uint32_t s = 0; s < f.slots; ++s) begin();
    load_norm<B>(f, shared.x);
    wait_for_previous();
    load_row<B>(f, shared);
    Beside own;
    if (threadIdx.x < pairs) own = Beside(f, RowPair(f, first + threadIdx.x));
    __syncthreads();
    const float root = root_of(f, shared);
    if (f.normed) store_normed<B>(f, shared.x, root);
    const uint32_t at_once = MAX_PIECES / warps / chunks * warps;  // pairs
    for (uint32_t start = 0; start < pieces; start += at_once * chunks) {
        const uint32_t stop = min(pieces, start + at_once * chunks);
        for (uint32_t piece = start + warp; piece < stop; piece += warps) {
            uint32_t from = (chunks == 1 ? 0 : piece - pair_of(piece) * chunks) * f.chunk,
                     elements = min(f.chunk, f.k - from);
            const uint8_t* a = ring.ready();
            Sums sums = multiply_pair<B>(a, a + elements / B::ELEMENTS * B::BYTES, shared.x, from, elements);
            __syncwarp();  // all lanes have read the slot
            begin();
            sums.a = warp_sum(sums.a);
            sums.b = warp_sum(sums.b);
            if (threadIdx.x % 32 == 0) shared.sums[piece - start] = sums;
        }
        __syncthreads();
        for (uint32_t pair = threadIdx.x; pair < (stop - start) / chunks; pair += blockDim.x) {
            Sums sums = {};
            for (uint32_t c = 0; c < chunks; ++c) {
                sums.a += shared.sums[pair * chunks + c].a;
                sums.b += shared.sums[pair * chunks + c].b;
            }
            RowPair place(f, first + start / chunks + pair);
            finish_pair(f, place, start == 0 && pair == threadIdx.x ? own : Beside(f, place),
                        {sums.a / root, sums.b / root});
        }
        if (stop < pieces) __syncthreads();  // all have read the sums
    }
}

#define NOCOPY_FUSED(name, B)                                 \
    extern "C" __global__ void __launch_bounds__(256, 2)      \
        name(const __grid_constant__ nocopy_fused argument) { \
        fused<B>(argument);                                   \
    }

NOCOPY_FUSED(fused_f32, F32Words)
NOCOPY_FUSED(fused_f16, F16Words)
NOCOPY_FUSED(fused_bf16, Bf16Words)
NOCOPY_FUSED(fused_q8_0, Q8_0)
NOCOPY_FUSED(fused_q4_0, Q4_0)
NOCOPY_FUSED(fused_q4_k, Q4_K)
NOCOPY_FUSED(fused_q5_k, Q5_K)
NOCOPY_FUSED(fused_q6_k, Q6_K)
