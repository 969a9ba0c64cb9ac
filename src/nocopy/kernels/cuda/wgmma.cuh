// Matrix instructions of a warpgroup: four warps, the first of which is a multiple of four, multiply together
// (sm_90a alone). They run behind the code that starts them: `begin_products` comes before the first of some,
// and behind whatever wrote their registers; `end_products` after the last; after `wait_products` all are
// done.
//
// A warp has sixteen of 64 rows, in fragments as in mma.cuh. Matrices in shared memory are rows of 128 bytes,
// `swizzled<128>`, from a multiple of 1024 bytes on. The descriptor of such a matrix is the same whichever
// way it is read: 1024 bytes lead from eight rows to the next eight, 128-byte swizzle (PTX ISA, "Matrix
// Descriptor Format").
#pragma once

#include "mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GROUPS_MULTIPLY 1
#else
#define GROUPS_MULTIPLY 0
#endif

#if GROUPS_MULTIPLY

// What threads have written to shared memory may be read by products of others that hear of it next.
__device__ inline void show_to_products() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void begin_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void end_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ inline void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// What products read and write stays in its registers until here: the compiler takes them for done at once.
template <int N>
__device__ inline void pin(float (&d)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) asm volatile("" : "+f"(d[i][j])::"memory");
}
template <int N>
__device__ inline void pin(uint32_t (&a)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(a[i][j])::"memory");
}

// All 32 registers of d, and an instruction with them: `matrices` are the operands behind d, whose
// constraints follow.
#define NOCOPY_WGMMA(type, matrices, more, ...)                                                            \
    asm volatile(                                                                                          \
        "{ .reg .pred more; setp.ne.b32 more, %32, 0; "                                                    \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                        \
        " "                                                                                                \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " matrices "; }"                          \
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),        \
          "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),        \
          "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]),        \
          "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),        \
          "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),        \
          "+f"(d[7][2]), "+f"(d[7][3])                                                                     \
        : "r"((int)(more)), __VA_ARGS__                                                                    \
        : "memory")

// A matrix in shared memory: its descriptor, which is the same for all lanes, as the compiler is told.
struct GroupMatrix {
    uint64_t descriptor;

    __device__ explicit GroupMatrix(const uint8_t* first)
        : descriptor((uint64_t)1 << 62 | (uint64_t)(1024 / 16) << 32 | (uint64_t)1 << 16 |
                     (__shfl_sync(0xffffffffu, shared_address(first), 0) & 0x3ffff) / 16) {}

    // That of what lies some bytes behind its first.
    __device__ uint64_t at(uint32_t bytes) const { return descriptor + bytes / 16; }
};

// d[64,64] = a[64,16] b[16,64] of what lies `at` bytes behind the first of both, added to d if there is
// `more` in it. Rows of both lie along the sum.
template <bool BF16>
__device__ inline void multiply_group(float (&d)[8][4], const GroupMatrix& a, const GroupMatrix& b,
                                      uint32_t at, bool more) {
    if constexpr (BF16)
        NOCOPY_WGMMA("bf16", "%33, %34, more, 1, 1, 0, 0", more, "l"(a.at(at)), "l"(b.at(at)));
    else
        NOCOPY_WGMMA("f16", "%33, %34, more, 1, 1, 0, 0", more, "l"(a.at(at)), "l"(b.at(at)));
}

// d[64,64] += a[64,16] b[16,64], `a` from registers; each row of b is 64 elements across the sum.
template <bool BF16>
__device__ inline void multiply_group_across(float (&d)[8][4], const uint32_t (&a)[4], const GroupMatrix& b,
                                             uint32_t at) {
    if constexpr (BF16)
        NOCOPY_WGMMA("bf16", "{%33, %34, %35, %36}, %37, more, 1, 1, 1", true, "r"(a[0]), "r"(a[1]),
                     "r"(a[2]), "r"(a[3]), "l"(b.at(at)));
    else
        NOCOPY_WGMMA("f16", "{%33, %34, %35, %36}, %37, more, 1, 1, 1", true, "r"(a[0]), "r"(a[1]), "r"(a[2]),
                     "r"(a[3]), "l"(b.at(at)));
}

#endif
