// unary: out[d0,d1,d2,d3] = function(x[d0,d1,d2,d3]).   clamp: out = min(max(x, low), high); NaN stays NaN.
// Computed in f32 by the precise functions of the CUDA math library. Any strides.
// Bound: the bytes read and written.
#include "elementwise.cuh"

__device__ __noinline__ float unary_function(uint32_t function, float x) {
    switch (function) {
        case NOCOPY_UNARY_NEG:
            return -x;
        case NOCOPY_UNARY_ABS:
            return fabsf(x);
        case NOCOPY_UNARY_SIGN:
            return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == 0.0f ? 0.0f : x;
        case NOCOPY_UNARY_SQUARE:
            return x * x;
        case NOCOPY_UNARY_SQRT:
            return sqrtf(x);
        case NOCOPY_UNARY_RSQRT:
            return 1.0f / sqrtf(x);
        case NOCOPY_UNARY_RECIPROCAL:
            return 1.0f / x;
        case NOCOPY_UNARY_EXP:
            return expf(x);
        case NOCOPY_UNARY_LOG:
            return logf(x);
        case NOCOPY_UNARY_SIN:
            return sinf(x);
        case NOCOPY_UNARY_COS:
            return cosf(x);
        case NOCOPY_UNARY_TANH:
            return tanhf(x);
        case NOCOPY_UNARY_SIGMOID:
            return 1.0f / (1.0f + expf(-x));
        case NOCOPY_UNARY_RELU:
            return nan_max(x, 0.0f);
        case NOCOPY_UNARY_GELU:
            return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case NOCOPY_UNARY_GELU_TANH:
            return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * (x * x * x))));
        case NOCOPY_UNARY_SILU:
            return x / (1.0f + expf(-x));
        case NOCOPY_UNARY_FLOOR:
            return floorf(x);
        case NOCOPY_UNARY_CEIL:
            return ceilf(x);
        default:
            return rintf(x);
    }
}

NOCOPY_KERNEL(unary, 256, 4) {
    Tensor out(launch, 0), x(launch, 1);
    Grid grid(launch);
    uint32_t function = launch.record.function;
    each_place(
        launch, grid.dims, [&](const Place& p) { return load(x, at(x, p)); },
        [&](const Place& p, float value) { store(out, at(out, p), unary_function(function, value)); });
}

NOCOPY_KERNEL(clamp, 256, 4) {
    Tensor out(launch, 0), x(launch, 1);
    Grid grid(launch);
    float low = param_f32(launch, 0), high = param_f32(launch, 1);
    each_place(
        launch, grid.dims, [&](const Place& p) { return load(x, at(x, p)); },
        [&](const Place& p, float value) { store(out, at(out, p), nan_min(nan_max(value, low), high)); });
}
