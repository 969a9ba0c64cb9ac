// W-wide vectors of f32 and conversions to and from the element types of tapes.
//
// The compilers' vector extensions give arithmetic, comparisons and selection (`mask ? a : b`); only what
// they lack is written per instruction set: rounding, square root, half-precision conversion, partial loads.
// a * b + c contracts to a fused multiply-add where the level has one.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define NOCOPY_INLINE [[maybe_unused]] static inline __attribute__((always_inline))

namespace nocopy::NOCOPY_LEVEL {

#if defined(__AVX512F__)
inline constexpr int W = 16;
#elif defined(__AVX2__)
inline constexpr int W = 8;
#else
inline constexpr int W = 4;
#endif

typedef float F __attribute__((vector_size(W * 4)));
typedef int32_t I __attribute__((vector_size(W * 4)));
typedef uint32_t U __attribute__((vector_size(W * 4)));
typedef uint16_t Halves __attribute__((vector_size(W * 2)));
typedef uint8_t Bytes __attribute__((vector_size(W)));

// Element types as they lie in memory. Float16 and BFloat16 are bit patterns.
struct Float16 {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

template <class V, class T>
NOCOPY_INLINE V load_bits(const T* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}
template <class V, class T>
NOCOPY_INLINE void store_bits(T* to, V v) {
    __builtin_memcpy(to, &v, sizeof v);
}
template <class To, class From>
NOCOPY_INLINE To as(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &v, sizeof to);
    return to;
}

NOCOPY_INLINE F load(const float* from) {
    return load_bits<F>(from);
}
NOCOPY_INLINE void store(float* to, F v) {
    store_bits(to, v);
}
NOCOPY_INLINE F set(float x) {
    return x - F{};
}
NOCOPY_INLINE I set_int(int32_t x) {
    return x - I{};
}

// x, as a value that the compiler cannot contract into a multiply-add with what it came from.
NOCOPY_INLINE F rounded(F x) {
#if defined(__x86_64__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#else
    asm("" : "+m"(x));
#endif
    return x;
}

// The first n < W elements; the others read as 0 and are not written.
NOCOPY_INLINE F load_part(const float* from, int64_t n) {
#if defined(__AVX512F__)
    return (F)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), from);
#else
    F v{};
    __builtin_memcpy(&v, from, (size_t)n * 4);
    return v;
#endif
}
NOCOPY_INLINE void store_part(float* to, F v, int64_t n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    __builtin_memcpy(to, &v, (size_t)n * 4);
#endif
}

// Rounding modes are named as in <math.h>; rint is half to even.
#if defined(__AVX512F__)
NOCOPY_INLINE F sqrt(F x) {
    return (F)_mm512_sqrt_ps((__m512)x);
}
NOCOPY_INLINE F rint(F x) {
    return (F)_mm512_roundscale_ps((__m512)x, 0x08);
}
NOCOPY_INLINE F floor(F x) {
    return (F)_mm512_roundscale_ps((__m512)x, 0x09);
}
NOCOPY_INLINE F ceil(F x) {
    return (F)_mm512_roundscale_ps((__m512)x, 0x0a);
}
#elif defined(__AVX2__)
NOCOPY_INLINE F sqrt(F x) {
    return (F)_mm256_sqrt_ps((__m256)x);
}
NOCOPY_INLINE F rint(F x) {
    return (F)_mm256_round_ps((__m256)x, 0x08);
}
NOCOPY_INLINE F floor(F x) {
    return (F)_mm256_round_ps((__m256)x, 0x09);
}
NOCOPY_INLINE F ceil(F x) {
    return (F)_mm256_round_ps((__m256)x, 0x0a);
}
#elif defined(__aarch64__)
NOCOPY_INLINE F sqrt(F x) {
    return (F)vsqrtq_f32((float32x4_t)x);
}
NOCOPY_INLINE F rint(F x) {
    return (F)vrndnq_f32((float32x4_t)x);
}
NOCOPY_INLINE F floor(F x) {
    return (F)vrndmq_f32((float32x4_t)x);
}
NOCOPY_INLINE F ceil(F x) {
    return (F)vrndpq_f32((float32x4_t)x);
}
#else
NOCOPY_INLINE F sqrt(F x) {
    for (int i = 0; i < W; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}
NOCOPY_INLINE F rint(F x) {
    // Adding and taking away 2^23 rounds in the current mode; at 2^23 and above all floats are whole.
    const F big = as<F>((as<I>(x) & INT32_MIN) | as<I>(set(8388608.0f)));
    const F rounded = as<F>(as<I>((x + big) - big) | (as<I>(x) & INT32_MIN));
    const F size = as<F>(as<I>(x) & INT32_MAX);
    return size < 8388608.0f ? rounded : x;
}
NOCOPY_INLINE F floor(F x) {
    const F r = rint(x);
    return r > x ? r - 1.0f : r;
}
NOCOPY_INLINE F ceil(F x) {
    const F r = rint(x);
    return r < x ? r + 1.0f : r;
}
#endif

// Half precision: exact widening, round-to-nearest-even narrowing.
#if defined(__AVX512F__)
NOCOPY_INLINE F from_half(Halves h) {
    return (F)_mm512_cvtph_ps((__m256i)h);
}
NOCOPY_INLINE Halves to_half(F x) {
    return (Halves)_mm512_cvtps_ph((__m512)x, 0x08);
}
#elif defined(__AVX2__)
NOCOPY_INLINE F from_half(Halves h) {
    return (F)_mm256_cvtph_ps((__m128i)h);
}
NOCOPY_INLINE Halves to_half(F x) {
    return (Halves)_mm256_cvtps_ph((__m256)x, 0x08);
}
#elif defined(__aarch64__)
NOCOPY_INLINE F from_half(Halves h) {
    return (F)vcvt_f32_f16((float16x4_t)h);
}
NOCOPY_INLINE Halves to_half(F x) {
    return (Halves)vcvt_f16_f32((float32x4_t)x);
}
#else
NOCOPY_INLINE F from_half(Halves h) {
    const U bits = __builtin_convertvector(h, U);
    const U sign = (bits & 0x8000u) << 16;
    const U rest = (bits & 0x7fffu) << 13;
    // Rebias by a multiplication, which also normalises subnormals; infinity and NaN need the full exponent.
    const F scaled = as<F>(rest) * 5.192296858534828e33f;  // 2^112
    const U special = rest | 0x7f800000u;
    return as<F>(((bits & 0x7c00u) == 0x7c00u ? special : as<U>(scaled)) | sign);
}
NOCOPY_INLINE Halves to_half(F x) {
    const U sign = as<U>(x) & 0x80000000u;
    const U bits = as<U>(x) ^ sign;
    const U odd = (bits >> 13) & 1u;
    const U normal = (bits + 0xc8000fffu + odd) >> 13;  // rebias by -112, round half to even
    // Below 2^-14 the sum with 0.5 has the half's subnormal bits at its end, rounded by the addition.
    const U small = as<U>(as<F>(bits) + 0.5f) - 0x3f000000u;
    const U nan = bits > 0x7f800000u ? (bits >> 13) | 0x7e00u : U{} + 0x7c00u;
    U h = bits < 0x38800000u ? small : normal;
    h = bits >= 0x47800000u ? nan & 0x7fffu : h;  // 65536 and above: infinity or NaN
    return __builtin_convertvector(h | (sign >> 16), Halves);
}
#endif

NOCOPY_INLINE F from_brain(Halves h) {
    return as<F>(__builtin_convertvector(h, U) << 16);
}
NOCOPY_INLINE Halves to_brain(F x) {
    const U bits = as<U>(x);
    const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const U nan = ((bits >> 16) & 0x8000u) | 0x7fc0u;
    return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, Halves);
}

// f32 to integers: half to even, saturating, NaN becomes 0.
NOCOPY_INLINE I to_int(F x) {
    constexpr float LIMIT = 2147483648.0f, BELOW = 2147483520.0f;  // 2^31 and the largest f32 below it
    F safe = x == x ? x : F{};
    safe = safe > BELOW ? set(BELOW) : safe;
    safe = safe < -LIMIT ? set(-LIMIT) : safe;
    const I whole = __builtin_convertvector(rint(safe), I);
    return x >= LIMIT ? set_int(INT32_MAX) : whole;
}
NOCOPY_INLINE U to_byte(F x) {
    F safe = x > 0.0f ? x : F{};  // NaN too
    safe = safe > 255.0f ? set(255.0f) : safe;
    return __builtin_convertvector(__builtin_convertvector(rint(safe), I), U);
}

// W elements of a type as f32, and back.
NOCOPY_INLINE F widen(const float* from) {
    return load(from);
}
NOCOPY_INLINE F widen(const Float16* from) {
    return from_half(load_bits<Halves>(from));
}
NOCOPY_INLINE F widen(const BFloat16* from) {
    return from_brain(load_bits<Halves>(from));
}
NOCOPY_INLINE F widen(const int32_t* from) {
    return __builtin_convertvector(load_bits<I>(from), F);
}
NOCOPY_INLINE F widen(const uint8_t* from) {
    return __builtin_convertvector(__builtin_convertvector(load_bits<Bytes>(from), I), F);
}
NOCOPY_INLINE void narrow(float* to, F v) {
    store(to, v);
}
NOCOPY_INLINE void narrow(Float16* to, F v) {
    store_bits(to, to_half(v));
}
NOCOPY_INLINE void narrow(BFloat16* to, F v) {
    store_bits(to, to_brain(v));
}
NOCOPY_INLINE void narrow(int32_t* to, F v) {
    store_bits(to, to_int(v));
}
NOCOPY_INLINE void narrow(uint8_t* to, F v) {
    store_bits(to, __builtin_convertvector(to_byte(v), Bytes));
}

template <int S, int... LANES>
NOCOPY_INLINE F swapped(F v, std::integer_sequence<int, LANES...>) {
    return __builtin_shufflevector(v, v, (LANES ^ S)...);
}

// All lanes joined by f, in each lane.
template <int S = W / 2, class Function>
NOCOPY_INLINE F across(F v, const Function& f) {
    const F joined = f(v, swapped<S>(v, std::make_integer_sequence<int, W>()));
    if constexpr (S == 1)
        return joined;
    else
        return across<S / 2>(joined, f);
}

NOCOPY_INLINE float sum_lanes(F v) {
    return across(v, [](F x, F y) { return x + y; })[0];
}

// Halves the blocks of S * 2 lanes of x and y: lane pairs S apart are added, x's blocks come first.
template <int S, int... LANES>
NOCOPY_INLINE F add_halves(F x, F y, std::integer_sequence<int, LANES...>) {
    const F low = __builtin_shufflevector(x, y, (LANES / S * 2 * S + LANES % S)...);
    const F high = __builtin_shufflevector(x, y, (LANES / S * 2 * S + LANES % S + S)...);
    return low + high;
}

// The sum of each vector's lanes, in a lane of its own.
template <int S = W / 2>
NOCOPY_INLINE F sum_each(F* sums) {
#pragma GCC unroll 16
    for (int i = 0; i < S; i++)
        sums[i] = add_halves<S>(sums[2 * i], sums[2 * i + 1], std::make_integer_sequence<int, W>());
    if constexpr (S == 1)
        return sums[0];
    else
        return sum_each<S / 2>(sums);
}

// NaN in either operand gives NaN, as numpy.minimum and numpy.maximum do.
NOCOPY_INLINE F min_nan(F a, F b) {
    const F least = a < b ? a : b;  // b when either is NaN
    return a == a ? least : a;
}
NOCOPY_INLINE F max_nan(F a, F b) {
    const F most = a > b ? a : b;
    return a == a ? most : a;
}

}  // namespace nocopy::NOCOPY_LEVEL
