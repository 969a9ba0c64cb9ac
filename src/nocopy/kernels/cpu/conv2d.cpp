// conv2d: out[n,o,y,x] = bias[o] + sum over c,ky,kx of
//             weight[o,c,ky,kx] x[n, group(o) cg + c, y stride_y + ky dilation_y - pad_y, ...]
//
// x [n,c,h,w], weight [o,cg,kh,kw], out [n,o,oh,ow]; other layouts (NHWC) are strides; outside the input is
// 0. Two ways:
//     few output channels per group   direct: each input row is padded in scratch memory, then all its taps
//     are (image filters, depthwise)      added to the output row in one pass; bound: L1 bandwidth many
//     implicit GEMM: [o, c ky kx] times patches that are packed on the fly, never
//                                     stored whole; bound: multiply-adds
#include "gemm.hpp"
#include "ops.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

constexpr int64_t MAX_DIRECT = 8;  // output channels per group; above, packing patches pays

struct Conv {
    int64_t n, c, h, w, o, cg, kh, kw, oh, ow;
    int64_t stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
    Operand out, x, weight, bias;

    int64_t groups() const { return c / cg; }
    int64_t outputs() const { return o / groups(); }  // per group
    int64_t taps() const { return cg * kh * kw; }
};

Conv plan(const Args& args) {
    const int64_t* d = args.dims;
    const uint32_t* p = args.params;
    Conv v{d[0],
           d[1],
           d[2],
           d[3],
           d[4],
           d[5],
           d[6],
           d[7],
           d[8],
           d[9],
           p[0],
           p[1],
           p[2],
           p[3],
           p[4],
           p[5],
           args.operands[0],
           args.operands[1],
           args.operands[2],
           args.operands[3]};
    const bool pointwise = v.kh == 1 && v.kw == 1 && v.stride_y == 1 && v.stride_x == 1 && v.pad_y == 0 &&
                           v.pad_x == 0 && v.oh == v.h && v.ow == v.w;
    const auto rows_continue = [](const Operand& t, int64_t width) {
        return t.strides[2] == width * t.strides[3];
    };
    if (pointwise && rows_continue(v.x, v.w) && rows_continue(v.out, v.ow)) {  // an image is one row
        v.w = v.ow = v.h * v.w;
        v.h = v.oh = 1;
    }
    return v;
}

// out[i] = x[row, first + i step] for i < n as f32, 0 where that is outside the row of w elements.
void padded(float* out, const Operand& x, const uint8_t* row, int64_t w, int64_t first, int64_t step,
            int64_t n) {
    int64_t from = first < 0 ? ceil_div(-first, step) : 0;
    int64_t to = first < w ? ceil_div(w - first, step) : 0;
    from = least(from, n);
    to = most(from, least(to, n));
    for (int64_t i = 0; i < from; i++) out[i] = 0;
    if (to > from) {
        const int64_t stride = x.strides[3];
        const uint8_t* start = row + (first + from * step) * stride * item_bytes(x.dtype);
        read(out + from, x.dtype, start, stride * step, to - from);
    }
    for (int64_t i = to; i < n; i++) out[i] = 0;
}

// -- direct ------------------------------------------------------------------------------------------------

constexpr int64_t GROUP = 8;         // taps of a row that are added in one pass
constexpr int64_t REACH = 4 * TILE;  // farthest dilated tap that a padded row is made to hold

// sums[i] += weights[t] * taps[t][i]
template <int TAPS>
void add_taps(float* sums, const float* const* taps, const float* weights, int64_t n) {
    for (int64_t i = 0; i < n; i += W) {
        F sum = load(sums + i);
        for (int t = 0; t < TAPS; t++) sum += weights[t] * load(taps[t] + i);
        store(sums + i, sum);
    }
}

void add_row(const Conv& v, const Operand& x, const uint8_t* row, const uint8_t* weights, int64_t left,
             int64_t n, float* sums, float* buffer) {
    const int64_t rounded = ceil_div(n, W) * W;
    for (int64_t kx = 0; kx < v.kw; kx += GROUP) {
        const int64_t taps = least(GROUP, v.kw - kx);
        const int64_t first = left * v.stride_x + kx * v.dilation_x - v.pad_x;
        const int64_t reach = (taps - 1) * v.dilation_x;
        const float* starts[GROUP];
        float factors[GROUP];
        if (v.stride_x == 1 && reach <= REACH) {
            padded(buffer, x, row, v.w, first, 1, rounded + reach);
            for (int64_t t = 0; t < taps; t++) starts[t] = buffer + t * v.dilation_x;
        } else {
            for (int64_t t = 0; t < taps; t++) {
                starts[t] = buffer + t * TILE;
                padded(buffer + t * TILE, x, row, v.w, first + t * v.dilation_x, v.stride_x, rounded);
            }
        }
        const int64_t weight_stride = v.weight.strides[3];
        read(factors, v.weight.dtype, weights + kx * weight_stride * item_bytes(v.weight.dtype),
             weight_stride, taps);
        static constexpr void (*ADD[])(float*, const float* const*, const float*, int64_t) = {
            add_taps<1>, add_taps<2>, add_taps<3>, add_taps<4>,
            add_taps<5>, add_taps<6>, add_taps<7>, add_taps<8>};
        ADD[taps - 1](sums, starts, factors, rounded);
    }
}

// n columns of one output row, from column `left`.
void direct_row(const Conv& v, Team& team, int64_t image, int64_t channel, int64_t y, int64_t left, int64_t n,
                float* scratch) {
    float *sums = scratch, *buffer = sums + TILE;
    static_assert(TILE + GROUP * TILE <= (int64_t)SCRATCH_FLOATS && REACH + TILE + W <= GROUP * TILE);
    float start = 0;
    if (v.bias.data) read(&start, v.bias.dtype, at(v.bias, channel * v.bias.strides[0]), 1, 1);
    for (int64_t i = 0; i < TILE; i++) sums[i] = start;
    const int64_t group = channel / v.outputs();
    for (int64_t c = 0; c < v.cg; c++) {
        const int64_t plane = image * v.x.strides[0] + (group * v.cg + c) * v.x.strides[1];
        for (int64_t ky = 0; ky < v.kh; ky++) {
            const int64_t row = y * v.stride_y + ky * v.dilation_y - v.pad_y;
            if (row < 0 || row >= v.h) continue;
            const uint8_t* weights = at(
                v.weight, channel * v.weight.strides[0] + c * v.weight.strides[1] + ky * v.weight.strides[2]);
            add_row(v, v.x, at(v.x, plane + row * v.x.strides[2]), weights, left, n, sums, buffer);
        }
        if ((c & 255) == 255 && overdue(team)) return;
    }
    write(at(v.out, image * v.out.strides[0] + channel * v.out.strides[1] + y * v.out.strides[2] +
                        left * v.out.strides[3]),
          v.out.dtype, v.out.strides[3], sums, n);
}

void direct(const Conv& v, Team& team) {
    constexpr double TAP_NS = 0.05, ROW_NS = 20;
    const int64_t across = ceil_div(v.ow, TILE);
    const double cost = (double)(v.cg * v.kh) * (TAP_NS * (double)(v.kw * least(v.ow, TILE)) + ROW_NS);
    parallel(team, cut(team, v.n * v.o * v.oh * across, cost), [&](int64_t first, int64_t last, float* s) {
        for (int64_t item = first; item < last; item++) {
            const int64_t left = item % across * TILE, y = item / across % v.oh;
            const int64_t channel = item / across / v.oh % v.o, image = item / across / v.oh / v.o;
            direct_row(v, team, image, channel, y, left, least(TILE, v.ow - left), s);
        }
    });
}

// -- implicit GEMM
// -------------------------------------------------------------------------------------------

// Patches: out[k][NR] for pixels `first` .. first + pixels of the output image and taps from `tap` on.
void pack_patches(const Conv& v, const Operand& x, float* out, int64_t first, int64_t pixels, int64_t tap,
                  int64_t depth) {
    for (int64_t done = 0; done < pixels;) {  // the part of the panel that lies in one output row
        const int64_t y = (first + done) / v.ow, left = (first + done) % v.ow;
        const int64_t n = least(pixels - done, v.ow - left);
        int64_t kx = tap % v.kw, ky = tap / v.kw % v.kh, c = tap / v.kw / v.kh;
        for (int64_t k = 0; k < depth; k++) {
            float* to = out + k * NR + done;
            const int64_t row = y * v.stride_y + ky * v.dilation_y - v.pad_y;
            if (row >= 0 && row < v.h)
                padded(to, x, at(x, c * x.strides[1] + row * x.strides[2]), v.w,
                       left * v.stride_x + kx * v.dilation_x - v.pad_x, v.stride_x, n);
            else
                for (int64_t i = 0; i < n; i++) to[i] = 0;
            if (++kx < v.kw) continue;
            kx = 0;
            if (++ky < v.kh) continue;
            ky = 0;
            c++;
        }
        done += n;
    }
    for (int64_t k = 0; k < depth && pixels < NR; k++)
        for (int64_t i = pixels; i < NR; i++) out[k * NR + i] = 0;
}

// Weights: out[k][MR] for output channels of one group; `weight` starts at the first of them.
void pack_weights(const Conv& v, const Operand& weight, float* out, int64_t rows, int64_t tap, int64_t depth,
                  float* scratch) {
    const int64_t* s = weight.strides;
    const bool single = v.kh == 1 && v.kw == 1;
    const bool even = s[2] == v.kw * s[3] && s[1] == v.kh * v.kw * s[3];  // one stride from tap to tap
    if (single || even) {
        const int64_t step = single ? s[1] : s[3];
        return pack<MR>(out, weight, tap * step, s[0], step, rows, depth, scratch);
    }
    for (int64_t k = 0; k < depth; k++) {
        const int64_t kx = (tap + k) % v.kw, ky = (tap + k) / v.kw % v.kh, c = (tap + k) / v.kw / v.kh;
        read(out + k * MR, weight.dtype, at(weight, c * s[1] + ky * s[2] + kx * s[3]), s[0], rows);
        for (int64_t i = rows; i < MR; i++) out[k * MR + i] = 0;
    }
}

Operand moved(const Operand& t, int64_t elements) {
    Operand other = t;
    if (t.data) other.data = at(t, elements);
    return other;
}

template <class Runner>
void packed(const Conv& v, int64_t image, int64_t group, const Runner& runner) {
    const int64_t rows = v.outputs(), channel = group * rows;
    const Operand out = moved(v.out, image * v.out.strides[0] + channel * v.out.strides[1]);
    const Operand x = moved(v.x, image * v.x.strides[0] + group * v.cg * v.x.strides[1]);
    const Operand weight = moved(v.weight, channel * v.weight.strides[0]);
    const auto pack_a = [&](float* to, int64_t row, int64_t n, int64_t tap, int64_t depth, float* scratch) {
        pack_weights(v, moved(weight, row * weight.strides[0]), to, n, tap, depth, scratch);
    };
    const auto pack_b = [&](float* to, int64_t pixel, int64_t n, int64_t tap, int64_t depth, float*) {
        pack_patches(v, x, to, pixel, n, tap, depth);
    };
    const auto put = [&](int64_t row, int64_t pixel, int64_t n, const float* values) {
        while (n > 0) {
            const int64_t y = pixel / v.ow, left = pixel % v.ow, part = least(n, v.ow - left);
            write(at(out, row * out.strides[1] + y * out.strides[2] + left * out.strides[3]), out.dtype,
                  out.strides[3], values, part);
            values += part;
            pixel += part;
            n -= part;
        }
    };
    const bool direct =
        out.dtype == NOCOPY_F32 && out.strides[3] == 1 && (v.oh == 1 || out.strides[2] == v.ow);
    float* c = direct ? reinterpret_cast<float*>(out.data) : nullptr;
    const Product<decltype(pack_a), decltype(pack_b), decltype(put)> product{
        rows, v.oh * v.ow,    v.taps(), 1.0f,   moved(v.bias, channel * v.bias.strides[0]),
        c,    out.strides[1], pack_a,   pack_b, put};
    multiply(product, runner);
}

}  // namespace

void conv2d(const Args& args, Team& team) {
    const Conv v = plan(args);
    if (v.n == 0 || v.o == 0 || v.oh == 0 || v.ow == 0) return;
    if (v.outputs() <= MAX_DIRECT || v.taps() == 0) return direct(v, team);
    constexpr double ALONE_NS = 20e3, LONGEST_NS = 10e6;
    const double pixels = (double)(v.oh * v.ow), outputs = (double)v.outputs();
    const double cost = (double)v.taps() * (MULTIPLY_NS * outputs * pixels + PACK_NS * (outputs + pixels));
    const int64_t products = v.n * v.groups();
    const bool many = products >= 4 * (int64_t)threads(team) && cost < LONGEST_NS;
    if (cost > ALONE_NS && !many) {
        for (int64_t i = 0; i < products && !overdue(team); i++)
            packed(v, i / v.groups(), i % v.groups(), TeamRunner{team});
        return;
    }
    parallel(team, cut(team, products, cost), [&](int64_t first, int64_t last, float* scratch) {
        for (int64_t i = first; i < last; i++)
            packed(v, i / v.groups(), i % v.groups(), LoneRunner{team, scratch});
    });
}

}  // namespace nocopy::NOCOPY_LEVEL
