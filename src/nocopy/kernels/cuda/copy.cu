// copy: out[d0,d1,d2,d3] = convert(x[d0,d1,d2,d3]).   fill: out[d0,d1,d2,d3] = convert(value).
// Any strides. Equal dtypes move bits, integers convert exactly and saturate, the rest goes through f32.
// Bound: the bytes read and written.
#include "elementwise.cuh"

template <typename T>
__device__ void copy_bits(const nocopy_launch& launch, const Tensor& out, const Tensor& x) {
    Grid grid(launch);
    each_place(
        launch, grid.dims, [&](const Place& p) { return x.as<T>()[at(x, p)]; },
        [&](const Place& p, T value) { out.as<T>()[at(out, p)] = value; });
}

__device__ void saturate_to_u8(const nocopy_launch& launch, const Tensor& out, const Tensor& x) {
    Grid grid(launch);
    each_place(
        launch, grid.dims, [&](const Place& p) { return x.as<int32_t>()[at(x, p)]; },
        [&](const Place& p, int32_t value) {
            out.as<uint8_t>()[at(out, p)] = (uint8_t)min(max(value, 0), 255);
        });
}

NOCOPY_KERNEL(copy, 256, 4) {
    Tensor out(launch, 0), x(launch, 1);
    if (out.dtype == x.dtype) {
        if (x.dtype == NOCOPY_U8) return copy_bits<uint8_t>(launch, out, x);
        if (x.dtype == NOCOPY_F16 || x.dtype == NOCOPY_BF16) return copy_bits<uint16_t>(launch, out, x);
        return copy_bits<uint32_t>(launch, out, x);
    }
    if (out.dtype == NOCOPY_U8 && x.dtype == NOCOPY_I32) return saturate_to_u8(launch, out, x);
    Grid grid(launch);  // u8 to i32 is exact through f32
    each_place(
        launch, grid.dims, [&](const Place& p) { return load(x, at(x, p)); },
        [&](const Place& p, float value) { store(out, at(out, p), value); });
}

NOCOPY_KERNEL(fill, 256, 4) {
    Tensor out(launch, 0);
    Grid grid(launch);
    float value = param_f32(launch, 0);
    each_place(
        launch, grid.dims, [&](const Place&) { return value; },
        [&](const Place& p, float v) { store(out, at(out, p), v); });
}
