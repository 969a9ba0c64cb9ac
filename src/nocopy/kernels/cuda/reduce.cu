// reduce: out[d0,d1,d2] = sum, mean, max or min over n of x[d0,d1,d2,n], in f32; max and min pass NaN on.
// A team of threads takes a row (rows.cuh). Bound: the bytes of x.
#include "rows.cuh"

template <typename Combine>
__device__ inline void reduce_rows(const nocopy_launch& launch, float identity, float divisor,
                                   Combine combine) {
    Tensor out(launch, 0), x(launch, 1);
    each_row(launch, [&](const Row& row) {
        uint64_t start = x.at(row.i0, row.i1, row.i2);
        auto get = [&](uint64_t i) { return load(x, start + i * x.strides[3]); };
        float result = row_combine(launch, launch.record.dims[3], identity, get, combine);
        if (threadIdx.x == 0) store(out, out.at(row.i0, row.i1, row.i2), result / divisor);
    });
}

NOCOPY_KERNEL(reduce, 1024, 1) {
    constexpr uint32_t INFINITE = 0x7f800000;
    float infinity = __uint_as_float(INFINITE);
    switch (launch.record.function) {
        case NOCOPY_REDUCE_SUM:
            return reduce_rows(launch, 0.0f, 1.0f, Add());
        case NOCOPY_REDUCE_MEAN:
            return reduce_rows(launch, 0.0f, (float)launch.record.dims[3], Add());
        case NOCOPY_REDUCE_MAX:
            return reduce_rows(launch, -infinity, 1.0f, NanMax());
        default:
            return reduce_rows(launch, infinity, 1.0f, NanMin());
    }
}
