// Stands in for kernels/cuda/barrier.cuh where there is no GPU. A copy is made as late as it may be, when its
// barrier is looked at, so that what is read too early, or overwritten too early, is wrong.
#pragma once

#include <map>

#include "stream.cuh"

struct EmulatedBarrier {
    uint16_t waiting, arrivals;
    uint32_t phases;
};

struct EmulatedCopy {
    uint8_t* to;
    const uint8_t *a, *b;
    uint32_t bytes;
};

inline std::map<uint64_t*, EmulatedCopy> emulated_copies;

inline void begin_barrier(uint64_t* barrier, uint32_t arrivals) {
    *(EmulatedBarrier*)barrier = {0, (uint16_t)arrivals, 0};
}

inline void show_barriers() {}

inline void arrive(uint64_t* barrier) {
    EmulatedBarrier& b = *(EmulatedBarrier*)barrier;
    if (++b.waiting == b.arrivals) b.waiting = 0, ++b.phases;
    ++emulator::progress;
}

inline void copy_pair(uint64_t* barrier, uint8_t* to, const uint8_t* a, const uint8_t* b, uint32_t bytes) {
    if ((uintptr_t)a % 16 || (uintptr_t)b % 16 || (uintptr_t)to % 16 || bytes % 16) abort();
    if (!emulated_copies.emplace(barrier, EmulatedCopy{to, a, b, bytes}).second) abort();
    ++emulator::progress;
}

inline bool passed(uint64_t* barrier, uint32_t parity) {
    EmulatedBarrier& b = *(EmulatedBarrier*)barrier;
    if (b.phases % 2 != parity) return true;
    auto found = emulated_copies.find(barrier);
    if (found == emulated_copies.end()) {
        emulator::yield();
        return false;
    }
    EmulatedCopy copy = found->second;
    memcpy(copy.to, copy.a, copy.bytes);
    memcpy(copy.to + copy.bytes, copy.b, copy.bytes);
    emulated_copies.erase(found);
    arrive(barrier);
    return true;
}

inline void await(uint64_t* barrier, uint32_t parity) {
    while (!passed(barrier, parity)) {
    }
}

inline void prefetch(const uint8_t*) {}

inline void relax() {
    emulator::yield();
}

inline void meet(uint32_t threads) {
    emulator::meet(emulator::part_barriers[blockIdx.x], threads);
}

inline Words4 load_tagged(const uint32_t* at) {
    return *(const Words4*)at;
}

inline uint32_t load_tagged_word(const uint32_t* at) {
    return *at;
}

inline void store_tagged(uint32_t* at, uint32_t word, uint32_t tag) {
    *at = (word & ~1u) | tag;
    ++emulator::progress;
}

inline void store_tagged(uint32_t* at, float a, float b, uint32_t tag) {
    store_tagged(at, __float_as_uint(a), tag);
    store_tagged(at + 1, __float_as_uint(b), tag);
}
