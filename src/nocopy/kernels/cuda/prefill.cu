// What stands between the products of many rows, four elements of f32 at a time: norm_rows and gate_rows
// write the rows that a product reads in 16 bits (rmsnorm and glu; norm.cu and glu.cu have the formulas; a
// gate may read bf16), gather_rows looks rows up (gather.cu), rope_rows turns whole heads (rope.cu), its
// angles computed once for all heads of a row, keep_rows does so on the keys' way to the cache. A block takes
// a row at a time, of norm_rows as many as its warps hold; rows begin on 16-byte words. Bound: the bytes read
// and written.
#include "mma.cuh"
#include "picked.cuh"
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

constexpr uint32_t NORM_WARPS = 8, NORM_WORDS = 8;  // of a block; of a row that a lane holds

// `splits` warps take a row. Where it is wanted in f32 too, a fourth operand has the 16 bits.
// Weights come to shared memory meanwhile.
NOCOPY_KERNEL(norm_rows, 256, 4) {
    __shared__ float squares[2][NORM_WARPS];
    __shared__ Four weights[32 * NORM_WARPS * NORM_WORDS];
    Tensor out(launch, 0), x(launch, 1), weight(launch, 2);
    const Tensor rounded(launch, out.dtype == NOCOPY_F32 ? 3 : 0);
    const uint64_t rows = launch.record.dims[2];
    const uint32_t n = launch.record.dims[3], warp = threadIdx.x / 32;
    const float eps = param_f32(launch, 0);
    const uint32_t team = (uint32_t)launch.splits;
    uint32_t turn = 0;
    const uint32_t own = warp / team, first = 4 * (threadIdx.x % (32 * team)), step = 128 * team;
    if (block_stopped(launch)) return;
    for (uint32_t i = threadIdx.x; 4 * i < n && !weight.absent(); i += 256)
        copy_word((uint8_t*)&weights[i], weight.as<float>() + 4 * i, true);
    end_copies();
    for (uint64_t at = blockIdx.x * (NORM_WARPS / team); at < rows; at += gridDim.x * (NORM_WARPS / team)) {
        const uint64_t row = at + own;
        const uint32_t stop = row < rows ? n : 0;
        const float* from = x.as<float>() + row * x.strides[2];
        Four held[NORM_WORDS];
        float sum = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < NORM_WORDS; ++j)
            if (first + j * step < stop) held[j] = *(const Four*)(from + first + j * step);
#pragma unroll
        for (uint32_t j = 0; j < NORM_WORDS; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (first + j * step < stop) sum = fmaf(held[j].v[e], held[j].v[e], sum);
        for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
        squares[turn][warp] = sum;
        wait_copies<0>();
        __syncthreads();
        sum = 0.0f;
        for (uint32_t i = 0; i < team; ++i) sum += squares[turn][own * team + i];
        turn ^= 1;  // who writes there next has met all who read
        const float inverse = 1.0f / sqrtf(sum / (float)n + eps);
#pragma unroll
        for (uint32_t j = 0; j < NORM_WORDS; ++j) {
            const uint32_t i = first + j * step;
            if (i >= stop) break;
            const Four w = weight.absent() ? Four{1.0f, 1.0f, 1.0f, 1.0f} : weights[i / 4];
            float y[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) y[e] = held[j].v[e] * inverse * w.v[e];
            store_four(rounded, row * rounded.strides[2] + i, y);
            if (out.dtype == NOCOPY_F32)
                *(Four*)(out.as<float>() + row * out.strides[2] + i) = {y[0], y[1], y[2], y[3]};
        }
    }
}

// Where an element that begins a word lies.
template <typename Word>
__device__ inline const uint8_t* word_at(const Tensor& x, uint64_t element) {
    return x.as<uint8_t>() + element * (Word::BYTES / Word::ELEMENTS);
}

// Sixteen bytes of a table's row at a time, which are four or eight elements of f32.
template <typename Word>
__device__ inline void pick(const nocopy_launch& launch) {
    Tensor out(launch, 0), table(launch, 1), indices(launch, 2);
    const uint32_t w = launch.record.dims[1];
    if (block_stopped(launch)) return;
    for (uint64_t row = blockIdx.x; row < launch.record.dims[0]; row += gridDim.x) {
        const uint64_t from = table.at(picked(indices, row, launch.record.dims[2]));
        float* to = out.as<float>() + out.at(row);
        for (uint32_t i = Word::ELEMENTS * threadIdx.x; i < w; i += Word::ELEMENTS * 256) {
            float y[Word::ELEMENTS];
            Word::decode(Word::fetch(word_at<Word>(table, from + i), 0), y);
#pragma unroll
            for (int e = 0; e < Word::ELEMENTS; e += 4) *(Four*)(to + i + e) = *(Four*)&y[e];
        }
    }
}

NOCOPY_KERNEL(gather_rows, 256, 4) {
    switch (Tensor(launch, 1).dtype) {
        case NOCOPY_F32:
            return pick<F32Words>(launch);
        case NOCOPY_F16:
            return pick<F16Words>(launch);
        default:
            return pick<Bf16Words>(launch);
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
            Word::decode(Word::fetch(word_at<Word>(a, row * a.strides[2] + i), 0), x);
            Word::decode(Word::fetch(word_at<Word>(b, row * b.strides[2] + i), 0), z);
#pragma unroll
            for (int e = 0; e < Word::ELEMENTS; ++e) y[e] = gated<FUNCTION>(x[e], z[e]);
#pragma unroll
            for (int e = 0; e < Word::ELEMENTS; e += 4)
                store_four(out, row * out.strides[2] + i + e, *(float (*)[4]) & y[e]);
        }
    }
}

template <int FUNCTION>
__device__ inline void gate(const nocopy_launch& launch) {
    if (Tensor(launch, 1).dtype == NOCOPY_F32) return gate<FUNCTION, F32Words>(launch);
    gate<FUNCTION, Bf16Words>(launch);
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
