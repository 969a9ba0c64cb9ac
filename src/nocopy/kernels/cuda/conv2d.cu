// conv2d: out[n,o,oh,ow] = bias[o] + sum over cg,kh,kw of weight[o,cg,kh,kw] x[n,group(o) cg + c,y,x], with
// y = oh stride_y + kh dilation_y - pad_y (x alike); outside the input is 0; summed in f32.
//
// conv2d_direct: a team of threads (blockDim.x: 1, or more where outputs are few) sums one output;
// neighbouring outputs share inputs in the L1 cache. For few output channels a group, such as image filters.
// conv2d_tiles: a matrix product of weight[o, cg kh kw] with patches of the input, gathered as they are
// fetched (tile.cuh), one product for each image and group. Bound: arithmetic.
#include "rows.cuh"
#include "tile.cuh"

struct Convolution {
    const nocopy_launch& launch;
    Tensor out, x, weight, bias;
    uint64_t n, c, h, w, o, cg, kh, kw, oh, ow;

    __device__ Convolution(const nocopy_launch& l) : launch(l), out(l, 0), x(l, 1), weight(l, 2), bias(l, 3) {
        const uint32_t* d = l.record.dims;
        n = d[0], c = d[1], h = d[2], w = d[3], o = d[4];
        cg = d[5], kh = d[6], kw = d[7], oh = d[8], ow = d[9];
    }

    __device__ uint64_t groups() const { return c / cg; }
    __device__ uint64_t taps() const { return cg * kh * kw; }
    __device__ int64_t param(int i) const { return launch.record.params[i]; }

    // Tap t of output pixel (oy, ox): the input element, 0 outside.
    __device__ float input(uint64_t image, uint64_t channel, uint64_t ky, uint64_t kx, uint64_t oy,
                           uint64_t ox) const {
        int64_t y = (int64_t)oy * param(0) + (int64_t)ky * param(4) - param(2);
        int64_t s = (int64_t)ox * param(1) + (int64_t)kx * param(5) - param(3);
        if (y < 0 || y >= (int64_t)h || s < 0 || s >= (int64_t)w) return 0.0f;
        return load(x, x.at(image, channel, (uint64_t)y, (uint64_t)s));
    }

    __device__ void put(uint64_t image, uint64_t channel, uint64_t oy, uint64_t ox, float sum) const {
        if (!bias.absent()) sum = sum + load(bias, bias.at(channel));
        store(out, out.at(image, channel, oy, ox), sum);
    }
};

NOCOPY_KERNEL(conv2d_direct, 256, 4) {
    Convolution v(launch);
    const uint64_t outputs = v.n * v.o * v.oh * v.ow, per_group = v.o / v.groups();
    const uint64_t step = (uint64_t)gridDim.x * blockDim.y;
    if (block_stopped(launch)) return;
    TeamStopSign stop{launch};
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y; i < outputs; i += step) {
        if (stop.reached()) return;
        uint64_t rest = i / v.ow, ox = i - rest * v.ow;
        uint64_t oy = rest % v.oh;
        rest /= v.oh;
        uint64_t image = rest / v.o, channel = rest % v.o;
        uint64_t first = channel / per_group * v.cg;
        auto product = [&](uint64_t t) {
            uint64_t tap = t / v.kw, kx = t - tap * v.kw;
            uint64_t cc = tap / v.kh, ky = tap - cc * v.kh;
            return v.input(image, first + cc, ky, kx, oy, ox) *
                   load(v.weight, v.weight.at(channel, cc, ky, kx));
        };
        float sum = row_combine(launch, v.taps(), 0.0f, product, Add());
        if (threadIdx.x == 0) v.put(image, channel, oy, ox, sum);
    }
}

NOCOPY_KERNEL(conv2d_tiles, 256, 3) {
    __shared__ Stage<MediumTile> stage;
    Convolution v(launch);
    const uint64_t per_group = v.o / v.groups(), pixels = v.oh * v.ow;
    const uint64_t tiles = tile_count<MediumTile>(v.n * v.groups(), per_group, pixels);
    for (uint64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        if (block_stopped(launch)) return;
        TilePlace p = tile_place<MediumTile>(tile, per_group, pixels);
        uint64_t image = p.batch / v.groups(), group = p.batch % v.groups();
        auto weight = [&](uint64_t r, uint64_t t) {
            uint64_t tap = t / v.kw, kx = t - tap * v.kw;
            uint64_t cc = tap / v.kh;
            return load(v.weight, v.weight.at(group * per_group + r, cc, tap - cc * v.kh, kx));
        };
        auto patch = [&](uint64_t t, uint64_t pixel) {
            uint64_t tap = t / v.kw, kx = t - tap * v.kw;
            uint64_t cc = tap / v.kh, oy = pixel / v.ow;
            return v.input(image, group * v.cg + cc, tap - cc * v.kh, kx, oy, pixel - oy * v.ow);
        };
        multiply_tile<MediumTile>(launch, stage, p.row, p.column, per_group, pixels, v.taps(), weight, true,
                                  patch, false, [&](uint64_t r, uint64_t pixel, float sum) {
                                      uint64_t oy = pixel / v.ow;
                                      v.put(image, group * per_group + r, oy, pixel - oy * v.ow, sum);
                                  });
    }
}
