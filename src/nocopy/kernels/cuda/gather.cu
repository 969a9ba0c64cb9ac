// gather: out[r,w] = table[clamp(indices[r], 0, t-1), w]. Equal dtypes move bits; blocks are decoded. Bound:
// the bytes of the rows that are picked.
#include "blocks.cuh"
#include "elementwise.cuh"
#include "picked.cuh"

__device__ inline uint64_t picked(const nocopy_launch& launch, const Tensor& table, const Tensor& indices,
                                  const Place& p) {
    return table.at(picked(indices, p.i2, launch.record.dims[2]), p.i3);
}

template <typename T>
__device__ void gather_bits(const nocopy_launch& launch, const uint32_t (&dims)[4]) {
    Tensor out(launch, 0), table(launch, 1), indices(launch, 2);
    each_place(
        launch, dims, [&](const Place& p) { return table.as<T>()[picked(launch, table, indices, p)]; },
        [&](const Place& p, T value) { out.as<T>()[out.at(p.i2, p.i3)] = value; });
}

NOCOPY_KERNEL(gather, 256, 4) {
    Tensor out(launch, 0), table(launch, 1), indices(launch, 2);
    const uint32_t dims[4] = {1, 1, launch.record.dims[0], launch.record.dims[1]};
    if (is_blocks(table.dtype)) {
        return each_place(
            launch, dims,
            [&](const Place& p) { return load_block_element(table, picked(launch, table, indices, p)); },
            [&](const Place& p, float value) { store(out, out.at(p.i2, p.i3), value); });
    }
    if (out.dtype == table.dtype) {
        if (out.dtype == NOCOPY_F32) return gather_bits<uint32_t>(launch, dims);
        return gather_bits<uint16_t>(launch, dims);
    }
    each_place(
        launch, dims, [&](const Place& p) { return load(table, picked(launch, table, indices, p)); },
        [&](const Place& p, float value) { store(out, out.at(p.i2, p.i3), value); });
}
