// One launch for the products of one row and the steps around them (row_product.cuh). Every result that the
// separate ops would have written is written. Blocks share out the pairs of rows evenly; the warps of a block
// share out pieces of them, `chunk` elements of both rows, which each streams through a ring of its own
// (stream.cuh), begun before the kernel waits for the one before it. The norm's root divides sums, not
// elements, so that nobody waits for it. Bound: the bytes of the weights.
#include "row_product.cuh"

constexpr uint32_t MAX_FUSED_WARPS = 16;

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
            const Beside beside = start == 0 && pair == threadIdx.x ? own : Beside(f, place);
            Results(beside, {sums.a / root, sums.b / root}).keep(f, place, beside);
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
