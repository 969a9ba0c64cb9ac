// The matrix product that matmul and conv2d share: C[m,n] = scale * sum over k of A[m,k] B[k,n] + bias[m].
//
// The classic scheme: A and B are packed, as f32 and zero-padded, into panels of MR rows and NR columns of up
// to `depth` k; a micro-kernel keeps an MR x NR tile of C in registers. Packing is where strides and element
// types are dealt with; the caller gives the functions that pack. Bound: one multiply-add of W lanes per
// cycle and port; see bench/matmul.py.
#pragma once

#include "tile.hpp"

namespace nocopy::NOCOPY_LEVEL {

// Tile of C in registers: MR x NV vectors of W, leaving room for NV vectors of B and one element of A.
#if defined(__AVX512F__)
inline constexpr int MR = 12, NV = 2;
#elif defined(__AVX2__)
inline constexpr int MR = 6, NV = 2;
#elif defined(__aarch64__)
inline constexpr int MR = 8, NV = 2;
#else
inline constexpr int MR = 4, NV = 2;
#endif
inline constexpr int NR = NV * W;

// Sizes of the blocks that are packed at once. Shared by a team: A 1.5 MiB and B 3 MiB lie in the L3 cache,
// of which each thread's part of A stays in its L2. On one thread: all within its scratch memory.
struct Blocks {
    int64_t rows, columns, depth;
};
inline constexpr Blocks TEAM_BLOCKS{2016, 2048, 384};
inline constexpr Blocks LONE_BLOCKS{192, 256, 256};
static_assert(TEAM_BLOCKS.rows % MR == 0 && LONE_BLOCKS.rows % MR == 0 && LONE_BLOCKS.columns % NR == 0);
static_assert((TEAM_BLOCKS.rows + TEAM_BLOCKS.columns) * TEAM_BLOCKS.depth +
                  TEAM_BLOCKS.rows * TEAM_BLOCKS.columns <=
              (int64_t)SHARED_FLOATS);
inline constexpr int64_t PACK_FLOATS = NR * TEAM_BLOCKS.depth;  // what a packing function may use as scratch
static_assert((LONE_BLOCKS.rows + LONE_BLOCKS.columns) * LONE_BLOCKS.depth +
                  LONE_BLOCKS.rows * LONE_BLOCKS.columns + PACK_FLOATS <=
              (int64_t)SCRATCH_FLOATS);

// Where a tile of C goes: f32 rows `pitch` floats apart.
struct Target {
    float* c;
    int64_t pitch;
    bool add;  // to what is there (a later block of k)
    float scale;
    const float* bias;  // one value for each row, or NULL
};

// ROWS x VECTORS vectors of C from panels of MR rows and NR columns.
template <int ROWS, int VECTORS>
void micro(int64_t depth, const float* a, const float* b, const Target& to) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) __builtin_prefetch(to.c + i * to.pitch, 1);
    F sums[ROWS][VECTORS] = {};
    for (int64_t k = 0; k < depth; k++, a += MR, b += NR) {
        F columns[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) columns[v] = load(b + v * W);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
            const F row = set(a[i]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[i][v] += row * columns[v];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
        float* c = to.c + i * to.pitch;
        const F start = to.bias ? set(to.bias[i]) : F{};
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const F before = to.add ? load(c + v * W) : start;
            store(c + v * W, sums[i][v] * to.scale + before);
        }
    }
}

// Any number of rows up to MR, in steps that have a kernel.
template <int VECTORS>
void micro_rows(int64_t rows, int64_t depth, const float* a, const float* b, Target to) {
    const auto step = [&](auto kernel, int64_t size) {
        kernel(depth, a, b, to);
        rows -= size;
        a += size;
        to.c += size * to.pitch;
        if (to.bias) to.bias += size;
    };
    if (rows >= MR) return micro<MR, VECTORS>(depth, a, b, to);
    if (MR > 8 && rows >= 8) step(micro<8, VECTORS>, 8);
    if (rows >= 4) step(micro<4, VECTORS>, 4);
    if (rows >= 2) step(micro<2, VECTORS>, 2);
    if (rows >= 1) step(micro<1, VECTORS>, 1);
}

// A tile of which only rows x columns exist in memory, columns < NR.
NOCOPY_INLINE void micro_edge(int64_t rows, int64_t columns, int64_t depth, const float* a, const float* b,
                              const Target& to) {
    alignas(64) float tile[MR * NR];
    const Target inner{tile, NR, false, to.scale, to.add ? nullptr : to.bias};
    columns <= W ? micro_rows<1>(rows, depth, a, b, inner) : micro_rows<NV>(rows, depth, a, b, inner);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j += W) {
            const int64_t lanes = least(W, columns - j);
            float* c = to.c + i * to.pitch + j;
            const F value = load(tile + i * NR + j);
            store_part(c, to.add ? value + load_part(c, lanes) : value, lanes);
        }
}

// out[k][R] from R contiguous rows: 4 x 4 blocks are transposed in registers.
template <int R>
void interleave(float* out, const float* const* rows, int64_t depth) {
    typedef float Quad __attribute__((vector_size(16)));
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
        int i = 0;
        for (; i + 4 <= R; i += 4) {
            const auto r0 = load_bits<Quad>(rows[i] + k), r1 = load_bits<Quad>(rows[i + 1] + k);
            const auto r2 = load_bits<Quad>(rows[i + 2] + k), r3 = load_bits<Quad>(rows[i + 3] + k);
            const Quad low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);
            const Quad low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
            const Quad high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
            const Quad high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
            float* to = out + k * R + i;
            store_bits(to, __builtin_shufflevector(low01, low23, 0, 1, 4, 5));
            store_bits(to + R, __builtin_shufflevector(low01, low23, 2, 3, 6, 7));
            store_bits(to + 2 * R, __builtin_shufflevector(high01, high23, 0, 1, 4, 5));
            store_bits(to + 3 * R, __builtin_shufflevector(high01, high23, 2, 3, 6, 7));
        }
        for (; i < R; i++)
            for (int64_t j = k; j < k + 4; j++) out[j * R + i] = rows[i][j];
    }
    for (; k < depth; k++)
        for (int i = 0; i < R; i++) out[k * R + i] = rows[i][k];
}

// Packs up to R lines of `depth` elements into out[depth][R], zero-padded. `line_stride` and `stride` are in
// elements. Reads along whichever axis is closer together.
template <int R>
void pack(float* out, const Operand& x, int64_t start, int64_t line_stride, int64_t stride, int64_t lines,
          int64_t depth, float* scratch) {
    if (lines > 1 && line_stride <= stride) {
        with_float(x.dtype, [&](auto* type) {
            const auto* from = reinterpret_cast<decltype(type)>(at(x, start));
            for (int64_t k = 0; k < depth; k++, out += R, from += stride) {
                if (lines == R && line_stride == 1 && R % W == 0) {
                    for (int i = 0; i + W <= R; i += W) store(out + i, widen(from + i));
                    continue;
                }
                read_row(out, from, line_stride, lines);
                for (int64_t i = lines; i < R; i++) out[i] = 0;
            }
        });
        return;
    }
    const float* rows[R];
    for (int64_t i = 0; i < R; i++) {
        float* buffer = scratch + i * depth;
        rows[i] = i < lines ? view(buffer, x.dtype, at(x, start + i * line_stride), stride, depth) : nullptr;
        if (i < lines) continue;
        for (int64_t k = 0; k < depth; k++) buffer[k] = 0;
        rows[i] = buffer;
    }
    interleave<R>(out, rows, depth);
}

// One product. PackA and PackB: (out, first line, lines, first k, depth, scratch). Put: (row, column, n,
// values) stores finished f32 values; it is not called when C is f32 with contiguous rows (`c` is not NULL).
template <class PackA, class PackB, class Put>
struct Product {
    int64_t m, n, k;
    float scale;
    Operand bias;  // [m], or absent
    float* c;
    int64_t pitch;
    const PackA& pack_a;
    const PackB& pack_b;
    const Put& put;
};

// Runs bodies on a team, its packed panels in shared memory, or on one thread in that thread's scratch
// memory.
struct TeamRunner {
    Team& team;
    float* memory() const { return shared(team); }
    Blocks blocks() const { return TEAM_BLOCKS; }
    int64_t size() const { return threads(team); }
    bool stopped() const { return expired(team); }
    template <class Body>
    void operator()(int64_t items, double cost, const Body& body) const {
        parallel(team, cut(team, items, cost), body);
    }
};
struct LoneRunner {
    Team& team;
    float* scratch;
    float* memory() const { return scratch + PACK_FLOATS; }
    Blocks blocks() const { return LONE_BLOCKS; }
    int64_t size() const { return 1; }
    bool stopped() const { return overdue(team); }
    template <class Body>
    void operator()(int64_t items, double, const Body& body) const {
        body(0, items, scratch);
    }
};

// Nanoseconds of one core, to cut work by: packing an element; a multiply-add.
inline constexpr double PACK_NS = 0.4, MULTIPLY_NS = 0.5 / W;

// How a block of rows x columns is cut for the team: pieces of about 16 x MR rows, as even as possible, and
// narrower while there are too few of them.
// `size` cut into equal parts of at most `limit`, each a multiple of `step`.
NOCOPY_INLINE int64_t even(int64_t size, int64_t limit, int64_t step) {
    const int64_t parts = most(1, ceil_div(size, limit));
    return most(step, least(limit, ceil_div(ceil_div(size, parts), step) * step));
}

struct Pieces {
    int64_t rows, columns, down, across;
};
NOCOPY_INLINE Pieces cut_block(int64_t rows, int64_t columns, int64_t team) {
    constexpr int64_t TALL = 16 * MR, WIDE = 16 * NR;
    Pieces p;
    p.rows = ceil_div(ceil_div(rows, ceil_div(rows, TALL)), MR) * MR;
    p.down = ceil_div(rows, p.rows);
    p.columns = WIDE;
    while (team > 1 && p.columns > NR && p.down * ceil_div(columns, p.columns) < 4 * team) p.columns /= 2;
    p.across = ceil_div(columns, p.columns);
    return p;
}

template <class P, class Runner>
void multiply_block(const P& p, const Runner& runner, int64_t top, int64_t rows, int64_t left,
                    int64_t columns) {
    const Blocks blocks = runner.blocks();
    float* const a = runner.memory();
    float* const b = a + blocks.rows * blocks.depth;
    float* const stage = b + blocks.columns * blocks.depth;
    const int64_t a_panels = ceil_div(rows, MR), b_panels = ceil_div(columns, NR);
    const int64_t stage_pitch = b_panels * NR;
    const Pieces pieces = cut_block(rows, columns, runner.size());
    const int64_t deep = even(p.k, blocks.depth, 8);
    int64_t k = 0;
    do {  // once for k = 0: zeros and bias
        const int64_t depth = least(deep, p.k - k);
        runner(a_panels + b_panels, PACK_NS * (double)(NR * depth),
               [&](int64_t first, int64_t last, float* scratch) {
                   for (int64_t i = first; i < last; i++) {
                       const int64_t row = i * MR, column = (i - a_panels) * NR;
                       if (i < a_panels)
                           p.pack_a(a + row * depth, top + row, least(MR, rows - row), k, depth, scratch);
                       else
                           p.pack_b(b + column * depth, left + column, least(NR, columns - column), k, depth,
                                    scratch);
                   }
               });
        const bool last_block = k + depth == p.k;
        const double cost = MULTIPLY_NS * (double)(pieces.rows * pieces.columns * depth);
        runner(pieces.down * pieces.across, cost, [&](int64_t first, int64_t last, float*) {
            for (int64_t piece = first; piece < last; piece++) {
                const int64_t r0 = piece % pieces.down * pieces.rows;
                const int64_t c0 = piece / pieces.down * pieces.columns;
                const int64_t r1 = least(rows, r0 + pieces.rows), c1 = least(columns, c0 + pieces.columns);
                for (int64_t c = c0; c < c1; c += NR)
                    for (int64_t r = r0; r < r1; r += MR) {
                        const int64_t height = least(MR, r1 - r), width = least(NR, c1 - c);
                        float starts[MR];
                        const bool biased = p.bias.data && k == 0;
                        if (biased)
                            read(starts, p.bias.dtype, at(p.bias, (top + r) * p.bias.strides[0]),
                                 p.bias.strides[0], height);
                        float* tile =
                            p.c ? p.c + (top + r) * p.pitch + left + c : stage + r * stage_pitch + c;
                        const Target to{tile, p.c ? p.pitch : stage_pitch, k > 0, p.scale,
                                        biased ? starts : nullptr};
                        if (p.c && width < NR)
                            micro_edge(height, width, depth, a + r * depth, b + c * depth, to);
                        else
                            micro_rows<NV>(height, depth, a + r * depth, b + c * depth, to);
                    }
                if (p.c || !last_block) continue;
                for (int64_t r = r0; r < r1; r++)
                    p.put(top + r, left + c0, c1 - c0, stage + r * stage_pitch + c0);
            }
        });
        k += depth;
    } while (k < p.k && !runner.stopped());
}

template <class P, class Runner>
void multiply(const P& p, const Runner& runner) {
    const int64_t rows = even(p.m, runner.blocks().rows, MR);
    const int64_t columns = even(p.n, runner.blocks().columns, NR);
    for (int64_t top = 0; top < p.m; top += rows)
        for (int64_t left = 0; left < p.n; left += columns)
            multiply_block(p, runner, top, least(rows, p.m - top), left, least(columns, p.n - left));
}

}  // namespace nocopy::NOCOPY_LEVEL
