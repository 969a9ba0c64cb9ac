// resize: bilinear, half-pixel centres, edges repeated.
//
//     at(i)    = clamp((i + 0.5) * (size / out_size) - 0.5, 0, size - 1)
//     out[y,x] = (1-fy) ((1-fx) x[y0,x0] + fx x[y0,x1]) + fy ((1-fx) x[y1,x0] + fx x[y1,x1])
//
// x [n,c,h,w] to out [n,c,oh,ow]; any strides and element types. For each output row and tile of columns the
// two input rows are blended first, in vectors over the input's columns, then columns are picked from the
// blend. A downscale that skips most columns reads its four elements directly. Bound: picking, about 1 ns per
// element.
#include "ops.hpp"
#include "tile.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

constexpr double PICK_NS = 1, READ_NS = 0.2, ROW_NS = 50;

struct Sample {
    int32_t low, high;  // indices of the two inputs
    float share;        // weight of the second
};

NOCOPY_INLINE Sample sample(int64_t index, int64_t size, int64_t out_size) {
    const float ratio = (float)((double)size / (double)out_size);
    float position = ((float)index + 0.5f) * ratio - 0.5f;
    position = position > 0 ? position : 0;
    position = position < (float)(size - 1) ? position : (float)(size - 1);
    const int64_t low = least((int64_t)position, size - 1);  // (float)(size - 1) may round up
    return {(int32_t)low, (int32_t)least(low + 1, size - 1), position - (float)low};
}

struct Rows {
    const uint8_t *top, *bottom;
    float share;
};

// Blends columns [from, from + n) of two rows.
void blend(float* out, float* top_tile, float* bottom_tile, const Operand& x, const Rows& rows, int64_t from,
           int64_t n) {
    const int64_t skip = from * x.strides[3] * item_bytes(x.dtype);
    const float* top = view(top_tile, x.dtype, rows.top + skip, x.strides[3], n);
    const float* bottom = view(bottom_tile, x.dtype, rows.bottom + skip, x.strides[3], n);
    const float keep = 1.0f - rows.share;
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, load(top + i) * keep + load(bottom + i) * rows.share);
    for (; i < n; i++) out[i] = top[i] * keep + bottom[i] * rows.share;
}

float element(const uint8_t* row, const Operand& x, int64_t column) {
    float value;
    read(&value, x.dtype, row + column * x.strides[3] * item_bytes(x.dtype), 1, 1);
    return value;
}

NOCOPY_INLINE float mix(float a, float b, float share) {
    return a * (1.0f - share) + b * share;
}

}  // namespace

void resize(const Args& args, Team& team) {
    const Operand &out = args.operands[0], &x = args.operands[1];
    const int64_t n = args.dims[0], c = args.dims[1], h = args.dims[2], w = args.dims[3];
    const int64_t oh = args.dims[4], ow = args.dims[5];
    if (n * c == 0 || oh == 0 || ow == 0) return;
    constexpr int64_t COLUMNS = 2048, REACH = SCRATCH_FLOATS / 8;
    const int64_t across = ceil_div(ow, COLUMNS), width = least(ow, COLUMNS);
    const double cost = PICK_NS * (double)width + READ_NS * (double)least(w, 8 * width) + ROW_NS;
    const Cut work = cut(team, across * n * c * oh, cost);
    // Consecutive items are rows of one tile of columns, so its samples are computed once.
    parallel(team, work, [&](int64_t first, int64_t last, float* scratch) {
        Sample* samples = reinterpret_cast<Sample*>(scratch);
        float *result = scratch + 4 * COLUMNS, *mixed = result + COLUMNS;
        float *top_tile = mixed + REACH, *bottom_tile = top_tile + REACH;
        static_assert(5 * COLUMNS + 3 * REACH <= (int64_t)SCRATCH_FLOATS);
        int64_t ready = -1;
        for (int64_t item = first; item < last; item++) {
            const int64_t tile = item / (n * c * oh), row = item % (n * c * oh);
            const int64_t start = tile * COLUMNS, count = least(COLUMNS, ow - start);
            if (ready != tile)
                for (int64_t i = 0; i < count; i++) samples[i] = sample(start + i, w, ow);
            ready = tile;
            const int64_t oy = row % oh, channel = row / oh % c, image = row / oh / c;
            const Sample y = sample(oy, h, oh);
            const int64_t plane = image * x.strides[0] + channel * x.strides[1];
            const Rows rows{at(x, plane + y.low * x.strides[2]), at(x, plane + y.high * x.strides[2]),
                            y.share};
            const int64_t from = samples[0].low, reach = samples[count - 1].high - from + 1;
            if (reach <= least(REACH, 8 * count + 16)) {
                blend(mixed, top_tile, bottom_tile, x, rows, from, reach);
                for (int64_t i = 0; i < count; i++)
                    result[i] =
                        mix(mixed[samples[i].low - from], mixed[samples[i].high - from], samples[i].share);
            } else {
                for (int64_t i = 0; i < count; i++) {
                    const auto [low, high, share] = samples[i];
                    result[i] =
                        mix(mix(element(rows.top, x, low), element(rows.top, x, high), share),
                            mix(element(rows.bottom, x, low), element(rows.bottom, x, high), share), y.share);
                }
            }
            uint8_t* to = at(out, image * out.strides[0] + channel * out.strides[1] + oy * out.strides[2] +
                                      start * out.strides[3]);
            write(to, out.dtype, out.strides[3], result, count);
        }
    });
}

}  // namespace nocopy::NOCOPY_LEVEL
