// Walks element-wise operands of four axes in an order that is kind to the caches.
#pragma once

#include "tile.hpp"

namespace nocopy::NOCOPY_LEVEL {

// The axes of an element-wise op, reordered and merged: the last one has the smallest output stride.
// Element-wise ops may write over an input of the same layout, so any order is right.
struct Grid {
    static constexpr int MAX_OPERANDS = 3;  // output and two inputs
    int axes = 0;
    int64_t sizes[NOCOPY_MAX_AXES];
    int64_t strides[MAX_OPERANDS][NOCOPY_MAX_AXES];
};

NOCOPY_INLINE void swap_axes(Grid& grid, int operands, int i, int j) {
    const int64_t size = grid.sizes[i];
    grid.sizes[i] = grid.sizes[j];
    grid.sizes[j] = size;
    for (int o = 0; o < operands; o++) {
        const int64_t stride = grid.strides[o][i];
        grid.strides[o][i] = grid.strides[o][j];
        grid.strides[o][j] = stride;
    }
}

NOCOPY_INLINE bool mergeable(const Grid& grid, int operands, int outer) {
    for (int o = 0; o < operands; o++)
        if (grid.strides[o][outer] != grid.strides[o][outer + 1] * grid.sizes[outer + 1]) return false;
    return true;
}

NOCOPY_INLINE void merge_axes(Grid& grid, int operands) {
    int kept = 0;
    for (int axis = 1; axis < grid.axes; axis++) {
        // Compare the kept axis with this one as neighbours.
        swap_axes(grid, operands, kept + 1, axis);
        if (!mergeable(grid, operands, kept)) {
            kept++;
            continue;
        }
        grid.sizes[kept] *= grid.sizes[kept + 1];
        for (int o = 0; o < operands; o++) grid.strides[o][kept] = grid.strides[o][kept + 1];
    }
    grid.axes = kept + 1;
}

// A short last axis makes short rows; a longer one serves better even though it is strided.
NOCOPY_INLINE void lengthen_rows(Grid& grid, int operands) {
    const int last = grid.axes - 1;
    if (grid.sizes[last] >= 2 * W) return;
    int longest = last;
    for (int axis = 0; axis < last; axis++)
        if (grid.sizes[axis] > grid.sizes[longest]) longest = axis;
    if (grid.sizes[longest] >= 4 * grid.sizes[last]) swap_axes(grid, operands, longest, last);
}

NOCOPY_INLINE Grid plan(const Args& args, int operands) {
    Grid grid;
    for (int axis = 0; axis < NOCOPY_MAX_AXES; axis++) {
        if (args.dims[axis] == 1) continue;
        grid.sizes[grid.axes] = args.dims[axis];
        for (int o = 0; o < operands; o++) grid.strides[o][grid.axes] = args.operands[o].strides[axis];
        grid.axes++;
    }
    if (grid.axes == 0) {  // one element
        grid.axes = 1;
        grid.sizes[0] = 1;
        for (int o = 0; o < operands; o++) grid.strides[o][0] = 1;
    }
    for (int i = 1; i < grid.axes; i++)
        for (int j = i; j > 0 && grid.strides[0][j - 1] < grid.strides[0][j]; j--)
            swap_axes(grid, operands, j - 1, j);
    merge_axes(grid, operands);
    lengthen_rows(grid, operands);
    while (grid.axes < 2) {  // a block has rows and columns
        grid.sizes[grid.axes] = 1;
        for (int o = 0; o < operands; o++) grid.strides[o][grid.axes] = 0;
        swap_axes(grid, operands, 0, grid.axes);
        grid.axes++;
    }
    return grid;
}

// Rows x columns of the last two axes. Long rows stream; where an input runs across the rows (a transpose),
// small blocks use each of its cache lines 16 times before it is evicted.
struct Block {
    int64_t rows, columns;
};
NOCOPY_INLINE Block block_of(const Grid& grid, int operands) {
    const int last = grid.axes - 1;
    for (int o = 1; o < operands; o++)
        if (grid.strides[o][last] > 1 && grid.strides[o][last] > grid.strides[o][last - 1] &&
            grid.strides[o][last - 1] > 0)
            return {64, 64};
    constexpr int64_t ELEMENTS = 8192;  // 32 KiB of f32
    const int64_t columns = least(grid.sizes[last], ELEMENTS);
    return {most(1, ELEMENTS / most(columns, 1)), columns};
}

// row(addresses of the operands, n) for every piece of a row. `cost` is nanoseconds per element.
template <int operands, class Row>
NOCOPY_INLINE void sweep(const Args& args, Team& team, const Grid& grid, double cost, const Row& row) {
    const int last = grid.axes - 1;
    const Block block = block_of(grid, operands);
    const int64_t down = ceil_div(grid.sizes[last - 1], block.rows);
    const int64_t across = ceil_div(grid.sizes[last], most(block.columns, 1));
    int64_t blocks = down * across;
    for (int axis = 0; axis < last - 1; axis++) blocks *= grid.sizes[axis];
    const double elements = (double)(least(block.rows, grid.sizes[last - 1]) * block.columns);
    parallel(team, cut(team, blocks, cost * elements), [&](int64_t first, int64_t end, float*) {
        for (int64_t index = first; index < end; index++) {
            int64_t rest = index;
            const int64_t column = rest % across * block.columns;
            rest /= across;
            const int64_t top = rest % down * block.rows;
            rest /= down;
            int64_t starts[operands];
            for (int o = 0; o < operands; o++)
                starts[o] = column * grid.strides[o][last] + top * grid.strides[o][last - 1];
            for (int axis = last - 2; axis >= 0; axis--) {
                const int64_t i = rest % grid.sizes[axis];
                rest /= grid.sizes[axis];
                for (int o = 0; o < operands; o++) starts[o] += i * grid.strides[o][axis];
            }
            const int64_t rows = least(block.rows, grid.sizes[last - 1] - top);
            const int64_t n = least(block.columns, grid.sizes[last] - column);
            for (int64_t r = 0; r < rows; r++) {
                uint8_t* addresses[operands];
                for (int o = 0; o < operands; o++)
                    addresses[o] = at(args.operands[o], starts[o] + r * grid.strides[o][last - 1]);
                row(addresses, n);
            }
        }
    });
}

NOCOPY_INLINE bool empty(const Args& args) {
    for (int axis = 0; axis < NOCOPY_MAX_AXES; axis++)
        if (args.dims[axis] == 0) return true;
    return false;
}

}  // namespace nocopy::NOCOPY_LEVEL
