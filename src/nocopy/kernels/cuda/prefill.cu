// What stands between the products of many rows, four elements of f32 at a time: norm_rows and gate_rows
// write the rows that a product reads in 16 bits (rmsnorm and glu; norm.cu and glu.cu have the formulas; a
// gate may read bf16), rope_rows turns whole heads (rope.cu), its angles computed once for all heads of a
// row, keep_rows does so on the keys' way to the cache. A block takes a row at a time; rows begin on 16-byte
// words. Bound: the bytes read and written.
#include "mma.cuh"
#include "rows.cuh"
#include "superseded.cuh"
#include "tile.cuh"

using Four = Floats<4>;

__device__ inline void store_four(const Tensor& out, uint64_t at, const float (&y)[4]) {
    Words<2> pairs;
    if (out.dtype == NOCOPY_BF16)
        pairs = {pack_pair<true>(y[0], y[1]), pack_pair<true>(y[2], y[3])};
    else
        pairs = {pack_pair<false>(y[0], y[1]), pack_pair<false>(y[2], y[3])};
    *(Words<2>*)(out.as<uint16_t>() + at) = pairs;
}

constexpr int NORM_WORDS = 8;  // of a row that a thread holds

NOCOPY_KERNEL(norm_rows, 256, 4) {
    Tensor out(launch, 0), x(launch, 1), weight(launch, 2);
    const uint64_t rows = launch.record.dims[2];
    const uint32_t n = launch.record.dims[3];
    const float eps = param_f32(launch, 0);
    if (block_stopped(launch)) return;
    for (uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* from = x.as<float>() + row * x.strides[2];
        Four held[NORM_WORDS];
        float squares = 0.0f;
#pragma unroll
        for (int j = 0; j < NORM_WORDS; ++j) {
            uint32_t i = 4 * (threadIdx.x + j * 256);
            if (i >= n) break;
            held[j] = *(const Four*)(from + i);
#pragma unroll
            for (int e = 0; e < 4; ++e) squares = fmaf(held[j].v[e], held[j].v[e], squares);
        }
        float inverse = 1.0f / sqrtf(team_combine(squares, Add()) / (float)n + eps);
#pragma unroll
        for (int j = 0; j < NORM_WORDS; ++j) {
            uint32_t i = 4 * (threadIdx.x + j * 256);
            if (i >= n) break;
            float y[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) y[e] = held[j].v[e] * inverse;
            if (weight.dtype == NOCOPY_F32) {
                Four w = *(const Four*)(weight.as<float>() + i);
#pragma unroll
                for (int e = 0; e < 4; ++e) y[e] *= w.v[e];
            }
            store_four(out, row * out.strides[2] + i, y);
        }
    }
}

// f(a) b. In 16 bits the approximations of the special function unit do not show.
template <int FUNCTION>
__device__ inline float gated(float a, float b) {
    if (FUNCTION == NOCOPY_GLU_SILU) return fast_silu(a) * b;
    if (FUNCTION == NOCOPY_GLU_GELU) return 0.5f * a * (1.0f + erff(a * 0.70710678f)) * b;
    // (1 + tanh u) / 2 is 1 / (1 + e^-2u).
    return fast_divide(a, 1.0f + fast_exp2(-2.30220819f * (a + 0.044715f * (a * a * a)))) * b;
}

// Sixteen bytes of a row: four elements of f32, or eight of bf16.
struct F32Word {
    static constexpr uint32_t ELEMENTS = 4;

    static __device__ void load(const Tensor& x, uint64_t at, float (&y)[4]) {
        *(Four*)y = *(const Four*)(x.as<float>() + at);
    }
};

struct Bf16Word {
    static constexpr uint32_t ELEMENTS = 8;

    static __device__ void load(const Tensor& x, uint64_t at, float (&y)[8]) {
        HalfWords<true>::decode(*(const Words<4>*)(x.as<uint16_t>() + at), y);
    }
};

template <int FUNCTION, typename Word>
__device__ inline void gate(const nocopy_launch& launch) {
    Tensor out(launch, 0), a(launch, 1), b(launch, 2);
    const uint64_t rows = launch.record.dims[2];
    const uint32_t n = launch.record.dims[3];
    if (block_stopped(launch)) return;
    for (uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
#pragma unroll 4
        for (uint32_t i = Word::ELEMENTS * threadIdx.x; i < n; i += Word::ELEMENTS * 256) {
            float x[Word::ELEMENTS], z[Word::ELEMENTS], y[Word::ELEMENTS];
            Word::load(a, row * a.strides[2] + i, x);
            Word::load(b, row * b.strides[2] + i, z);
#pragma unroll
            for (int e = 0; e < (int)Word::ELEMENTS; ++e) y[e] = gated<FUNCTION>(x[e], z[e]);
#pragma unroll
            for (int e = 0; e < (int)Word::ELEMENTS; e += 4)
                store_four(out, row * out.strides[2] + i + e, *(float (*)[4]) & y[e]);
        }
    }
}

template <int FUNCTION>
__device__ inline void gate(const nocopy_launch& launch) {
    if (Tensor(launch, 1).dtype == NOCOPY_F32) return gate<FUNCTION, F32Word>(launch);
    gate<FUNCTION, Bf16Word>(launch);
}

NOCOPY_KERNEL(gate_rows, 256, 4) {
    switch (launch.record.function) {
        case NOCOPY_GLU_SILU:
            return gate<NOCOPY_GLU_SILU>(launch);
        case NOCOPY_GLU_GELU:
            return gate<NOCOPY_GLU_GELU>(launch);
        default:
            return gate<NOCOPY_GLU_GELU_TANH>(launch);
    }
}

constexpr uint32_t MOST_PAIRS = 256;

// Scaled cosines and sines of a row's pairs; threads that see them have met.
__device__ inline void find_turns(const nocopy_launch& launch, uint64_t row, Floats<2>* turns) {
    Tensor frequencies(launch, 2), positions(launch, 3);
    const float scale = param_f32(launch, 0);
    const float position = (float)positions.as<int32_t>()[positions.at(row)];
    for (uint32_t i = threadIdx.x; i < launch.record.dims[3]; i += blockDim.x) {
        float angle = position * frequencies.as<float>()[frequencies.at(i)];
        turns[i] = {scale * cosf(angle), scale * sinf(angle)};
    }
    __syncthreads();
}

// Turns a row's heads, and gives `put` four elements of each half of four pairs: the head, the first of those
// elements and the first of the others.
template <typename Put>
__device__ inline void turn_row(const nocopy_launch& launch, uint64_t row, const Floats<2>* turns, Put put) {
    Tensor x(launch, 1);
    const uint32_t heads = launch.record.dims[1], f = launch.record.dims[3];
    const bool interleaved = launch.record.function == NOCOPY_ROPE_INTERLEAVED;
    for (uint32_t e = threadIdx.x; e < heads * (f / 4); e += blockDim.x) {
        uint32_t head = e / (f / 4), i = (e - head * (f / 4)) * 4, first = interleaved ? 2 * i : i;
        uint32_t second = interleaved ? first + 4 : first + f;
        const float* from = x.as<float>() + x.at(row, head);
        Four low = *(const Four*)(from + first), high = *(const Four*)(from + second);
        float a[4], b[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            a[j] = interleaved ? (j < 2 ? low.v[2 * (j % 2)] : high.v[2 * (j % 2)]) : low.v[j];
            b[j] = interleaved ? (j < 2 ? low.v[2 * (j % 2) + 1] : high.v[2 * (j % 2) + 1]) : high.v[j];
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float c = turns[i + j].v[0], s = turns[i + j].v[1], left = a[j] * c - b[j] * s;
            b[j] = a[j] * s + b[j] * c;
            a[j] = left;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (!interleaved) {
                low.v[j] = a[j], high.v[j] = b[j];
            } else {
                Four& word = j < 2 ? low : high;
                word.v[2 * (j % 2)] = a[j], word.v[2 * (j % 2) + 1] = b[j];
            }
        }
        put(head, first, low);
        put(head, second, high);
    }
}

NOCOPY_KERNEL(rope_rows, 256, 4) {
    __shared__ Floats<2> turns[MOST_PAIRS];
    Tensor out(launch, 0);
    if (block_stopped(launch)) return;
    for (uint64_t row = blockIdx.x; row < launch.record.dims[0]; row += gridDim.x) {
        find_turns(launch, row, turns);
        turn_row(launch, row, turns, [&](uint32_t head, uint32_t at, const Four& y) {
            *(Four*)(out.as<float>() + out.at(row, head) + at) = y;
        });
        __syncthreads();  // all have read the angles; the next row's may come
    }
}

// Four elements to a cache of f32, or rounded.
__device__ inline void keep_four(const Tensor& out, uint64_t at, const Four& y) {
    if (out.dtype == NOCOPY_F32)
        *(Four*)(out.as<float>() + at) = y;
    else
        store_four(out, at, y.v);
}

// A rope and two scatters (device/cuda_keep.py): keys are turned on their way to the cache, values go along.
NOCOPY_KERNEL(keep_rows, 256, 4) {
    __shared__ Floats<2> turns[MOST_PAIRS];
    Tensor out(launch, 0), indices(launch, 3), values(launch, 4);
    const uint32_t n = launch.record.dims[2], width = launch.record.dims[1] * n;
    for (uint64_t row = blockIdx.x; row < launch.record.dims[0]; row += gridDim.x) {
        if (block_stopped(launch)) return;
        if (superseded(launch, indices, row)) continue;
        const int64_t index = indices.as<int32_t>()[indices.at(row)];
        if (index < 0 || index >= (int64_t)launch.record.dims[4]) continue;
        const uint64_t keys_at = out.at((uint64_t)index), values_at = keys_at + launch.record.params[1];
        find_turns(launch, row, turns);
        turn_row(launch, row, turns, [&](uint32_t head, uint32_t at, const Four& y) {
            keep_four(out, keys_at + head * n + at, y);
        });
        for (uint32_t i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x)
            keep_four(out, values_at + i, *(const Four*)(values.as<float>() + values.at(row) + i));
        __syncthreads();  // all have read the angles; the next row's may come
    }
}
