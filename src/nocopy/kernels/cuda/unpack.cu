// A weight of blocks w[n,k], decoded to bf16 in rows of k elements, for products that read it in many tiles.
// The record is that of the product; its `out` is where the decoded weight goes. A thread takes the runs of
// four elements that a lane of blocks.cuh has. Bound: the bytes written.
#include "mma.cuh"

template <typename T>
__device__ inline void unpack(const nocopy_launch& launch) {
    Tensor out(launch, 0), w(launch, 2);
    const uint64_t n = launch.record.dims[3], k = launch.record.dims[4];
    const uint64_t blocks = k / T::ELEMENTS, total = n * blocks * T::LANES;
    if (block_stopped(launch)) return;
    for (uint64_t e = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; e < total;
         e += (uint64_t)gridDim.x * blockDim.x) {
        uint32_t lane = (uint32_t)(e % T::LANES);
        uint64_t i = e / T::LANES, row = i / blocks, block = i - row * blocks;
        const uint8_t* from = w.as<uint8_t>() + (row * (w.strides[3] / T::ELEMENTS) + block) * T::BYTES;
        uint16_t* to = out.as<uint16_t>() + row * k + block * T::ELEMENTS + T::start(lane);
        float y[4 * T::QUADS];
        T::decode(T::fetch(from, lane), y);
#pragma unroll
        for (uint32_t quad = 0; quad < T::QUADS; ++quad)
            *(Words<2>*)(to + quad * T::GAP) = {pack_pair<true>(y[4 * quad], y[4 * quad + 1]),
                                                pack_pair<true>(y[4 * quad + 2], y[4 * quad + 3])};
    }
}

NOCOPY_KERNEL(unpack_q8_0, 256, 4) {
    unpack<Q8_0>(launch);
}
NOCOPY_KERNEL(unpack_q4_0, 256, 4) {
    unpack<Q4_0>(launch);
}
NOCOPY_KERNEL(unpack_q4_k, 256, 4) {
    unpack<Q4_K>(launch);
}
NOCOPY_KERNEL(unpack_q5_k, 256, 4) {
    unpack<Q5_K>(launch);
}
NOCOPY_KERNEL(unpack_q6_k, 256, 4) {
    unpack<Q6_K>(launch);
}
