// One to eight rows times weights in blocks, by integer dot products (AVX-512 VNNI), up to three at a time:
// the next ones find the weights in a cache. What a row gives does not depend on how many there are.
//
// Each block of 32 of x becomes integers of 16 bits and a scale: x = s (256 high + low). That rounds x to
// 2^-16 of the block's largest element, 256 times finer than 8 bits would. Weights stay as they are stored,
// as unsigned bytes q with w = step (q - offset), and two `vpdpbusd` give the sum of q (256 high + low)
// exactly. What offset takes away was added up beforehand, for each group of four elements: that is what a
// lane holds. Bound: memory bandwidth; per 32 weights about 12 instructions a row of x.
#pragma once

#include <utility>

#include "skinny.hpp"

#if defined(__AVX512VNNI__)

namespace nocopy::NOCOPY_LEVEL {

// Rows of x that there are registers for.
inline constexpr int64_t MAX_INTEGER = 3;
inline constexpr int64_t INTEGER_SPAN = 64;  // rows of W that stay in the L2 cache meanwhile
// k up to which these rows fit a thread's scratch memory, beside what the f32 way wants.
inline constexpr int64_t VNNI_DEPTH = 32768;
// Elements that one step takes: two groups of 32, a group in each half of a vector. A lane sums four.
inline constexpr int64_t STEP = 64;

// One row of x, with zeros up to a multiple of STEP.
struct Integers {
    int8_t *high, *low;  // [k]
    float* taken;        // [k / 4]: -offset * s * sum of four
    float* scale;        // [k / 4]: s, and less where quants are read without shifting them down
};
inline constexpr int64_t integer_floats(int64_t k) {
    return ceil_div(k, STEP) * STEP;
}
NOCOPY_INLINE Integers integers(float* memory, int64_t row, int64_t k) {
    const int64_t padded = ceil_div(k, STEP) * STEP;
    float* start = memory + row * integer_floats(k);
    int8_t* high = reinterpret_cast<int8_t*>(start);
    return {high, high + padded, start + 2 * (padded / 4), start + 3 * (padded / 4)};
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
// Lanes of a step whose quants are nibbles that stay in the upper half of their bytes, so 16 times as large.
template <class Block>
inline constexpr uint16_t UPPER_LANES = 0;
template <>
inline constexpr uint16_t UPPER_LANES<Q4_0> = 0xf0f0;
template <>
inline constexpr uint16_t UPPER_LANES<Q4_K> = 0xff00;

// The sum of each four of W bytes, on top of 256 times `before`.
NOCOPY_INLINE __m128i add_fours(__m128i before, __m128i bytes) {
    return _mm_dpbusd_epi32(_mm_slli_epi32(before, 8), _mm_set1_epi8(1), bytes);
}

// False if x has values that integers cannot hold: NaN, infinity, very large or very small ones.
template <class Block>
bool to_integers(const Integers& out, const float* x, int64_t k) {
    constexpr float LARGEST = 1e30f, SMALLEST = 1e-30f;
    constexpr float MOST = 127 * 256;  // high is a signed byte, low too
    for (int64_t i = 0; i < k; i += 32) {
        const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
        const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        const bool ordered = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) == 0;
        if (!ordered || largest > LARGEST || (largest != 0 && largest < SMALLEST)) return false;
        const float s = largest / MOST;
        const __m512 inverse = _mm512_set1_ps(largest == 0 ? 0 : MOST / largest);
        const uint32_t upper = UPPER_LANES<Block> >> (i / 32 % 2 * 8) & 0xff;
        const __m256 scales =
            _mm256_mask_blend_ps((__mmask8)upper, _mm256_set1_ps(s), _mm256_set1_ps(s / 16));
        _mm256_storeu_ps(out.scale + i / 4, scales);
        for (int half = 0; half < 2; half++) {
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(half ? b : a, inverse));
            const __m512i top = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
            const __m128i low = _mm512_cvtepi32_epi8(_mm512_sub_epi32(whole, _mm512_slli_epi32(top, 8)));
            const __m128i high = _mm512_cvtepi32_epi8(top);
            const int64_t at = i + 16 * half;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out.high + at), high);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out.low + at), low);
            const __m128i sums = add_fours(add_fours(_mm_setzero_si128(), high), low);
            _mm_storeu_ps(out.taken + at / 4,
                          _mm_mul_ps(_mm_cvtepi32_ps(sums), _mm_set1_ps(-OFFSET<Block> * s)));
        }
    }
    if (k % STEP == 32) {  // a last group of zeros
        for (int8_t* part : {out.high, out.low})
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(part + k), _mm256_setzero_si256());
        for (float* part : {out.taken, out.scale}) _mm256_storeu_ps(part + k / 4, _mm256_setzero_ps());
    }
    return true;
}

NOCOPY_INLINE __m256i load32(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
NOCOPY_INLINE __m512i load64(const void* from) {
    return _mm512_loadu_si512(from);
}

// `lower` in the first half, `upper` in the second.
NOCOPY_INLINE __m512i join(__m256i lower, __m256i upper) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
}
NOCOPY_INLINE __m512 halves(float lower, float upper) {
    return _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(lower), _mm512_set1_ps(upper));
}
// Two f16 as f32, each in its half: broadcast first, for that the load does.
NOCOPY_INLINE __m512 halves(uint16_t lower, uint16_t upper) {
    return _mm512_cvtph_ps(_mm256_mask_set1_epi16(_mm256_set1_epi16((int16_t)lower), 0xff00, (int16_t)upper));
}

// f(quants, step, minimum) for each step of 64 elements from block i on: unsigned quants, and what a lane's
// sum is multiplied with. Blocks of 32 come in pairs; a last one, whose x is zeros in the second half, comes
// with itself.
template <class Function>
NOCOPY_INLINE void steps(const Q8_0* b, bool pair, const Function& f) {
    const Q8_0& second = b[pair];
    const __m512i q = _mm512_xor_si512(join(load32(b->qs), load32(second.qs)), _mm512_set1_epi8(-128));
    f(0, q, halves(b->d, second.d), _mm512_setzero_ps());
}
template <class Function>
NOCOPY_INLINE void steps(const Q4_0* b, bool pair, const Function& f) {
    const Q4_0& second = b[pair];
    const __m512i lower = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b->qs)));
    const __m512i both = _mm512_mask_broadcast_i32x4(
        lower, 0xff00, _mm_loadu_si128(reinterpret_cast<const __m128i*>(second.qs)));
    const __m512i nibbles =
        _mm512_set4_epi64(-0xf0f0f0f0f0f0f10, -0xf0f0f0f0f0f0f10, 0xf0f0f0f0f0f0f0f, 0xf0f0f0f0f0f0f0f);
    f(0, _mm512_and_si512(both, nibbles), halves(b->d, second.d), _mm512_setzero_ps());
}

// Eight bytes times a factor.
NOCOPY_INLINE void scaled(float* out, const uint8_t* from, float factor) {
    const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    _mm256_storeu_ps(out,
                     _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(raw)), _mm256_set1_ps(factor)));
}

// For Q4_K and Q5_K: a step is 32 bytes, whose lower nibbles are one group and whose upper ones the next.
template <class Block, class Quants, class Function>
NOCOPY_INLINE void affine_steps(const Block& b, const Quants& quants_of, const Function& f) {
    const Affine a = unpack(b.scales);
    float factors[8], minima[8];
    scaled(factors, a.scales, scale(b.d));
    scaled(minima, a.minima, scale(b.dmin));
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i raw = _mm512_broadcast_i64x4(load32(b.qs + 32 * j));
        f(j, quants_of(j, raw), halves(factors[2 * j], factors[2 * j + 1]),
          halves(minima[2 * j], minima[2 * j + 1]));
    }
}
template <class Function>
NOCOPY_INLINE void steps(const Q4_K* b, bool, const Function& f) {
    const __m512i nibbles = join(_mm256_set1_epi8(0x0f), _mm256_set1_epi8(-16));
    affine_steps(*b, [&](int, __m512i raw) { return _mm512_and_si512(raw, nibbles); }, f);
}
template <class Function>
NOCOPY_INLINE void steps(const Q5_K* b, bool, const Function& f) {
    const __m512i top = _mm512_broadcast_i64x4(load32(b->qh));
    affine_steps(
        *b,
        [&](int j, __m512i raw) {
            // The second half's nibbles go down; bits 2j and 2j + 1 of each byte go to bit 4.
            const __m512i down = join(_mm256_setzero_si256(), _mm256_set1_epi16(4));
            const __m512i low = _mm512_and_si512(_mm512_srlv_epi16(raw, down), _mm512_set1_epi8(15));
            const auto words = [](int lower, int upper) {
                return join(_mm256_set1_epi16((int16_t)most(lower, 0)),
                            _mm256_set1_epi16((int16_t)most(upper, 0)));
            };
            const __m512i raised = _mm512_sllv_epi16(top, words(4 - 2 * j, 3 - 2 * j));
            const __m512i moved = _mm512_srlv_epi16(raised, words(2 * j - 4, 2 * j - 3));
            return _mm512_or_si512(low, _mm512_and_si512(moved, _mm512_set1_epi8(16)));
        },
        f);
}
template <class Function>
NOCOPY_INLINE void steps(const Q6_K* b, bool, const Function& f) {
    const __m512i raw = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b->scales)));
    const __m512 factors = _mm512_mul_ps(_mm512_cvtepi32_ps(raw), _mm512_set1_ps(scale(b->d)));
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        // A half of the block is 128 elements: two steps, of the lower and of the upper nibbles of 64 bytes.
        const int half = j / 2, upper = j % 2;
        const __m512i bytes = _mm512_loadu_si512(b->ql + 64 * half);
        const __m512i nibbles =
            _mm512_and_si512(upper ? _mm512_srli_epi16(bytes, 4) : bytes, _mm512_set1_epi8(15));
        const __m512i high = _mm512_broadcast_i64x4(load32(b->qh + 32 * half));
        const __m512i right =
            join(_mm256_set1_epi16((int16_t)(4 * upper)), _mm256_set1_epi16((int16_t)(4 * upper + 2)));
        const __m512i two = _mm512_and_si512(_mm512_srlv_epi16(high, right), _mm512_set1_epi8(3));
        // Each 16 elements, four lanes, have a scale of their own.
        const __m512i which = _mm512_add_epi32(
            _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), _mm512_set1_epi32(4 * j));
        f(j, _mm512_or_si512(nibbles, _mm512_slli_epi16(two, 4)), _mm512_permutexvar_ps(which, factors),
          _mm512_setzero_ps());
    }
}

// f(std::integral_constant<int, 0>{}), then 1, up to N: known before the compiler decides what lies in
// registers.
template <int N, class Function>
NOCOPY_INLINE void unrolled(const Function& f) {
    [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
        (f(std::integral_constant<int, I>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

// COLUMNS rows of W times ROWS rows of x. Rows of W are `pitch` bytes apart.
template <int ROWS, int COLUMNS, class Block>
void integer_dots(const uint8_t* w, int64_t pitch, const Integers* x, int64_t k, float* sums,
                  int64_t sums_pitch) {
    constexpr int64_t BLOCKS = Block::ELEMENTS < STEP ? STEP / Block::ELEMENTS : 1;
    constexpr int64_t NBYTES = BLOCKS * (int64_t)sizeof(Block);
    __m512 lanes[COLUMNS][ROWS] = {};
    const int64_t ahead = least(COLUMNS * pitch, 1 << 16);
    for (int64_t i = 0; i < k; i += BLOCKS * Block::ELEMENTS, w += NBYTES) {
        const bool pair = k - i > Block::ELEMENTS;
        unrolled<COLUMNS>([&](auto c) __attribute__((always_inline)) {
            const uint8_t* from = w + c * pitch;
            for (int64_t line = 0; line < NBYTES; line += 64) __builtin_prefetch(from + ahead + line, 0, 2);
            const auto step = [&](int j, __m512i q, __m512 factor,
                                  __m512 minimum) __attribute__((always_inline)) {
                const int64_t at = i + STEP * j;
                unrolled<ROWS>([&](auto m) __attribute__((always_inline)) {
                    const Integers& row = x[m];
                    __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, load64(row.high + at));
                    sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 8), q, load64(row.low + at));
                    const __m512 whole = _mm512_cvtepi32_ps(sum);
                    const __m512 s = _mm512_loadu_ps(row.scale + at / 4);
                    const __m512 taken = _mm512_loadu_ps(row.taken + at / 4);
                    __m512& lane = lanes[c][m];
                    if constexpr (HAS_MINIMA<Block>) {
                        lane = _mm512_fmadd_ps(factor, _mm512_mul_ps(s, whole), lane);
                        lane = _mm512_fmadd_ps(minimum, taken, lane);
                    } else {
                        lane = _mm512_fmadd_ps(factor, _mm512_fmadd_ps(s, whole, taken), lane);
                    }
                });
            };
            steps(reinterpret_cast<const Block*>(from), pair, step);
        });
    }
    for (int c = 0; c < COLUMNS; c++)
        for (int m = 0; m < ROWS; m++) sums[m * sums_pitch + c] = _mm512_reduce_add_ps(lanes[c][m]);
}

// A chunk of rows of W. Where weights or sums are not finite, the f32 way says what comes out.
template <int ROWS, class Block>
void integer_columns(const Skinny& p, Team& team, const float* memory, int64_t first, int64_t last,
                     float* scratch) {
    constexpr int64_t GROUP = ROWS == 1 ? 4 : 2, SPAN = INTEGER_SPAN;
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
    if (!is_blocks(p.b.dtype) || p.m > (alone ? MAX_INTEGER : MAX_SKINNY) || p.k > VNNI_DEPTH || p.k == 0)
        return false;
    constexpr int64_t NEEDED = MAX_INTEGER * integer_floats(VNNI_DEPTH) + VNNI_DEPTH;
    static_assert(NEEDED + ALONG_K_FLOATS <= (int64_t)SCRATCH_FLOATS);
    // What many threads read is quantised once, by the caller; what follows is the way with f32.
    float* const memory = alone ? scratch + ALONG_K_FLOATS : shared(team);
    float* const row = memory + (alone ? MAX_INTEGER : MAX_SKINNY) * integer_floats(VNNI_DEPTH);
    bool fits = true;
    with_blocks(p.b.dtype, [&]([[maybe_unused]] auto* type) {
        using Block = std::remove_pointer_t<decltype(type)>;
        for (int64_t m = 0; m < p.m && fits; m++) {
            const float* values = view(row, p.a.dtype, at(p.a, m * p.a_m), p.a_k, p.k);
            fits = to_integers<Block>(integers(memory, m, p.k), values, p.k);
        }
        if (!fits) return;
        const int64_t parts = ceil_div(p.m, MAX_INTEGER), each = ceil_div(p.m, parts);
        const auto body = [&](int64_t first, int64_t last, float* mine) {
            for (int64_t start = first; start < last; start += INTEGER_SPAN)
                for (int64_t m = 0; m < p.m; m += each) {
                    const Skinny some = rows_of(p, m, least(each, p.m - m));
                    const auto columns = some.m == 1   ? integer_columns<1, Block>
                                         : some.m == 2 ? integer_columns<2, Block>
                                                       : integer_columns<3, Block>;
                    columns(some, team, memory + m * integer_floats(p.k), start,
                            least(last, start + INTEGER_SPAN), mine);
                }
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
