// Stands in for kernels/cuda/pause.cuh where there is no GPU: lets the others run.
#pragma once

inline void pause_here() {
    emulator::yield();
}
