// Ops over the last axis: d0 x d1 x d2 lines of n elements each.
#pragma once

#include "tile.hpp"

namespace nocopy::NOCOPY_LEVEL {

NOCOPY_INLINE int64_t line_count(const Args& args) {
    return args.dims[0] * args.dims[1] * args.dims[2];
}

// Where line `index` of an operand starts.
NOCOPY_INLINE uint8_t* line(const Args& args, const Operand& operand, int64_t index) {
    const int64_t i2 = index % args.dims[2], rest = index / args.dims[2];
    const int64_t i1 = rest % args.dims[1], i0 = rest / args.dims[1];
    return at(operand, i0 * operand.strides[0] + i1 * operand.strides[1] + i2 * operand.strides[2]);
}

// A line of any type and stride as pieces of contiguous f32. A line of one piece is converted once, however
// many passes are made over it.
struct Line {
    static constexpr int64_t PIECE = SCRATCH_FLOATS / 4;
    uint32_t dtype = NOCOPY_NONE;
    int64_t stride = 0;
    const uint8_t* data = nullptr;
    float* buffer = nullptr;
    const uint8_t* held = nullptr;  // what the buffer was filled from
    int64_t held_count = 0;

    Line(const Operand& operand, int axis, float* space)
        : dtype(operand.dtype), stride(operand.strides[axis]), data(operand.data), buffer(space) {}

    const float* piece(int64_t start, int64_t n) {
        const uint8_t* from = data + start * stride * item_bytes(dtype);
        if (dtype == NOCOPY_F32 && stride == 1) return reinterpret_cast<const float*>(from);
        if (held != from || held_count != n) read(buffer, dtype, from, stride, n);
        held = from;
        held_count = n;
        return buffer;
    }
};

// f(start, count) for each piece of a line of n.
template <class Function>
NOCOPY_INLINE void pieces(int64_t n, const Function& f) {
    for (int64_t start = 0; start < n; start += Line::PIECE) f(start, least(Line::PIECE, n - start));
}

// Sum of function(x[i]) over n floats. Blocks are summed in f32 by 4 x W lanes and added in f64, so the error
// does not grow with n.
template <class Function>
NOCOPY_INLINE double total(const float* x, int64_t n, const Function& function) {
    constexpr int64_t BLOCK = 1024;
    double sum = 0;
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t end = least(n, start + BLOCK);
        F lanes[4] = {};
        int64_t i = start;
        for (; i + 4 * W <= end; i += 4 * W)
            for (int j = 0; j < 4; j++) lanes[j] += function(load(x + i + j * W));
        for (; i + W <= end; i += W) lanes[0] += function(load(x + i));
        float tail = 0;
        for (; i < end; i++) tail += function(set(x[i]))[0];
        sum += (double)sum_lanes((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + (double)tail;
    }
    return sum;
}

// Folds n floats with pick, which takes two vectors; starts from `start`.
template <class Pick>
NOCOPY_INLINE float fold(const float* x, int64_t n, float start, const Pick& pick) {
    F lanes[4] = {set(start), set(start), set(start), set(start)};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int j = 0; j < 4; j++) lanes[j] = pick(lanes[j], load(x + i + j * W));
    for (; i + W <= n; i += W) lanes[0] = pick(lanes[0], load(x + i));
    for (; i < n; i++) lanes[1] = pick(lanes[1], set(x[i]));
    F all = pick(pick(lanes[0], lanes[1]), pick(lanes[2], lanes[3]));
    for (int lane = 1; lane < W; lane++) all = pick(all, set(all[lane]));
    return all[0];
}

// The largest of n floats; NaN counts as -infinity.
NOCOPY_INLINE float largest(const float* x, int64_t n) {
    return fold(x, n, -__builtin_inff(), [](F a, F b) { return b > a ? b : a; });
}

inline constexpr int64_t SCAN = 256;  // floats that are folded before one of them is looked for

// The lowest index of a value among n floats; 0 if it is not there.
NOCOPY_INLINE int64_t find(const float* x, int64_t n, float value) {
    for (int64_t start = 0; start < n; start += SCAN) {
        const int64_t end = least(n, start + SCAN);
        if (largest(x + start, end - start) != value) continue;
        for (int64_t i = start; i < end; i++)
            if (x[i] == value) return i;
    }
    return 0;
}

}  // namespace nocopy::NOCOPY_LEVEL
