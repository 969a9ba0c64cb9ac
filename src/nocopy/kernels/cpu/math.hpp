// Elementary functions of W floats. Errors are at most a few units in the last place over the whole range;
// special values (infinities, NaN, zeros) are those of <math.h>. Polynomials are minimax over the reduced
// range.
#pragma once

#include <math.h>

#include "simd.hpp"

namespace nocopy::NOCOPY_LEVEL {

// x = n ln 2 + r, |r| <= ln 2 / 2; exp(x) = 2^n exp(r).
NOCOPY_INLINE F exp(F x) {
    constexpr float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    constexpr float LARGEST = 89.0f, SMALLEST = -104.0f;  // beyond: infinity and 0
    x = x > LARGEST ? set(LARGEST) : x;
    x = x < SMALLEST ? set(SMALLEST) : x;
    const F n = rint(x * LOG2_E);
    const F r = (x - n * LN2_HIGH) - n * LN2_LOW;
    F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // In two steps, because 2^n alone may overflow or be subnormal.
    const I whole = __builtin_convertvector(n == n ? n : F{}, I);
    const I half = whole >> 1;
    const F first = as<F>((half + 127) << 23), second = as<F>((whole - half + 127) << 23);
    return p * first * second;
}

// x = 2^e m, sqrt(1/2) <= m < sqrt(2); log(x) = e ln 2 + log(m).
NOCOPY_INLINE F log(F x) {
    constexpr float SMALLEST_NORMAL = 1.17549435e-38f;
    const F scaled = x < SMALLEST_NORMAL ? x * 8388608.0f : x;  // 2^23 lifts subnormals
    const F bias = x < SMALLEST_NORMAL ? set(23.0f) : F{};
    const I shifted = as<I>(as<U>(scaled) - 0x3f3504f3u);  // the bits of sqrt(1/2)
    const I exponent = shifted >> 23;
    const F m = as<F>((shifted & 0x7fffff) + 0x3f3504f3) - 1.0f;
    const F e = __builtin_convertvector(exponent, F) - bias;
    const F z = m * m;
    F p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    F y = p * m * z + e * -2.12194440e-4f;
    y = y - 0.5f * z;
    y = m + y + e * 0.693359375f;
    const F infinity = set(__builtin_inff());
    y = x == infinity ? infinity : y;
    y = x == 0.0f ? -infinity : y;
    return ((x < 0.0f) | (x != x)) ? set(__builtin_nanf("")) : y;
}

typedef double D __attribute__((vector_size(W * 8)));

// sin(x) for quadrant = 0, cos(x) for quadrant = 1. The argument is reduced in f64; the few beyond 2^20 go to
// the C library one by one.
template <int quadrant>
NOCOPY_INLINE F sine(F x) {
    constexpr float REDUCED = 1048576.0f;
    constexpr double TWO_OVER_PI = 0.63661977236758134308;
    constexpr double HALF_PI_HIGH = 1.57079632673412561417, HALF_PI_LOW = 6.07710050650619224932e-11;
    const F size = as<F>(as<I>(x) & INT32_MAX);
    const I wild = ~(size < REDUCED);
    const F tame = wild ? F{} : x;
    const F n = rint(tame * (float)TWO_OVER_PI);
    const D wide = __builtin_convertvector(n, D);
    const D rest = (__builtin_convertvector(tame, D) - wide * HALF_PI_HIGH) - wide * HALF_PI_LOW;
    const F r = __builtin_convertvector(rest, F);
    const F z = r * r;
    const F s = ((z * -1.9515295891e-4f + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
    const F c = ((z * 2.443315711809948e-5f - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z -
                0.5f * z + 1.0f;
    const I turn = __builtin_convertvector(n, I) + quadrant;
    F y = (turn & 1) == 0 ? s : c;
    y = as<F>(as<I>(y) ^ ((turn & 2) << 30));
    for (int i = 0; i < W; i++)
        if (wild[i]) y[i] = quadrant == 0 ? __builtin_sinf(x[i]) : __builtin_cosf(x[i]);
    return y;
}

NOCOPY_INLINE F tanh(F x) {
    const F size = as<F>(as<I>(x) & INT32_MAX);
    const F z = x * x;
    F p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    p = p * z * x + x;
    const F big = 1.0f - 2.0f / (exp(2.0f * size) + 1.0f);
    const F signed_big = as<F>(as<I>(big) | (as<I>(x) & INT32_MIN));
    return size < 0.625f ? p : signed_big;
}

// Two minimax pieces: x P(x^2) near 0, 1 - exp(Q(|x|)) beyond.
NOCOPY_INLINE F erf(F x) {
    const F t = as<F>(as<I>(x) & INT32_MAX);
    const F z = x * x;
    F far = t * -1.72853470e-5f + 3.83197126e-4f;
    far = far * z + (t * -3.88396438e-3f + 2.42546219e-2f);
    far = far * t - 1.06777877e-1f;
    far = far * t - 6.34846687e-1f;
    far = far * t - 1.28717512e-1f;
    far = far * t - t;
    far = 1.0f - exp(far);
    far = as<F>(as<I>(far) | (as<I>(x) & INT32_MIN));
    F near = z * -5.96761703e-4f + 4.99119423e-3f;
    near = near * z - 2.67681349e-2f;
    near = near * z + 1.12819925e-1f;
    near = near * z - 3.76125336e-1f;
    near = near * z + 1.28379166e-1f;
    near = near * x + x;
    return t > 0.921875f ? far : near;
}

NOCOPY_INLINE F pow(F x, F y) {
    for (int i = 0; i < W; i++) x[i] = __builtin_powf(x[i], y[i]);
    return x;
}

}  // namespace nocopy::NOCOPY_LEVEL
