// Attention's tiles: some queries against up to 64 tokens.
#pragma once

#include "math.hpp"
#include "strips.hpp"

namespace nocopy::NOCOPY_LEVEL {

inline constexpr int64_t TOKENS = 64;        // a tile
inline constexpr int64_t STEP = 8;           // tokens of all groups at a time: ways of an L1 cache
inline constexpr int64_t MOST_QUERIES = 64;  // of a task
inline constexpr int64_t MOST_FEW = 32;      // queries to a group for which keys are not worth turning
inline constexpr int64_t WIDEST = 1024;      // elements of a head that the tiles are made for
inline constexpr int64_t Q_PITCH = WIDEST + 16, P_PITCH = TOKENS + 16;
static_assert(TOKENS % NR == 0);

struct Attention {
    int64_t rows, heads, n, tokens, groups, window;
    float scale, softcap;
    Operand out, q, k, v, last;

    int64_t per_group() const { return heads / groups; }
    int64_t width() const { return ceil_div(n, W) * W; }
    // Tokens that a row sees: indices are data, so they are clamped.
    int64_t stop(int64_t row) const {
        const int64_t seen = *reinterpret_cast<const volatile int32_t*>(at(last, row * last.strides[0]));
        return most(0, least(seen + 1, tokens));
    }
    int64_t start(int64_t stop) const { return window ? most(0, stop - window) : 0; }

    F score(F dot) const {
        const F x = scale * dot;
        return softcap != 0 ? softcap * tanh(x / softcap) : x;
    }
};

NOCOPY_INLINE bool are_few(int64_t queries_to_a_group) {
    return queries_to_a_group <= MOST_FEW;
}

// Some groups, times some rows, times some heads of each group: queries in this order.
struct Task {
    int64_t group, groups, row, rows, head, heads;

    int64_t to_a_group() const { return rows * heads; }
    int64_t queries() const { return groups * to_a_group(); }
    bool few() const { return are_few(to_a_group()); }
    int64_t row_of(int64_t query) const { return row + query / heads % rows; }
    int64_t head_of(const Attention& a, int64_t query) const {
        return (group + query / to_a_group()) * a.per_group() + head + query % heads;
    }
};

// What a query has gathered so far.
struct State {
    float largest, sum;
};

struct Work {
    float *q, *gathered, *tile, *turned, *p, *zeros;
    State* states;

    Work(float* scratch, int64_t width)
        : q(scratch),
          gathered(q + MOST_QUERIES * Q_PITCH),
          tile(gathered + MOST_QUERIES * width),
          turned(tile + TOKENS * width),
          p(turned + NR * width),
          zeros(p + MOST_QUERIES * P_PITCH),
          states(reinterpret_cast<State*>(zeros + width)) {}
};
static_assert(MOST_QUERIES * Q_PITCH + (MOST_QUERIES + TOKENS + NR + 1) * WIDEST + MOST_QUERIES * P_PITCH +
                  2 * MOST_QUERIES <=
              (int64_t)SCRATCH_FLOATS);

NOCOPY_INLINE void clear(float* x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = 0;
}

// `count` tokens of a group's keys or values, from `first` on.
struct Span {
    const Operand& x;
    int64_t group, first, count;

    const uint8_t* row(int64_t i) const { return at(x, (first + i) * x.strides[0] + group * x.strides[1]); }
    // Whether vectors are best loaded from where they lie. Short ones would be widened for every two queries.
    bool plain(int64_t n) const {
        const bool cheap = x.dtype == NOCOPY_F32 || (W >= 8 && !is_blocks(x.dtype));
        return cheap && x.strides[2] == 1 && n % W == 0;
    }
    // As f32 rows, `width` apart.
    void read_to(float* tile, int64_t n, int64_t width) const {
        for (int64_t i = 0; i < count; i++) read(tile + i * width, x.dtype, row(i), x.strides[2], n);
    }
};

// p[query][token] = q . k, for many queries: keys are turned, so that lanes are tokens.
NOCOPY_INLINE void many_dots(const Work& w, const Span& keys, int64_t n, int64_t width, int64_t queries) {
    keys.read_to(w.tile, n, width);
    for (int64_t c = 0; c < keys.count; c += NR) {
        const float* lines[NR];
        for (int64_t i = 0; i < NR; i++) lines[i] = c + i < keys.count ? w.tile + (c + i) * width : w.zeros;
        interleave<NR>(w.turned, lines, n);
        outer_rows<NV, Q_PITCH>(queries, n, w.q, w.turned, NR, w.p + c, P_PITCH, false, nullptr);
    }
}

// p[query][token] = q . k for so many queries: lanes run along the head. Rows of keys are `pitch` apart.
template <int QUERIES, class T>
void dots_of(const T* keys, int64_t pitch, int64_t count, int64_t width, const float* q, float* p) {
    constexpr int AT_ONCE = W / QUERIES < 8 ? W / QUERIES : 8;
    for (int64_t i = 0; i < count; i += AT_ONCE) {
        const T* rows[AT_ONCE];
        for (int t = 0; t < AT_ONCE; t++) rows[t] = keys + least(i + t, count - 1) * pitch;
        F sums[W] = {};
        for (int64_t j = 0; j < width; j += W)
#pragma GCC unroll 8
            for (int t = 0; t < AT_ONCE; t++) {
                const F key = widen(rows[t] + j);
#pragma GCC unroll 4
                for (int k = 0; k < QUERIES; k++) sums[k * AT_ONCE + t] += load(q + k * Q_PITCH + j) * key;
            }
        alignas(64) float all[W];
        store(all, sum_each(sums));
        for (int k = 0; k < QUERIES; k++)
            __builtin_memcpy(p + k * P_PITCH + i, all + k * AT_ONCE, AT_ONCE * sizeof(float));
    }
}

// The same for any number, of which a few read a key together.
template <class T>
void few_dots(const T* keys, int64_t pitch, int64_t count, int64_t width, const float* q, int64_t queries,
              float* p) {
    const auto step = [&](auto kernel, int64_t size) {
        kernel(keys, pitch, count, width, q, p);
        queries -= size;
        q += size * Q_PITCH;
        p += size * P_PITCH;
    };
    if constexpr (W >= 16)
        while (queries >= 4) step(dots_of<4, T>, 4);
    if constexpr (W >= 8)
        while (queries >= 2) step(dots_of<2, T>, 2);
    while (queries >= 1) step(dots_of<1, T>, 1);
}

// Scores to weights for tokens [first, last) of the tile, 0 for the others; rescales what was gathered.
NOCOPY_INLINE void weigh(const Attention& a, const Work& w, int64_t query, int64_t first, int64_t last) {
    float* p = w.p + query * P_PITCH;
    State& state = w.states[query];
    if (first >= last) return;
    I lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    const F nothing = set(-__builtin_inff());
    F highest = set(state.largest);
    for (int64_t i = first / W * W; i < last; i += W) {
        const I token = lane + (int32_t)i;
        const F x = (token >= (int32_t)first) & (token < (int32_t)last) ? a.score(load(p + i)) : nothing;
        store(p + i, x);
        highest = x > highest ? x : highest;
    }
    const float largest = across(highest, [](F x, F y) { return y > x ? y : x; })[0];
    // Where all scores are -infinity so far, any base will do: their weights are 0.
    const float base = largest == -__builtin_inff() ? 0 : largest;
    F sums{};
    for (int64_t i = first / W * W; i < last; i += W) {
        const F weight = exp(load(p + i) - base);
        store(p + i, weight);
        sums += weight;
    }
    const float factor = exp(set(state.largest - base))[0];
    state.sum = state.sum * factor + sum_lanes(sums);
    state.largest = largest;
    if (factor == 1) return;
    float* gathered = w.gathered + query * a.width();
    for (int64_t j = 0; j < a.width(); j += W) store(gathered + j, load(gathered + j) * factor);
}

// gathered[query] += weights times values, for queries that all see these tokens. Rows of values are `pitch`
// apart.
template <class T>
void gather_values(const T* values, int64_t pitch, int64_t count, int64_t width, const float* p,
                   int64_t queries, float* gathered) {
    for (int64_t j = 0; j < width; j += NR) {
        const auto kernel = width - j < NR ? outer_rows<1, P_PITCH, T> : outer_rows<NV, P_PITCH, T>;
        kernel(queries, count, p, values + j, pitch, gathered + j, width, true, nullptr);
    }
}

// body(rows, pitch): the tokens as they lie, or as f32 in the tile.
template <class Body>
NOCOPY_INLINE void with_rows(const Work& w, const Span& span, int64_t n, int64_t width, const Body& body) {
    if (span.plain(n))
        return with_float(span.x.dtype, [&](auto* type) {
            body(reinterpret_cast<decltype(type)>(const_cast<uint8_t*>(span.row(0))), span.x.strides[0]);
        });
    span.read_to(w.tile, n, width);
    body(w.tile, width);
}

}  // namespace nocopy::NOCOPY_LEVEL
