// rmsnorm: out = x / sqrt(mean over n of x^2 + eps) * weight.
// layernorm: out = (x - mean) / sqrt(mean over n of (x - mean)^2 + eps) * weight + bias.
// x[d0,d1,d2,n], weight[n] and bias[n] may be absent; computed in f32, the variance in its own pass.
// A team of threads takes a row (rows.cuh); later passes find it in a cache. Writing over x is safe, as in
// softmax. Bound: the bytes of x and out.
#include "rows.cuh"

NOCOPY_KERNEL(rmsnorm, 1024, 1) {
    Tensor out(launch, 0), x(launch, 1), weight(launch, 2);
    uint64_t n = launch.record.dims[3];
    float eps = param_f32(launch, 0);
    each_row(launch, [&](const Row& row) {
        uint64_t from = x.at(row.i0, row.i1, row.i2), to = out.at(row.i0, row.i1, row.i2);
        auto value = [&](uint64_t i) { return load(x, from + i * x.strides[3]); };
        auto square = [&](uint64_t i) {
            float v = value(i);
            return v * v;
        };
        float root = sqrtf(row_combine(launch, n, 0.0f, square, Add()) / (float)n + eps);
        row_each(n, [&](uint64_t i) {
            float y = value(i) / root;
            if (!weight.absent()) y = y * load(weight, weight.at(i));
            store(out, to + i * out.strides[3], y);
        });
    });
}

NOCOPY_KERNEL(layernorm, 1024, 1) {
    Tensor out(launch, 0), x(launch, 1), weight(launch, 2), bias(launch, 3);
    uint64_t n = launch.record.dims[3];
    float eps = param_f32(launch, 0);
    each_row(launch, [&](const Row& row) {
        uint64_t from = x.at(row.i0, row.i1, row.i2), to = out.at(row.i0, row.i1, row.i2);
        auto value = [&](uint64_t i) { return load(x, from + i * x.strides[3]); };
        float mean = row_combine(launch, n, 0.0f, value, Add()) / (float)n;
        auto square = [&](uint64_t i) {
            float centred = value(i) - mean;
            return centred * centred;
        };
        float root = sqrtf(row_combine(launch, n, 0.0f, square, Add()) / (float)n + eps);
        row_each(n, [&](uint64_t i) {
            float y = (value(i) - mean) / root;
            if (!weight.absent()) y = y * load(weight, weight.at(i));
            if (!bias.absent()) y = y + load(bias, bias.at(i));
            store(out, to + i * out.strides[3], y);
        });
    });
}
