// rope: rotates pairs of x[r,h,n] by positions[r] * frequencies[i]: (x[i], x[i+f]) (half) or (x[2i], x[2i+1])
// (interleaved), i < f; what was turned is multiplied by scale, the rest is copied. A thread takes a pair, or
// one of the elements behind the pairs, so that writing over x is safe. Bound: the bytes read and written.
#include "elementwise.cuh"

struct Turned {
    float a, b;
};

// Where the items of a head lie: pairs first, then single elements.
struct Pairs {
    uint64_t f, step, gap;

    __device__ Pairs(const nocopy_launch& launch) : f(launch.record.dims[3]) {
        bool interleaved = launch.record.function == NOCOPY_ROPE_INTERLEAVED;
        step = interleaved ? 2 : 1;
        gap = interleaved ? 1 : f;
    }

    __device__ bool single(uint64_t item) const { return item >= f; }
    __device__ uint64_t first(uint64_t item) const { return single(item) ? f + item : item * step; }
};

NOCOPY_KERNEL(rope, 256, 4) {
    Tensor out(launch, 0), x(launch, 1), frequencies(launch, 2), positions(launch, 3);
    const uint32_t* d = launch.record.dims;
    const uint32_t items[4] = {1, d[0], d[1], d[2] - d[3]};
    const float scale = param_f32(launch, 0);
    Pairs pairs(launch);
    each_place(
        launch, items,
        [&](const Place& p) {
            uint64_t i = pairs.first(p.i3);
            float a = load(x, x.at(p.i1, p.i2, i));
            if (pairs.single(p.i3)) return Turned{a, 0.0f};
            float b = load(x, x.at(p.i1, p.i2, i + pairs.gap));
            float position = (float)positions.as<int32_t>()[positions.at(p.i1)];
            float angle = position * frequencies.as<float>()[frequencies.at(p.i3)];
            float c = scale * cosf(angle), s = scale * sinf(angle);
            return Turned{a * c - b * s, a * s + b * c};
        },
        [&](const Place& p, const Turned& v) {
            uint64_t i = pairs.first(p.i3);
            store(out, out.at(p.i1, p.i2, i), v.a);
            if (!pairs.single(p.i3)) store(out, out.at(p.i1, p.i2, i + pairs.gap), v.b);
        });
}
