// glu: out[d0,d1,d2,d3] = function(a[d0,d1,d2,d3]) * b[d0,d1,d2,d3], computed in f32. Any strides.
// Bound: the bytes read and written.
#include "elementwise.cuh"
#include "functions.cuh"

__device__ inline uint32_t gate_function(uint32_t function) {
    switch (function) {
        case NOCOPY_GLU_SILU:
            return NOCOPY_UNARY_SILU;
        case NOCOPY_GLU_GELU:
            return NOCOPY_UNARY_GELU;
        default:
            return NOCOPY_UNARY_GELU_TANH;
    }
}

struct Gate {
    float a, b;
};

NOCOPY_KERNEL(glu, 256, 4) {
    Tensor out(launch, 0), a(launch, 1), b(launch, 2);
    Grid grid(launch);
    uint32_t function = gate_function(launch.record.function);
    each_place(
        launch, grid.dims, [&](const Place& p) { return Gate{load(a, at(a, p)), load(b, at(b, p))}; },
        [&](const Place& p, const Gate& v) { store(out, at(out, p), unary_function(function, v.a) * v.b); });
}
