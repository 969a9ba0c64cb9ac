// Products with at most four rows, above all matrix times vector: B is read once, straight from memory, and
// never packed. Bound: memory bandwidth.
#pragma once

#include <type_traits>

#include "tile.hpp"

namespace nocopy::NOCOPY_LEVEL {

inline constexpr int MAX_SKINNY = 4;

// out[m,n] = scale * sum over k of a[m,k] b[k,n]; strides in elements.
struct Skinny {
    int64_t m, n, k;
    float scale;
    Operand out, a, b;
    int64_t out_m, out_n, a_m, a_k, b_k, b_n;
};

inline constexpr int64_t SKINNY_DEPTH = 8192;   // k per block: the rows of a stay in the L2 cache
inline constexpr int64_t SKINNY_COLUMNS = 512;  // columns per chunk where b runs along n

// Rows of a, k .. k + depth, as f32 in out[m][depth].
NOCOPY_INLINE void read_a(float* out, const Skinny& p, int64_t k, int64_t depth) {
    for (int64_t m = 0; m < p.m; m++)
        read(out + m * depth, p.a.dtype, at(p.a, m * p.a_m + k * p.a_k), p.a_k, depth);
}

NOCOPY_INLINE void write_out(const Skinny& p, const float* sums, int64_t pitch, int64_t start, int64_t n) {
    alignas(64) float scaled[SKINNY_COLUMNS];
    for (int64_t m = 0; m < p.m; m++) {
        for (int64_t j = 0; j < n; j++) scaled[j] = sums[m * pitch + j] * p.scale;
        write(at(p.out, m * p.out_m + start * p.out_n), p.out.dtype, p.out_n, scaled, n);
    }
}

// sums[c] += a row of x times each of COLUMNS columns of b, which run along k.
template <int ROWS, int COLUMNS, class T>
void dots(const T* const* columns, const float* a, int64_t depth, float* sums, int64_t pitch) {
    F lanes[ROWS][COLUMNS] = {};
    int64_t k = 0;
    for (; k + W <= depth; k += W)
        for (int c = 0; c < COLUMNS; c++) {
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

// A chunk of columns of b, each contiguous along k.
template <int ROWS, class T>
void along_k(const Skinny& p, Team& team, int64_t first, int64_t last, float* scratch) {
    constexpr int64_t GROUP = 4, SPAN = 64;
    for (int64_t start = first; start < last; start += SPAN) {
        const int64_t n = least(SPAN, last - start);
        float sums[ROWS * SPAN] = {};
        for (int64_t k = 0; k < p.k && !overdue(team); k += SKINNY_DEPTH) {
            const int64_t depth = least(SKINNY_DEPTH, p.k - k);
            read_a(scratch, p, k, depth);
            const T* columns[SPAN];
            for (int64_t j = 0; j < n; j++)
                columns[j] = reinterpret_cast<const T*>(at(p.b, k + (start + j) * p.b_n));
            int64_t j = 0;
            for (; j + GROUP <= n; j += GROUP) dots<ROWS, GROUP>(columns + j, scratch, depth, sums + j, SPAN);
            for (; j < n; j++) dots<ROWS, 1>(columns + j, scratch, depth, sums + j, SPAN);
        }
        write_out(p, sums, SPAN, start, n);
    }
}

// A chunk of columns of b that lie side by side: whole rows of b are scaled and added, four at a time.
template <int ROWS>
void along_n(const Skinny& p, Team& team, int64_t start, int64_t n, float* scratch) {
    constexpr int DEPTH = 4;
    float *a = scratch, *rows = a + ROWS * SKINNY_DEPTH, *sums = rows + DEPTH * SKINNY_COLUMNS;
    for (int64_t i = 0; i < ROWS * SKINNY_COLUMNS; i++) sums[i] = 0;
    for (int64_t i = 0; i < DEPTH * SKINNY_COLUMNS; i++) rows[i] = 0;
    for (int64_t block = 0; block < p.k && !overdue(team); block += SKINNY_DEPTH) {
        const int64_t depth = least(SKINNY_DEPTH, p.k - block);
        read_a(a, p, block, depth);
        for (int64_t k = 0; k < depth; k += DEPTH) {
            const float* b[DEPTH];
            float factors[ROWS][DEPTH] = {};
            for (int d = 0; d < DEPTH; d++) {
                const int64_t row = least(k + d, depth - 1);
                b[d] = view(rows + d * SKINNY_COLUMNS, p.b.dtype,
                            at(p.b, (block + row) * p.b_k + start * p.b_n), p.b_n, n);
                for (int m = 0; m < ROWS && k + d < depth; m++) factors[m][d] = a[m * depth + k + d];
            }
            const int64_t used = least(DEPTH, depth - k);
            for (int64_t j = 0; j < n; j += W) {
                const int64_t lanes = least(W, n - j);
                F values[DEPTH];
                for (int d = 0; d < DEPTH; d++)
                    values[d] = d >= used ? F{} : lanes == W ? load(b[d] + j) : load_part(b[d] + j, lanes);
                for (int m = 0; m < ROWS; m++) {
                    F sum = load(sums + m * SKINNY_COLUMNS + j);
                    for (int d = 0; d < DEPTH; d++) sum += factors[m][d] * values[d];
                    store(sums + m * SKINNY_COLUMNS + j, sum);
                }
            }
        }
    }
    write_out(p, sums, SKINNY_COLUMNS, start, n);
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
    if (p.b_k == 1 && p.k > 1 && p.b_n != 1) {
        with_float(p.b.dtype, [&]([[maybe_unused]] auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            spread(p.n, READ_NS * (double)p.k, [&](int64_t first, int64_t last, float* mine) {
                along_k<ROWS, T>(p, team, first, last, mine);
            });
        });
        return;
    }
    const int64_t chunks = ceil_div(p.n, SKINNY_COLUMNS), n = ceil_div(ceil_div(p.n, chunks), W) * W;
    spread(ceil_div(p.n, n), READ_NS * (double)(p.k * n), [&](int64_t first, int64_t last, float* mine) {
        for (int64_t i = first; i < last; i++) along_n<ROWS>(p, team, i * n, least(n, p.n - i * n), mine);
    });
}

// On the whole team, or alone in `scratch`.
NOCOPY_INLINE void skinny(const Skinny& p, Team& team, bool alone, float* scratch) {
    if (p.m == 1) return skinny_rows<1>(p, team, alone, scratch);
    if (p.m == 2) return skinny_rows<2>(p, team, alone, scratch);
    if (p.m == 3) return skinny_rows<3>(p, team, alone, scratch);
    skinny_rows<4>(p, team, alone, scratch);
}

}  // namespace nocopy::NOCOPY_LEVEL
