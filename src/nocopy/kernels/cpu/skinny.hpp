// Products with at most eight rows, above all matrix times vector: B is read once, straight from memory, and
// never packed. Bound: memory bandwidth.
#pragma once

#include <type_traits>

#include "tile.hpp"

namespace nocopy::NOCOPY_LEVEL {

inline constexpr int MAX_SKINNY = 8;

// out[m,n] = scale * sum over k of a[m,k] b[k,n]; strides in elements.
struct Skinny {
    int64_t m, n, k;
    float scale;
    Operand out, a, b;
    int64_t out_m, out_n, a_m, a_k, b_k, b_n;
};

// Some rows of a product.
NOCOPY_INLINE Skinny rows_of(const Skinny& p, int64_t first, int64_t count) {
    Skinny some = p;
    some.m = count;
    some.out.data = at(p.out, first * p.out_m);
    some.a.data = at(p.a, first * p.a_m);
    return some;
}

inline constexpr int64_t SKINNY_DEPTH = 8192;    // k per block: the rows of a stay in the L2 cache
inline constexpr int64_t SKINNY_SUMS = 4096;     // sums per chunk where b runs along n: half an L1 cache
inline constexpr int64_t SKINNY_COLUMNS = 2048;  // and columns
inline constexpr int64_t ALONG_K_FLOATS = (MAX_SKINNY + 4) * SKINNY_DEPTH;  // what along_k may use as scratch

// Rows of a, k .. k + depth, as f32 in out[m][depth].
NOCOPY_INLINE void read_a(float* out, const Skinny& p, int64_t k, int64_t depth) {
    for (int64_t m = 0; m < p.m; m++)
        read(out + m * depth, p.a.dtype, at(p.a, m * p.a_m + k * p.a_k), p.a_k, depth);
}

NOCOPY_INLINE void write_out(const Skinny& p, const float* sums, int64_t pitch, int64_t start, int64_t n) {
    alignas(64) float scaled[TILE];
    for (int64_t m = 0; m < p.m; m++)
        for (int64_t done = 0; done < n; done += TILE) {
            const int64_t part = least(TILE, n - done);
            for (int64_t j = 0; j < part; j++) scaled[j] = sums[m * pitch + done + j] * p.scale;
            write(at(p.out, m * p.out_m + (start + done) * p.out_n), p.out.dtype, p.out_n, scaled, part);
        }
}

// sums[c] += a row of x times each of COLUMNS columns of b, which run along k. `ahead` elements further on
// lie the columns of the next call.
template <int ROWS, int COLUMNS, class T>
void dots(const T* const* columns, const float* a, int64_t depth, float* sums, int64_t pitch, int64_t ahead) {
    F lanes[ROWS][COLUMNS] = {};
    int64_t k = 0;
    for (; k + W <= depth; k += W)
        for (int c = 0; c < COLUMNS; c++) {
            const uintptr_t later = (uintptr_t)(columns[c] + k) + (uintptr_t)ahead * sizeof(T);
            if (ahead) __builtin_prefetch((const void*)later, 0, 2);
            const F b = widen(columns[c] + k);
            for (int m = 0; m < ROWS; m++) lanes[m][c] += load(a + m * depth + k) * b;
        }
    if (k < depth)
        for (int c = 0; c < COLUMNS; c++) {
            T rest[W] = {};
            for (int64_t i = 0; i < depth - k; i++) rest[i] = columns[c][k + i];
            const F b = widen(rest);
            for (int m = 0; m < ROWS; m++) lanes[m][c] += load_part(a + m * depth + k, depth - k) * b;
        }
    for (int c = 0; c < COLUMNS; c++)
        for (int m = 0; m < ROWS; m++) sums[m * pitch + c] += sum_lanes(lanes[m][c]);
}

// A chunk of columns of b, each contiguous along k; T is their element or block type.
template <int ROWS, class T>
void along_k(const Skinny& p, Team& team, int64_t first, int64_t last, float* scratch) {
    // As many sums as there are registers for.
    constexpr int64_t GROUP = ROWS <= 2 ? 4 : ROWS <= 4 ? W / 4 : W / 8 > 0 ? W / 8 : 1;
    constexpr int64_t SPAN = 64;
    constexpr bool BLOCKS = sizeof(T) > sizeof(float);
    static_assert((ROWS + GROUP) * SKINNY_DEPTH <= ALONG_K_FLOATS);
    for (int64_t start = first; start < last; start += SPAN) {
        const int64_t n = least(SPAN, last - start);
        float sums[ROWS * SPAN] = {};
        for (int64_t k = 0; k < p.k && !overdue(team); k += SKINNY_DEPTH) {
            const int64_t depth = least(SKINNY_DEPTH, p.k - k);
            read_a(scratch, p, k, depth);
            using Element = std::conditional_t<BLOCKS, float, T>;
            const Element* columns[SPAN];
            float* const decoded = scratch + ROWS * SKINNY_DEPTH;  // one group at a time
            for (int64_t j = 0; j < n; j++)
                columns[j] = BLOCKS ? reinterpret_cast<const Element*>(decoded + j % GROUP * SKINNY_DEPTH)
                                    : reinterpret_cast<const Element*>(at(p.b, k + (start + j) * p.b_n));
            const auto prepare = [&](int64_t j, int64_t count) {
                if constexpr (BLOCKS)
                    for (int64_t i = j; i < j + count; i++)
                        decode_run<T>(decoded + i % GROUP * SKINNY_DEPTH, at(p.b, k + (start + i) * p.b_n),
                                      depth);
            };
            const int64_t ahead = BLOCKS ? 0 : GROUP * p.b_n;
            int64_t j = 0;
            for (; j + GROUP <= n; j += GROUP) {
                prepare(j, GROUP);
                dots<ROWS, GROUP>(columns + j, scratch, depth, sums + j, SPAN, ahead);
            }
            for (; j < n; j++) {
                prepare(j, 1);
                dots<ROWS, 1>(columns + j, scratch, depth, sums + j, SPAN, ahead);
            }
        }
        write_out(p, sums, SPAN, start, n);
    }
}

inline constexpr int RUNS = 8;  // rows of b that are added in one pass over the sums

// sums[m][j] += factors[m][r] * b[r][j] for n columns. `ahead` floats further on lie the rows of the
// next pass; 0 when they are in a cache anyway.
template <int ROWS>
void add_runs(float* sums, int64_t pitch, const float* const* b, const float (*factors)[RUNS], int64_t n,
              int64_t ahead) {
    const auto add = [&](const F* values, int64_t j) {
        for (int m = 0; m < ROWS; m++) {
            F sum = load(sums + m * pitch + j);
            for (int r = 0; r < RUNS; r++) sum += factors[m][r] * values[r];
            store(sums + m * pitch + j, sum);
        }
    };
    F values[RUNS];
    int64_t j = 0;
    for (; j + W <= n; j += W) {
        for (int r = 0; r < RUNS; r++) {
            values[r] = load(b[r] + j);
            if (ahead)
                __builtin_prefetch((const void*)((uintptr_t)(b[r] + j) + (uintptr_t)ahead * sizeof(float)), 0,
                                   2);
        }
        add(values, j);
    }
    if (j == n) return;
    for (int r = 0; r < RUNS; r++) values[r] = load_part(b[r] + j, n - j);
    add(values, j);
}

// A chunk of columns of b that lie side by side: whole rows of b are scaled and added.
template <int ROWS>
void along_n(const Skinny& p, Team& team, int64_t start, int64_t n, float* scratch) {
    const int64_t pitch = ceil_div(n, W) * W;
    float *a = scratch, *rows = a + ROWS * SKINNY_DEPTH, *sums = rows + RUNS * SKINNY_COLUMNS;
    static_assert(ROWS * SKINNY_DEPTH + (RUNS + ROWS) * SKINNY_COLUMNS <= (int64_t)SCRATCH_FLOATS);
    for (int64_t i = 0; i < ROWS * pitch; i++) sums[i] = 0;
    constexpr int64_t CACHED = 256 * 1024;  // floats of b that stay in an L2 cache
    const bool far = p.b.dtype == NOCOPY_F32 && p.b_n == 1 && p.k * p.n > CACHED;
    for (int64_t block = 0; block < p.k && !overdue(team); block += SKINNY_DEPTH) {
        const int64_t depth = least(SKINNY_DEPTH, p.k - block);
        read_a(a, p, block, depth);
        for (int64_t k = 0; k < depth; k += RUNS) {
            const int64_t used = least(RUNS, depth - k);
            const float* b[RUNS];
            float factors[ROWS][RUNS] = {};
            for (int64_t r = 0; r < RUNS; r++) {
                if (r >= used) {  // nothing is left: zeros, which change no sum
                    float* zeros = rows + r * SKINNY_COLUMNS;
                    for (int64_t j = 0; j < n; j++) zeros[j] = 0;
                    b[r] = zeros;
                    continue;
                }
                b[r] = view(rows + r * SKINNY_COLUMNS, p.b.dtype,
                            at(p.b, (block + k + r) * p.b_k + start * p.b_n), p.b_n, n);
                for (int m = 0; m < ROWS; m++) factors[m][r] = a[m * depth + k + r];
            }
            add_runs<ROWS>(sums, pitch, b, factors, n, far ? RUNS * p.b_k : 0);
        }
    }
    write_out(p, sums, pitch, start, n);
}

template <int ROWS>
void skinny_rows(const Skinny& p, Team& team, bool alone, float* scratch) {
    constexpr double READ_NS = 0.12;  // per element of b, from the L3 cache
    const auto spread = [&](int64_t items, double cost, const auto& body) {
        if (alone)
            body(0, items, scratch);
        else
            parallel(team, cut(team, items, cost), body);
    };
    if (is_blocks(p.b.dtype)) {
        with_blocks(p.b.dtype, [&]([[maybe_unused]] auto* type) {
            using Block = std::remove_pointer_t<decltype(type)>;
            spread(p.n, 2 * READ_NS * (double)p.k, [&](int64_t first, int64_t last, float* mine) {
                along_k<ROWS, Block>(p, team, first, last, mine);
            });
        });
        return;
    }
    if (p.b_k == 1 && p.k > 1 && p.b_n != 1) {
        with_float(p.b.dtype, [&]([[maybe_unused]] auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            spread(p.n, READ_NS * (double)p.k, [&](int64_t first, int64_t last, float* mine) {
                along_k<ROWS, T>(p, team, first, last, mine);
            });
        });
        return;
    }
    constexpr int64_t WIDEST = least(SKINNY_COLUMNS, SKINNY_SUMS / ROWS / W * W), NARROWEST = 8 * W;
    const int64_t share = alone ? p.n : ceil_div(p.n, 2 * (int64_t)threads(team));
    const int64_t n = least(WIDEST, most(NARROWEST, ceil_div(share, W) * W));
    spread(ceil_div(p.n, n), READ_NS * (double)(p.k * n), [&](int64_t first, int64_t last, float* mine) {
        for (int64_t i = first; i < last; i++) along_n<ROWS>(p, team, i * n, least(n, p.n - i * n), mine);
    });
}

// On the whole team, or alone in `scratch`.
NOCOPY_INLINE void skinny(const Skinny& p, Team& team, bool alone, float* scratch) {
    using Rows = void (*)(const Skinny&, Team&, bool, float*);
    static constexpr Rows BY_ROWS[MAX_SKINNY] = {skinny_rows<1>, skinny_rows<2>, skinny_rows<3>,
                                                 skinny_rows<4>, skinny_rows<5>, skinny_rows<6>,
                                                 skinny_rows<7>, skinny_rows<8>};
    BY_ROWS[p.m - 1](p, team, alone, scratch);
}

}  // namespace nocopy::NOCOPY_LEVEL
