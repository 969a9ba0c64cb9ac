// resize: bilinear, x[n,c,h,w] to out[n,c,oh,ow], half-pixel centres, edges repeated.
// Neighbouring outputs share their inputs in the L1 cache. Bound: the bytes read and written.
#include "elementwise.cuh"

// For an output index: two input indices and the weight of the second.
struct Sample {
    uint64_t low, high;
    float weight;
};

__device__ inline Sample sample(uint64_t i, uint32_t size, uint32_t out_size) {
    float scale = (float)((double)size / (double)out_size);
    float where = ((float)i + 0.5f) * scale - 0.5f;
    where = fminf(fmaxf(where, 0.0f), (float)(size - 1));
    uint64_t last = size - 1;
    uint64_t low = min((uint64_t)floorf(where), last);  // size - 1 may have been rounded up
    return {low, min(low + 1, last), where - (float)low};
}

NOCOPY_KERNEL(resize, 256, 4) {
    Tensor out(launch, 0), x(launch, 1);
    const uint32_t* d = launch.record.dims;
    const uint32_t dims[4] = {d[0], d[1], d[4], d[5]};
    auto interpolate = [&](const Place& p) {
        Sample y = sample(p.i2, d[2], dims[2]), s = sample(p.i3, d[3], dims[3]);
        uint64_t plane = x.at(p.i0, p.i1);
        uint64_t top = plane + y.low * x.strides[2], bottom = plane + y.high * x.strides[2];
        uint64_t left = s.low * x.strides[3], right = s.high * x.strides[3];
        float above = load(x, top + left) * (1.0f - s.weight) + load(x, top + right) * s.weight;
        float below = load(x, bottom + left) * (1.0f - s.weight) + load(x, bottom + right) * s.weight;
        return above * (1.0f - y.weight) + below * y.weight;
    };
    each_place(launch, dims, interpolate,
               [&](const Place& p, float value) { store(out, at(out, p), value); });
}
