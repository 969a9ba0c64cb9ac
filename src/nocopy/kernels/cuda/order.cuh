// The order of a program's kernels. One may start while the one before it still runs (programmatic dependent
// launch, sm_90 and newer): its blocks take their places and read what no kernel writes, such as weights.
// What the kernels before it wrote, it may read only when wait_for_previous() has returned; before, it writes
// nothing. Without such a launch, or on an older chip, both do nothing.
#pragma once

__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Every block of the next kernel may start once every block of this one has said so.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
