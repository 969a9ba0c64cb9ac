// What stands between the products of many rows, four elements of f32 at a time: norm_rows and gate_rows
// write the rows that a product reads in 16 bits (rmsnorm and glu; norm.cu and glu.cu have the formulas),
// rope_rows turns whole heads (rope.cu), its angles computed once for all heads of a row. A block takes a row
// at a time; rows begin on 16-byte words. Bound: the bytes read and written.
#include "mma.cuh"
#include "rows.cuh"
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

// Four elements of f32, or of bf16.
__device__ inline Four load_four(const Tensor& x, uint64_t at) {
    if (x.dtype == NOCOPY_F32) return *(const Four*)(x.as<float>() + at);
    const Words<2> pairs = *(const Words<2>*)(x.as<uint16_t>() + at);
    Four y;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        y.v[2 * i] = __uint_as_float(pairs.v[i] << 16);
        y.v[2 * i + 1] = __uint_as_float(pairs.v[i] & 0xffff0000);
    }
    return y;
}

// f(a) b. In 16 bits the approximations of the special function unit do not show.
template <int FUNCTION>
__device__ inline float gated(float a, float b) {
    if (FUNCTION == NOCOPY_GLU_SILU) return fast_silu(a) * b;
    if (FUNCTION == NOCOPY_GLU_GELU) return 0.5f * a * (1.0f + erff(a * 0.70710678f)) * b;
    // (1 + tanh u) / 2 is 1 / (1 + e^-2u).
    return fast_divide(a, 1.0f + fast_exp2(-2.30220819f * (a + 0.044715f * (a * a * a)))) * b;
}

template <int FUNCTION>
__device__ inline void gate(const nocopy_launch& launch) {
    Tensor out(launch, 0), a(launch, 1), b(launch, 2);
    const uint64_t rows = launch.record.dims[2];
    const uint32_t n = launch.record.dims[3];
    if (block_stopped(launch)) return;
    for (uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const uint64_t from_a = row * a.strides[2], from_b = row * b.strides[2];
#pragma unroll 4
        for (uint32_t i = 4 * threadIdx.x; i < n; i += 4 * 256) {
            Four x = load_four(a, from_a + i), z = load_four(b, from_b + i);
            float y[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) y[e] = gated<FUNCTION>(x.v[e], z.v[e]);
            store_four(out, row * out.strides[2] + i, y);
        }
    }
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

NOCOPY_KERNEL(rope_rows, 256, 4) {
    __shared__ Floats<2> turns[MOST_PAIRS];  // scaled cosine and sine
    Tensor out(launch, 0), x(launch, 1), frequencies(launch, 2), positions(launch, 3);
    const uint64_t rows = launch.record.dims[0];
    const uint32_t heads = launch.record.dims[1], f = launch.record.dims[3];
    const bool interleaved = launch.record.function == NOCOPY_ROPE_INTERLEAVED;
    const float scale = param_f32(launch, 0);
    if (block_stopped(launch)) return;
    for (uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        float position = (float)positions.as<int32_t>()[positions.at(row)];
        for (uint32_t i = threadIdx.x; i < f; i += blockDim.x) {
            float angle = position * frequencies.as<float>()[frequencies.at(i)];
            turns[i] = {scale * cosf(angle), scale * sinf(angle)};
        }
        __syncthreads();
        // Two words a thread: four pairs.
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
            float* to = out.as<float>() + out.at(row, head);
            *(Four*)(to + first) = low;
            *(Four*)(to + second) = high;
        }
        __syncthreads();  // all have read the angles; the next row's may come
    }
}
