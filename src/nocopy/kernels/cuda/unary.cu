// unary: out[d0,d1,d2,d3] = function(x[d0,d1,d2,d3]).   clamp: out = min(max(x, low), high); NaN stays NaN.
// Computed in f32 by the precise functions of the CUDA math library. Any strides.
// Bound: the bytes read and written.
#include "elementwise.cuh"
#include "functions.cuh"

NOCOPY_KERNEL(unary, 256, 4) {
    Tensor out(launch, 0), x(launch, 1);
    Grid grid(launch);
    uint32_t function = launch.record.function;
    each_place(
        launch, grid.dims, [&](const Place& p) { return load(x, at(x, p)); },
        [&](const Place& p, float value) { store(out, at(out, p), unary_function(function, value)); });
}

NOCOPY_KERNEL(clamp, 256, 4) {
    Tensor out(launch, 0), x(launch, 1);
    Grid grid(launch);
    float low = param_f32(launch, 0), high = param_f32(launch, 1);
    each_place(
        launch, grid.dims, [&](const Place& p) { return load(x, at(x, p)); },
        [&](const Place& p, float value) { store(out, at(out, p), nan_min(nan_max(value, low), high)); });
}
