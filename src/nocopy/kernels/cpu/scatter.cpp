// scatter: out[indices[r], w] = convert(x[r, w]); an index outside 0 to t-1 writes nothing.
//
// Indices are data, so each is read once and checked. Where two rows have the same index the later one wins:
// so threads share the columns, not the rows. Q8_0 rounds as tape/blocks.py does, bit for bit. Bound: memory
// bandwidth.
#include "ops.hpp"
#include "tile.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

// Scale: largest / 127; quants: half away from zero.
void encode(Q8_0& to, const float* x) {
    F most_of{};
    for (int i = 0; i < 32; i += W) most_of = max_nan(most_of, as<F>(as<I>(load(x + i)) & INT32_MAX));
    float largest = most_of[0];
    for (int lane = 1; lane < W; lane++) largest = largest < most_of[lane] ? most_of[lane] : largest;
    const float d = largest / 127.0f, inverse = d == 0 ? 0 : 1 / d;
    to.d = to_half(set(d))[0];
    for (int i = 0; i < 32; i += W) {
        const F scaled = rounded(load(x + i) * inverse);
        const I sign = as<I>(scaled) & INT32_MIN;
        const F whole = floor(as<F>(as<I>(scaled) & INT32_MAX) + 0.5f);
        const I q = to_int(as<F>(as<I>(whole) | sign));
        store_bits(to.qs + i, __builtin_convertvector(q, SignedBytes));
    }
}

void put(const Operand& out, uint8_t* to, const Operand& x, const uint8_t* from, int64_t n) {
    alignas(64) float tile[TILE];
    const int64_t to_stride = out.strides[1], from_stride = x.strides[1];
    if (out.dtype == x.dtype) return mover(out.dtype)(to, to_stride, from, from_stride, n);
    for (int64_t i = 0; i < n; i += TILE) {
        const int64_t count = least(TILE, n - i);
        read(tile, x.dtype, from + i * from_stride * item_bytes(x.dtype), from_stride, count);
        uint8_t* const at_i = to + bytes_of(out.dtype, i * to_stride);
        if (out.dtype != NOCOPY_Q8_0) {
            write(at_i, out.dtype, to_stride, tile, count);
            continue;
        }
        Q8_0* blocks = reinterpret_cast<Q8_0*>(at_i);
        for (int64_t j = 0; j < count; j += Q8_0::ELEMENTS) encode(*blocks++, tile + j);
    }
}

}  // namespace

void scatter(const Args& args, Team& team) {
    const Operand &out = args.operands[0], &x = args.operands[1], &indices = args.operands[2];
    const int64_t rows = args.dims[0], width = args.dims[1], places = args.dims[2];
    if (rows == 0 || width == 0) return;
    constexpr int64_t SPAN = 64;  // columns that a thread takes at least: whole blocks and cache lines
    constexpr double ELEMENT_NS = 0.5, ROW_NS = 10;
    const double cost = (double)rows * (ELEMENT_NS * (double)SPAN + ROW_NS);
    parallel(team, cut(team, ceil_div(width, SPAN), cost), [&](int64_t first, int64_t last, float*) {
        const int64_t start = first * SPAN, n = least(width, last * SPAN) - start;
        for (int64_t row = 0; row < rows; row++) {
            if (row % 1024 == 1023 && overdue(team)) return;
            const int64_t index =
                *reinterpret_cast<const volatile int32_t*>(at(indices, row * indices.strides[0]));
            if (index < 0 || index >= places) continue;
            put(out, at(out, index * out.strides[0] + start * out.strides[1]), x,
                at(x, row * x.strides[0] + start * x.strides[1]), n);
        }
    });
}

}  // namespace nocopy::NOCOPY_LEVEL
