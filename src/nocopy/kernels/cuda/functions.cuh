// The functions of one argument, for unary and glu: f32, by the precise functions of the CUDA math library.
#pragma once

#include "record.cuh"

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
