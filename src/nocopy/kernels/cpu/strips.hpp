// Products of many rows with weights that are contiguous along k, as x @ W.T is: out^T = W x^T.
//
// A strip of rows of W is decoded to f32 as it lies, a piece of k at a time, and each of its elements is
// broadcast against vectors of x^T; so W is read once, in order, and only x is packed: into panels of NR rows
// [k][NR], shared by the team. Bound: multiply-adds; decoding costs a few percent from 64 rows of x on.
#pragma once

#include "gemm.hpp"
#include "skinny.hpp"

namespace nocopy::NOCOPY_LEVEL {

inline constexpr int64_t STRIP_ROWS = 2 * MR;
inline constexpr int64_t STRIP_DEPTH = 512;         // whole blocks; a strip of it stays in an L1 or L2 cache
inline constexpr int64_t PITCH = STRIP_DEPTH + 16;  // rows of a strip fall into different cache sets
inline constexpr int64_t STRIP_COLUMNS = 2048;      // rows of x at once
static_assert(STRIP_COLUMNS % NR == 0);
// What a thread needs of its scratch memory: the strip, its results, and what packing wants.
inline constexpr int64_t STRIP_FLOATS =
    STRIP_ROWS * PITCH + STRIP_ROWS * STRIP_COLUMNS + (int64_t)NR * STRIP_DEPTH;
static_assert(STRIP_FLOATS < (int64_t)SCRATCH_FLOATS / 2);

// Bytes that will be read next, in rows: fetched line by line while there is something to compute.
struct Ahead {
    const uint8_t* at = nullptr;
    int64_t rows = 0, row_bytes = 0, pitch = 0, done = 0;

    void fetch() {
        constexpr int64_t LINE = 64;
        if (rows == 0) return;
        __builtin_prefetch(at + done, 0, 2);
        done += LINE;
        if (done < row_bytes) return;
        at += pitch, rows--, done = 0;
    }
};

// c[i][v] (+)= sum over k of a[i * A_PITCH + k] * b[k * b_pitch + v * W]: ROWS x VECTORS vectors.
template <int ROWS, int VECTORS, int64_t A_PITCH, class T>
void outer(int64_t depth, const float* a, const T* b, int64_t b_pitch, float* c, int64_t c_pitch, bool add,
           Ahead* ahead) {
    F sums[ROWS][VECTORS] = {};
    for (int64_t k = 0; k < depth; k++, a++, b += b_pitch) {
        if (ahead && k % 2 == 0) ahead->fetch();
        F columns[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) columns[v] = widen(b + v * W);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
            const F row = set(a[i * A_PITCH]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[i][v] += row * columns[v];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            float* to = c + i * c_pitch + v * W;
            store(to, add ? load(to) + sums[i][v] : sums[i][v]);
        }
}

// Any number of rows, in steps that have a kernel.
template <int VECTORS, int64_t A_PITCH, class T = float>
void outer_rows(int64_t rows, int64_t depth, const float* a, const T* b, int64_t b_pitch, float* c,
                int64_t c_pitch, bool add, Ahead* ahead) {
    const auto step = [&](auto kernel, int64_t size) {
        kernel(depth, a, b, b_pitch, c, c_pitch, add, ahead);
        rows -= size;
        a += size * A_PITCH;
        c += size * c_pitch;
    };
    while (rows >= MR) step(outer<MR, VECTORS, A_PITCH, T>, MR);
    if (MR > 8 && rows >= 8) step(outer<8, VECTORS, A_PITCH, T>, 8);
    if (rows >= 4) step(outer<4, VECTORS, A_PITCH, T>, 4);
    if (rows >= 2) step(outer<2, VECTORS, A_PITCH, T>, 2);
    if (rows >= 1) step(outer<1, VECTORS, A_PITCH, T>, 1);
}

// What is read of W after the elements before k of these rows: their next piece, or the next strip's first.
NOCOPY_INLINE Ahead after(const Skinny& p, int64_t first, int64_t rows, int64_t k) {
    if (k >= p.k) first += rows, k = 0;
    const uint8_t *from = at(p.b, first * p.b_n + k), *next = at(p.b, (first + 1) * p.b_n + k);
    const uint8_t* to = at(p.b, first * p.b_n + least(k + STRIP_DEPTH, p.k));
    return {from, least(STRIP_ROWS, p.n - first), to - from, next - from, 0};
}

// Rows `first` .. first + rows of W times `columns` packed rows of x, which begin at row `start` of a.
NOCOPY_INLINE void strip(const Skinny& p, int64_t first, int64_t rows, int64_t start, int64_t columns,
                         const float* x, float* scratch) {
    float *w = scratch, *results = w + STRIP_ROWS * PITCH;
    const int64_t pitch = ceil_div(columns, NR) * NR;
    for (int64_t k = 0; k < p.k; k += STRIP_DEPTH) {
        const int64_t depth = least(STRIP_DEPTH, p.k - k);
        for (int64_t r = 0; r < rows; r++)
            read(w + r * PITCH, p.b.dtype, at(p.b, (first + r) * p.b_n + k), 1, depth);
        Ahead ahead = after(p, first, rows, k + depth);
        for (int64_t j = 0; j < columns; j += NR) {
            const float* panel = x + j * p.k + k * NR;
            const auto kernel = columns - j <= W ? outer_rows<1, PITCH> : outer_rows<NV, PITCH>;
            kernel(rows, depth, w, panel, NR, results + j, pitch, k > 0, &ahead);
        }
    }
    alignas(64) float values[STRIP_ROWS];
    for (int64_t j = 0; j < columns; j++) {
        for (int64_t r = 0; r < rows; r++) values[r] = p.scale * results[r * pitch + j];
        write(at(p.out, (start + j) * p.out_m + first * p.out_n), p.out.dtype, p.out_n, values, rows);
    }
}

// How many rows of x fit `floats`, in whole panels; 0 if not even one panel does.
NOCOPY_INLINE int64_t strip_columns(const Skinny& p, int64_t floats) {
    return least(STRIP_COLUMNS, floats / most(p.k, 1) / NR * NR);
}

// The team's panels are shared; alone they follow the strip in `scratch`.
NOCOPY_INLINE int64_t room_for_panels(bool alone) {
    return alone ? (int64_t)SCRATCH_FLOATS - STRIP_FLOATS : (int64_t)SHARED_FLOATS;
}

// Needs k > 0 and room for one panel.
NOCOPY_INLINE void strips(const Skinny& p, Team& team, bool alone, float* scratch) {
    const auto spread = [&](int64_t items, double cost, const auto& body) {
        if (alone)
            body(0, items, scratch);
        else
            parallel(team, cut(team, items, cost), body);
    };
    float* const x = alone ? scratch + STRIP_FLOATS : shared(team);
    const int64_t most_columns = strip_columns(p, room_for_panels(alone));
    const int64_t pieces = ceil_div(p.k, STRIP_DEPTH);
    for (int64_t start = 0; start < p.m && !overdue(team); start += most_columns) {
        const int64_t columns = least(most_columns, p.m - start);
        spread(ceil_div(columns, NR) * pieces, PACK_NS * (double)(NR * least(STRIP_DEPTH, p.k)),
               [&](int64_t first, int64_t last, float* mine) {
                   for (int64_t i = first; i < last; i++) {
                       const int64_t j = i / pieces * NR, k = i % pieces * STRIP_DEPTH;
                       pack<NR>(x + j * p.k + k * NR, p.a, (start + j) * p.a_m + k * p.a_k, p.a_m, p.a_k,
                                least(NR, columns - j), least(STRIP_DEPTH, p.k - k), mine);
                   }
               });
        const double cost = MULTIPLY_NS * (double)(STRIP_ROWS * p.k) * (double)most(columns, W);
        spread(ceil_div(p.n, STRIP_ROWS), cost, [&](int64_t first, int64_t last, float* mine) {
            for (int64_t i = first; i < last && !overdue(team); i++)
                strip(p, i * STRIP_ROWS, least(STRIP_ROWS, p.n - i * STRIP_ROWS), start, columns, x, mine);
        });
    }
}

}  // namespace nocopy::NOCOPY_LEVEL
