// gather: out[r,w] = table[clamp(indices[r], 0, t-1), w]
//
// Indices are data that a guest may change at any time, so they are clamped here, once, after they were
// read. Equal element types are moved as bits, blocks are decoded (a tile is whole blocks). Bound: memory
// bandwidth.
#include "ops.hpp"
#include "tile.hpp"

namespace nocopy::NOCOPY_LEVEL {

void gather(const Args& args, Team& team) {
    const Operand &out = args.operands[0], &table = args.operands[1], &indices = args.operands[2];
    const int64_t rows = args.dims[0], width = args.dims[1], last_row = args.dims[2] - 1;
    if (rows == 0 || width == 0) return;
    constexpr int64_t SPAN = 16 * TILE;
    constexpr double MOVE_NS = 0.1, ROW_NS = 10;
    const int64_t across = ceil_div(width, SPAN);
    const Mover move = mover(out.dtype);
    const Cut work = cut(team, rows * across, MOVE_NS * (double)least(width, SPAN) + ROW_NS);
    parallel(team, work, [&](int64_t first, int64_t last, float*) {
        alignas(64) float tile[TILE];
        for (int64_t item = first; item < last; item++) {
            const int64_t row = item / across, start = item % across * SPAN;
            const int64_t wanted =
                *reinterpret_cast<const volatile int32_t*>(at(indices, row * indices.strides[0]));
            const int64_t index = most(0, least(wanted, last_row));
            const int64_t n = least(SPAN, width - start);
            uint8_t* to = at(out, row * out.strides[0] + start * out.strides[1]);
            const uint8_t* from = at(table, index * table.strides[0] + start * table.strides[1]);
            if (out.dtype == table.dtype) {
                move(to, out.strides[1], from, table.strides[1], n);
                continue;
            }
            for (int64_t i = 0; i < n; i += TILE) {
                const int64_t count = least(TILE, n - i);
                read(tile, table.dtype, from + bytes_of(table.dtype, i * table.strides[1]), table.strides[1],
                     count);
                write(to + i * out.strides[1] * item_bytes(out.dtype), out.dtype, out.strides[1], tile,
                      count);
            }
        }
    });
}

}  // namespace nocopy::NOCOPY_LEVEL
