// What many kernels of a program read behind a bus (device/cuda_words.py), brought to where it is near: a few
// ranges of words, one behind the other. A thread takes a word, so that all are on their way at once. Bound:
// the bus's latency.
#include "record.cuh"

constexpr uint32_t WORD_RANGES = 12;

struct nocopy_words {
    uint64_t to;
    uint32_t count;     // words of all ranges
    uint32_t reserved;  // to a multiple of 8 bytes
    struct {
        uint64_t from;
        uint64_t end;  // words of the ranges up to this one
    } ranges[WORD_RANGES];
};

static_assert(sizeof(nocopy_words) == 208, "device/cuda_words.py packs this struct");

extern "C" __global__ void __launch_bounds__(256, 1) copy_words(const __grid_constant__ nocopy_words words) {
    let_next_start();
    wait_for_previous();
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words.count; i += gridDim.x * blockDim.x) {
        uint32_t range = 0, begin = 0;
        while (i >= words.ranges[range].end) begin = (uint32_t)words.ranges[range++].end;
        ((uint32_t*)words.to)[i] = ((const uint32_t*)words.ranges[range].from)[i - begin];
    }
}
