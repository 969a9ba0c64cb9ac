// softmax: out[d0,d1,d2,n] = exp(scale x - max) / sum over n of the same, in f32.
// A team of threads takes a row (rows.cuh) and passes over it three times; the second and third pass find it
// in the L1 or L2 cache. Writing over x is safe: a thread writes what it alone reads, after the team has met.
// Bound: the bytes of x and out.
#include "rows.cuh"

NOCOPY_KERNEL(softmax, 1024, 1) {
    Tensor out(launch, 0), x(launch, 1);
    uint64_t n = launch.record.dims[3];
    float scale = param_f32(launch, 0);
    each_row(launch, [&](const Row& row) {
        uint64_t from = x.at(row.i0, row.i1, row.i2), to = out.at(row.i0, row.i1, row.i2);
        auto scaled = [&](uint64_t i) { return scale * load(x, from + i * x.strides[3]); };
        float largest = row_combine(launch, n, __uint_as_float(0xff800000), scaled, NanMax());
        auto raised = [&](uint64_t i) { return expf(scaled(i) - largest); };
        float sum = row_combine(launch, n, 0.0f, raised, Add());
        row_each(n, [&](uint64_t i) { store(out, to + i * out.strides[3], raised(i) / sum); });
    });
}
