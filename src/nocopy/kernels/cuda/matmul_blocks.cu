// matmul with b of a block type: out[b0,b1,m,n] = scale * sum over k of a[b0,b1,m,k] b[b0,b1,k,n]. Blocks lie
// along k. Each element of b is decoded as it is fetched into a tile (product.cuh), once for every tile of
// rows: for many rows, and for an `a` that matvec.cu does not read. Bound: arithmetic.
#include "blocks.cuh"
#include "product.cuh"

struct LoadBlockElement {
    __device__ float operator()(const Tensor& b, uint64_t index) const {
        return load_block_element(b, index);
    }
};

NOCOPY_KERNEL(matmul_blocks_large, 256, 2) {
    matmul_tiles<LargeTile>(launch, LoadBlockElement());
}
NOCOPY_KERNEL(matmul_blocks_medium, 256, 3) {
    matmul_tiles<MediumTile>(launch, LoadBlockElement());
}
NOCOPY_KERNEL(matmul_blocks_small, 256, 4) {
    matmul_tiles<SmallTile>(launch, LoadBlockElement());
}
