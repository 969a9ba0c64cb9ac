// Ops that fold or normalise the last axis: reduce, softmax, rmsnorm, layernorm.
//
//     reduce     out[d0,d1,d2]   = sum, mean, max or min over n of x[d0,d1,d2,n]
//     softmax    out[d0,d1,d2,n] = exp(scale x - max) / sum of the same
//     rmsnorm    out[d0,d1,d2,n] = x / sqrt(mean(x^2) + eps) * weight[n]
//     layernorm  out[d0,d1,d2,n] = (x - mean) / sqrt(variance + eps) * weight[n] + bias[n]
//
// Lines are converted to f32 once and stay in the L2 cache for all passes; lines of more than 64 Ki elements
// are read again for each pass. Sums are accurate to f32 for any n. Bound: memory bandwidth, softmax: exp.
#include "lines.hpp"
#include "math.hpp"
#include "ops.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

// Nanoseconds per element and per line on one Zen 4 core; they only decide how work is cut.
constexpr double FOLD_NS = 0.1, NORM_NS = 0.25, SOFTMAX_NS = 0.6, LINE_NS = 20;

NOCOPY_INLINE F same(F x) {
    return x;
}
NOCOPY_INLINE F squared(F x) {
    return x * x;
}
NOCOPY_INLINE F pick_max(F a, F b) {
    return max_nan(a, b);
}
NOCOPY_INLINE F pick_min(F a, F b) {
    return min_nan(a, b);
}

// -- reduce ------------------------------------------------------------------------------------------------

double identity(unsigned function) {
    return function == NOCOPY_REDUCE_MAX   ? -__builtin_inf()
           : function == NOCOPY_REDUCE_MIN ? __builtin_inf()
                                           : 0.0;
}

double combine(unsigned function, double a, double b) {
    if (function == NOCOPY_REDUCE_SUM || function == NOCOPY_REDUCE_MEAN) return a + b;
    if (a != a) return a;
    if (b != b) return b;
    return (function == NOCOPY_REDUCE_MAX) == (a > b) ? a : b;
}

double reduce_part(const Args& args, int64_t index, int64_t from, int64_t count, float* scratch) {
    Line x(args.operands[1], 3, scratch);
    x.data = line(args, args.operands[1], index) + from * x.stride * item_bytes(x.dtype);
    double result = identity(args.function);
    pieces(count, [&](int64_t start, int64_t n) {
        const float* values = x.piece(start, n);
        const double part =
            args.function == NOCOPY_REDUCE_MAX   ? (double)fold(values, n, -__builtin_inff(), pick_max)
            : args.function == NOCOPY_REDUCE_MIN ? (double)fold(values, n, __builtin_inff(), pick_min)
                                                 : total(values, n, same);
        result = combine(args.function, result, part);
    });
    return result;
}

void reduce_store(const Args& args, int64_t index, double result) {
    if (args.function == NOCOPY_REDUCE_MEAN) result /= (double)args.dims[3];
    const float value = (float)result;
    write(line(args, args.operands[0], index), args.operands[0].dtype, 1, &value, 1);
}

// Few long lines: each is cut into parts for several threads; the parts meet in shared memory.
void reduce_parts(const Args& args, Team& team, int64_t parts) {
    const int64_t n = args.dims[3], each = ceil_div(n, parts), lines = line_count(args);
    double* results = reinterpret_cast<double*>(shared(team));
    const Cut work = cut(team, lines * parts, FOLD_NS * (double)each);
    parallel(team, work, [&](int64_t first, int64_t last, float* scratch) {
        for (int64_t i = first; i < last; i++) {
            const int64_t from = i % parts * each;
            results[i] = reduce_part(args, i / parts, from, most(0, least(each, n - from)), scratch);
        }
    });
    if (expired(team)) return;
    for (int64_t i = 0; i < lines; i++) {
        double result = identity(args.function);
        for (int64_t p = 0; p < parts; p++) result = combine(args.function, result, results[i * parts + p]);
        reduce_store(args, i, result);
    }
}

// Lines that lie across memory, side by side: fold whole tiles of neighbouring lines.
void reduce_columns(const Args& args, Team& team) {
    const Operand &out = args.operands[0], &x = args.operands[1];
    const int64_t width = args.dims[2], n = args.dims[3], across = ceil_div(width, TILE);
    const unsigned function = args.function;
    const bool adds = function == NOCOPY_REDUCE_SUM || function == NOCOPY_REDUCE_MEAN;
    constexpr int64_t RUN = 64;  // additions in f32 before a sum is set aside, for accuracy
    const Cut work =
        cut(team, args.dims[0] * args.dims[1] * across, FOLD_NS * (double)(least(width, TILE) * n) + LINE_NS);
    parallel(team, work, [&](int64_t first, int64_t last, float* scratch) {
        float *tile = scratch, *sum = scratch + TILE, *result = scratch + 2 * TILE;
        for (int64_t item = first; item < last; item++) {
            const int64_t column = item % across * TILE, top = item / across * width;
            const int64_t count = least(TILE, width - column);
            const uint8_t* from = line(args, x, top) + column * x.strides[2] * item_bytes(x.dtype);
            const float start = (float)identity(function);
            for (int64_t j = 0; j < count; j++) result[j] = sum[j] = start;
            for (int64_t k = 0; k < n; k++) {
                const uint8_t* row = from + k * x.strides[3] * item_bytes(x.dtype);
                const float* values = view(tile, x.dtype, row, x.strides[2], count);
                for (int64_t j = 0; j < count; j += W) {
                    const int64_t lanes = least(W, count - j);
                    const F value = lanes == W ? load(values + j) : load_part(values + j, lanes);
                    const F so_far = load(sum + j);
                    store(sum + j, adds                            ? so_far + value
                                   : function == NOCOPY_REDUCE_MAX ? max_nan(so_far, value)
                                                                   : min_nan(so_far, value));
                }
                if (!adds || ((k + 1) % RUN != 0 && k + 1 != n)) continue;
                for (int64_t j = 0; j < count; j++) {
                    result[j] += sum[j];
                    sum[j] = 0;
                }
            }
            const float share = function == NOCOPY_REDUCE_MEAN ? (float)n : 1.0f;
            for (int64_t j = 0; j < count; j++) result[j] = (adds ? result[j] : sum[j]) / share;
            uint8_t* to = line(args, out, top) + column * out.strides[2] * item_bytes(out.dtype);
            write(to, out.dtype, out.strides[2], result, count);
        }
    });
}

// -- normalisations
// ------------------------------------------------------------------------------------------

// The four pieces of a thread's scratch memory that a normalisation uses.
struct Lines {
    Line x, weight, bias;
    float* result;

    Lines(const Args& args, float* scratch)
        : x(args.operands[1], 3, scratch),
          weight(args.operands[2], 0, scratch + Line::PIECE),
          bias(args.operands[3], 0, scratch + 2 * Line::PIECE),
          result(scratch + 3 * Line::PIECE) {}
};

// normalise(lines, first byte of the output line) for each line.
template <class Function>
void each_line(const Args& args, Team& team, double cost, const Function& normalise) {
    if (args.dims[3] == 0) return;  // the other dims are bounded only while there are elements
    const int64_t lines = line_count(args);
    if (lines == 0) return;
    const Cut work = cut(team, lines, cost * (double)args.dims[3] + LINE_NS);
    parallel(team, work, [&](int64_t first, int64_t last, float* scratch) {
        Lines l(args, scratch);
        for (int64_t i = first; i < last; i++) {
            l.x.data = line(args, args.operands[1], i);
            l.x.held = nullptr;  // an output may have been written over it
            normalise(l, line(args, args.operands[0], i));
        }
    });
}

NOCOPY_INLINE void put(const Args& args, uint8_t* to, int64_t start, const float* values, int64_t n) {
    const Operand& out = args.operands[0];
    write(to + start * out.strides[3] * item_bytes(out.dtype), out.dtype, out.strides[3], values, n);
}

// out[i] = function(x[i], i, lanes) for n floats; `lanes` is W but at the end.
template <class Function>
NOCOPY_INLINE void transform(float* out, const float* x, int64_t n, const Function& function) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, function(load(x + i), i, W));
    if (i < n) store_part(out + i, function(load_part(x + i, n - i), i, n - i), n - i);
}

NOCOPY_INLINE F lanes_of(const float* x, int64_t i, int64_t lanes) {
    return lanes == W ? load(x + i) : load_part(x + i, lanes);
}

// (x - mean) * factor, then times weight and plus bias where they are present.
NOCOPY_INLINE void scale_line(const Args& args, Lines& l, uint8_t* to, float mean, float factor) {
    const bool weighted = args.operands[2].data, biased = args.operands[3].data;
    pieces(args.dims[3], [&](int64_t start, int64_t n) {
        const float* weight = weighted ? l.weight.piece(start, n) : nullptr;
        const float* bias = biased ? l.bias.piece(start, n) : nullptr;
        transform(l.result, l.x.piece(start, n), n, [&](F x, int64_t i, int64_t lanes) {
            F y = (x - mean) * factor;
            if (weight) y = y * lanes_of(weight, i, lanes);
            return bias ? y + lanes_of(bias, i, lanes) : y;
        });
        put(args, to, start, l.result, n);
    });
}

template <class Function>
NOCOPY_INLINE double sum_line(Line& x, int64_t n, const Function& function) {
    double sum = 0;
    pieces(n, [&](int64_t start, int64_t count) { sum += total(x.piece(start, count), count, function); });
    return sum;
}

}  // namespace

void reduce(const Args& args, Team& team) {
    const Operand& x = args.operands[1];
    const int64_t lines = line_count(args), n = args.dims[3];
    if (lines == 0) return;
    if (x.strides[3] > x.strides[2] && x.strides[2] > 0 && args.dims[2] >= W && n > 1)
        return reduce_columns(args, team);
    constexpr int64_t PART = 64 * 1024;
    const int64_t team_size = threads(team);
    const int64_t parts = lines >= 2 * team_size ? 1 : most(1, least(n / PART, 4 * team_size));
    if (parts > 1) return reduce_parts(args, team, parts);
    const Cut work = cut(team, lines, FOLD_NS * (double)n + LINE_NS);
    parallel(team, work, [&](int64_t first, int64_t last, float* scratch) {
        for (int64_t i = first; i < last; i++) reduce_store(args, i, reduce_part(args, i, 0, n, scratch));
    });
}

void softmax(const Args& args, Team& team) {
    const float scale = param(args, 0);
    const int64_t n = args.dims[3];
    each_line(args, team, SOFTMAX_NS, [&](Lines& l, uint8_t* to) {
        float most = -__builtin_inff(), least = __builtin_inff();
        pieces(n, [&](int64_t start, int64_t count) {
            const float* x = l.x.piece(start, count);
            if (scale < 0)
                least = (float)combine(NOCOPY_REDUCE_MIN, least, fold(x, count, least, pick_min));
            else
                most = (float)combine(NOCOPY_REDUCE_MAX, most, fold(x, count, most, pick_max));
        });
        const float top = scale * (scale < 0 ? least : most);
        // The product is rounded as `top` was, so that the largest exponent is 0 however large the scale is.
        const auto exponential = [&](F x, int64_t, int64_t) { return exp(rounded(scale * x) - top); };
        double sum = 0;
        pieces(n, [&](int64_t start, int64_t count) {
            transform(l.result, l.x.piece(start, count), count, exponential);
            sum += total(l.result, count, same);
        });
        const float factor = (float)(1.0 / sum);
        pieces(n, [&](int64_t start, int64_t count) {
            if (n > Line::PIECE)  // only the last piece is still there
                transform(l.result, l.x.piece(start, count), count, exponential);
            transform(l.result, l.result, count, [&](F e, int64_t, int64_t) { return e * factor; });
            put(args, to, start, l.result, count);
        });
    });
}

void rmsnorm(const Args& args, Team& team) {
    const float eps = param(args, 0);
    const int64_t n = args.dims[3];
    each_line(args, team, NORM_NS, [&](Lines& l, uint8_t* to) {
        const float mean = (float)(sum_line(l.x, n, squared) / (double)n);
        scale_line(args, l, to, 0.0f, 1.0f / __builtin_sqrtf(mean + eps));
    });
}

void layernorm(const Args& args, Team& team) {
    const float eps = param(args, 0);
    const int64_t n = args.dims[3];
    each_line(args, team, NORM_NS, [&](Lines& l, uint8_t* to) {
        const float mean = (float)(sum_line(l.x, n, same) / (double)n);
        const auto centred = [&](F x) { return (x - mean) * (x - mean); };
        const float variance = (float)(sum_line(l.x, n, centred) / (double)n);
        scale_line(args, l, to, mean, 1.0f / __builtin_sqrtf(variance + eps));
    });
}

}  // namespace nocopy::NOCOPY_LEVEL
