// One to three rows times weights in blocks, by integer dot products (AVX-512 VNNI).
//
// Each block of 32 of x becomes integers of 22 bits and a power of two: x = s (65536 high + 256 middle +
// low), which keeps about as much of x as f32 sums do. Weights stay as they are stored, as unsigned bytes q
// with w = step (q - offset), and three `vpdpbusd` give the sum of q (65536 high + 256 middle + low) exactly.
// What offset takes away was added up beforehand, for each group of four elements: that is what a lane holds.
// Bound: memory bandwidth; per 32 weights about 12 instructions a row of x.
#pragma once

#include "skinny.hpp"

#if defined(__AVX512VNNI__)

namespace nocopy::NOCOPY_LEVEL {

inline constexpr int LANES = 8;  // 32-bit sums of four products each: 32 elements
// Rows of x from which on f32 is faster: there a decoded weight serves them all.
inline constexpr int64_t MAX_INTEGER = 3;
// k up to which these rows fit a thread's scratch memory, beside what the f32 way wants.
inline constexpr int64_t VNNI_DEPTH = 32768;

// One row of x.
struct Integers {
    int8_t *high, *middle, *low;  // [k]
    float* taken;                 // [k / 4]: -offset * s * sum of four
    float* scale;                 // [k / 32]
};
inline constexpr int64_t integer_floats(int64_t k) {
    return 4 * (k / 4) + ceil_div(k / 32, 16) * 16;
}
NOCOPY_INLINE Integers integers(float* memory, int64_t row, int64_t k) {
    float* start = memory + row * integer_floats(k);
    int8_t* high = reinterpret_cast<int8_t*>(start);
    return {high, high + k, high + 2 * k, start + 3 * (k / 4), start + k};
}

// What a type's quants q lie above its values, in steps; Q4_K and Q5_K have a minimum per group instead.
template <class Block>
inline constexpr float OFFSET = 1;
template <>
inline constexpr float OFFSET<Q8_0> = 128;
template <>
inline constexpr float OFFSET<Q4_0> = 8;
template <>
inline constexpr float OFFSET<Q6_K> = 32;
template <class Block>
inline constexpr bool HAS_MINIMA = false;
template <>
inline constexpr bool HAS_MINIMA<Q4_K> = true;
template <>
inline constexpr bool HAS_MINIMA<Q5_K> = true;

// The sum of each four of W bytes, on top of 256 times `before`.
NOCOPY_INLINE __m128i add_fours(__m128i before, __m128i bytes) {
    return _mm_dpbusd_epi32(_mm_slli_epi32(before, 8), _mm_set1_epi8(1), bytes);
}

// False if x has values that integers cannot hold: NaN, infinity, very large or very small ones.
NOCOPY_INLINE bool to_integers(const Integers& out, const float* x, int64_t k, float offset) {
    constexpr float LARGEST = 1e30f, SMALLEST = 1e-30f;
    // Bits below the exponent's: |x| < 2^(e + 1) = s 2^21, and four times 255 times that fits 32 bits.
    constexpr int32_t BITS = 20, EXPONENT = 0x7f800000;
    for (int64_t i = 0; i < k; i += 32) {
        const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
        const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        const bool ordered = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) == 0;
        if (!ordered || largest > LARGEST || (largest != 0 && largest < SMALLEST)) return false;
        const int32_t exponent = as<int32_t>(largest) & EXPONENT;
        const float s = largest == 0 ? 0 : as<float>(exponent - (BITS << 23));
        const __m512 inverse = _mm512_set1_ps(largest == 0 ? 0 : as<float>(((254 + BITS) << 23) - exponent));
        out.scale[i / 32] = s;
        for (int half = 0; half < 2; half++) {
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(half ? b : a, inverse));
            const __m512i near = _mm512_set1_epi32(128);
            const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, near), 8);
            const __m512i top = _mm512_srai_epi32(_mm512_add_epi32(upper, near), 8);
            const __m128i low = _mm512_cvtepi32_epi8(_mm512_sub_epi32(whole, _mm512_slli_epi32(upper, 8)));
            const __m128i middle = _mm512_cvtepi32_epi8(_mm512_sub_epi32(upper, _mm512_slli_epi32(top, 8)));
            const __m128i high = _mm512_cvtepi32_epi8(top);
            const int64_t at = i + 16 * half;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out.high + at), high);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out.middle + at), middle);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out.low + at), low);
            const __m128i sums = add_fours(add_fours(add_fours(_mm_setzero_si128(), high), middle), low);
            _mm_storeu_ps(out.taken + at / 4, _mm_mul_ps(_mm_cvtepi32_ps(sums), _mm_set1_ps(-offset * s)));
        }
    }
    return true;
}

NOCOPY_INLINE __m256i load32(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

// A half in every lane: broadcast first, for that the load does.
NOCOPY_INLINE __m256 every_lane(uint16_t half) {
    return _mm256_cvtph_ps(_mm_set1_epi16((int16_t)half));
}

// f(g, quants, step, minimum) for each group g of 32 elements of a block: unsigned quants, and what a lane's
// sum is multiplied with.
template <class Function>
NOCOPY_INLINE void groups(const Q8_0& b, const Function& f) {
    const __m256i q = _mm256_xor_si256(load32(b.qs), _mm256_set1_epi8(-128));
    f(0, q, every_lane(b.d), _mm256_setzero_ps());
}
template <class Function>
NOCOPY_INLINE void groups(const Q4_0& b, const Function& f) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b.qs));
    const __m256i both = _mm256_srlv_epi64(_mm256_broadcastsi128_si256(raw), _mm256_setr_epi64x(0, 0, 4, 4));
    f(0, _mm256_and_si256(both, _mm256_set1_epi8(15)), every_lane(b.d), _mm256_setzero_ps());
}

// Eight bytes times a factor.
NOCOPY_INLINE void scaled(float* out, const uint8_t* from, float factor) {
    const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    _mm256_storeu_ps(out,
                     _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(raw)), _mm256_set1_ps(factor)));
}

template <class Block, class Quants, class Function>
NOCOPY_INLINE void affine_groups(const Block& b, const Quants& quants_of, const Function& f) {
    const Affine a = unpack(b.scales);
    float steps[8], minima[8];
    scaled(steps, a.scales, scale(b.d));
    scaled(minima, a.minima, scale(b.dmin));
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
        f(j, quants_of(j), _mm256_broadcast_ss(steps + j), _mm256_broadcast_ss(minima + j));
}
template <class Function>
NOCOPY_INLINE void groups(const Q4_K& b, const Function& f) {
    affine_groups(
        b,
        [&](int j) {
            const __m256i raw = load32(b.qs + 32 * (j / 2));
            return _mm256_and_si256(j % 2 ? _mm256_srli_epi16(raw, 4) : raw, _mm256_set1_epi8(15));
        },
        f);
}
template <class Function>
NOCOPY_INLINE void groups(const Q5_K& b, const Function& f) {
    const __m256i top = load32(b.qh);
    affine_groups(
        b,
        [&](int j) {
            const __m256i raw = load32(b.qs + 32 * (j / 2));
            const __m256i low =
                _mm256_and_si256(j % 2 ? _mm256_srli_epi16(raw, 4) : raw, _mm256_set1_epi8(15));
            const __m256i moved = j < 4 ? _mm256_slli_epi16(top, 4 - j) : _mm256_srli_epi16(top, j - 4);
            return _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(16)));
        },
        f);
}
template <class Function>
NOCOPY_INLINE void groups(const Q6_K& b, const Function& f) {
    const __m512i raw = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b.scales)));
    const __m512 steps = _mm512_mul_ps(_mm512_cvtepi32_ps(raw), _mm512_set1_ps(scale(b.d)));
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
        const int half = g / 4, k = g % 4;
        const __m256i low = load32(b.ql + 64 * half + 32 * (k % 2)), high = load32(b.qh + 32 * half);
        const __m256i nibbles =
            _mm256_and_si256(k / 2 ? _mm256_srli_epi16(low, 4) : low, _mm256_set1_epi8(15));
        const __m256i moved = k < 2 ? _mm256_slli_epi16(high, 4 - 2 * k) : _mm256_srli_epi16(high, 2 * k - 4);
        const __m256i q = _mm256_or_si256(nibbles, _mm256_and_si256(moved, _mm256_set1_epi8(0x30)));
        // Lanes 0 to 3 hold the first 16 elements, 4 to 7 the others, which have a scale of their own.
        const __m512i which = _mm512_castsi256_si512(
            _mm256_add_epi32(_mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1), _mm256_set1_epi32(2 * g)));
        f(g, q, _mm512_castps512_ps256(_mm512_permutexvar_ps(which, steps)), _mm256_setzero_ps());
    }
}

// COLUMNS rows of W times ROWS rows of x. Rows of W are `pitch` bytes apart.
template <int ROWS, int COLUMNS, class Block>
void integer_dots(const uint8_t* w, int64_t pitch, const Integers* x, int64_t k, float* sums,
                  int64_t sums_pitch) {
    __m256 lanes[COLUMNS][ROWS] = {};
    const int64_t ahead = least(COLUMNS * pitch, 1 << 16);
    for (int64_t i = 0; i < k; i += Block::ELEMENTS, w += sizeof(Block)) {
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) {
            const uint8_t* from = w + c * pitch;
            for (size_t line = 0; line < sizeof(Block); line += 64)
                __builtin_prefetch(from + ahead + line, 0, 2);
            groups(*reinterpret_cast<const Block*>(from), [&](int g, __m256i q, __m256 step, __m256 minimum) {
                const int64_t at = i + 32 * g;
#pragma GCC unroll 8
                for (int m = 0; m < ROWS; m++) {
                    __m256i sum = _mm256_dpbusd_epi32(_mm256_setzero_si256(), q, load32(x[m].high + at));
                    sum = _mm256_dpbusd_epi32(_mm256_slli_epi32(sum, 8), q, load32(x[m].middle + at));
                    sum = _mm256_dpbusd_epi32(_mm256_slli_epi32(sum, 8), q, load32(x[m].low + at));
                    const __m256 whole = _mm256_cvtepi32_ps(sum);
                    const __m256 s = _mm256_broadcast_ss(x[m].scale + at / 32);
                    const __m256 taken = _mm256_loadu_ps(x[m].taken + at / 4);
                    __m256& lane = lanes[c][m];
                    if constexpr (HAS_MINIMA<Block>) {
                        lane = _mm256_fmadd_ps(step, _mm256_mul_ps(s, whole), lane);
                        lane = _mm256_fmadd_ps(minimum, taken, lane);
                    } else {
                        lane = _mm256_fmadd_ps(step, _mm256_fmadd_ps(s, whole, taken), lane);
                    }
                }
            });
        }
    }
    for (int c = 0; c < COLUMNS; c++)
        for (int m = 0; m < ROWS; m++) {
            const __m128 four =
                _mm_add_ps(_mm256_castps256_ps128(lanes[c][m]), _mm256_extractf128_ps(lanes[c][m], 1));
            const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            sums[m * sums_pitch + c] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
        }
}

// A chunk of rows of W. Where weights or sums are not finite, the f32 way says what comes out.
template <int ROWS, class Block>
void integer_columns(const Skinny& p, Team& team, const float* memory, int64_t first, int64_t last,
                     float* scratch) {
    constexpr int64_t GROUP = ROWS == 1 ? 4 : 2, SPAN = 64;
    Integers x[ROWS];
    for (int m = 0; m < ROWS; m++) x[m] = integers(const_cast<float*>(memory), m, p.k);
    const int64_t pitch = bytes_of(p.b.dtype, p.b_n);
    for (int64_t start = first; start < last && !overdue(team); start += SPAN) {
        const int64_t n = least(SPAN, last - start);
        float sums[ROWS * SPAN];
        int64_t j = 0;
        for (; j + GROUP <= n; j += GROUP)
            integer_dots<ROWS, GROUP, Block>(at(p.b, (start + j) * p.b_n), pitch, x, p.k, sums + j, SPAN);
        for (; j < n; j++)
            integer_dots<ROWS, 1, Block>(at(p.b, (start + j) * p.b_n), pitch, x, p.k, sums + j, SPAN);
        float check = 0;
        for (int m = 0; m < ROWS; m++)
            for (j = 0; j < n; j++) check += sums[m * SPAN + j] * 0.0f;
        if (check == 0)
            write_out(p, sums, SPAN, start, n);
        else
            along_k<ROWS, Block>(p, team, start, start + n, scratch);
    }
}

// False if this is not a product for integers; nothing has been written then.
NOCOPY_INLINE bool integer_product(const Skinny& p, Team& team, bool alone, float* scratch) {
    if (!is_blocks(p.b.dtype) || p.m > MAX_INTEGER || p.k > VNNI_DEPTH || p.k == 0) return false;
    constexpr int64_t NEEDED = MAX_INTEGER * integer_floats(VNNI_DEPTH) + VNNI_DEPTH;
    static_assert(NEEDED + ALONG_K_FLOATS <= (int64_t)SCRATCH_FLOATS);
    // What many threads read is quantised once, by the caller; what follows is the way with f32.
    float* const memory = alone ? scratch + ALONG_K_FLOATS : shared(team);
    float* const row = memory + MAX_INTEGER * integer_floats(VNNI_DEPTH);
    bool fits = true;
    with_blocks(p.b.dtype, [&]([[maybe_unused]] auto* type) {
        using Block = std::remove_pointer_t<decltype(type)>;
        for (int64_t m = 0; m < p.m && fits; m++) {
            const float* values = view(row, p.a.dtype, at(p.a, m * p.a_m), p.a_k, p.k);
            fits = to_integers(integers(memory, m, p.k), values, p.k, OFFSET<Block>);
        }
        if (!fits) return;
        const auto columns = p.m == 1   ? integer_columns<1, Block>
                             : p.m == 2 ? integer_columns<2, Block>
                                        : integer_columns<3, Block>;
        const auto body = [&](int64_t first, int64_t last, float* mine) {
            columns(p, team, memory, first, last, mine);
        };
        constexpr double READ_NS = 0.05;  // per weight
        if (alone)
            body(0, p.n, scratch);
        else
            parallel(team, cut(team, p.n, READ_NS * (double)(p.m * p.k)), body);
    });
    return fits;
}

}  // namespace nocopy::NOCOPY_LEVEL

#endif
