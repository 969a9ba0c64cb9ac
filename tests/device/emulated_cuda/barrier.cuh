// Stands in for kernels/cuda/barrier.cuh where there is no GPU. A copy is made as late as it may be, when its
// barrier is looked at, so that what is read too early, or overwritten too early, is wrong.
#pragma once

#include <map>
#include <vector>

#include "stream.cuh"

struct EmulatedBarrier {
    uint16_t waiting, arrivals;
    uint32_t phases;
};

struct EmulatedCopy {
    uint8_t* to;
    const uint8_t* from;
    uint32_t bytes;
};

struct EmulatedCopies {
    uint32_t announced = 0;  // arrivals that count once the copies are made
    uint32_t missing = 0;    // bytes that were announced and not started
    std::vector<EmulatedCopy> started;
};

inline std::map<uint64_t*, EmulatedCopies> emulated_copies;

inline void begin_barrier(uint64_t* barrier, uint32_t arrivals) {
    *(EmulatedBarrier*)barrier = {0, (uint16_t)arrivals, 0};
}

inline void show_barriers() {}

inline void arrive(uint64_t* barrier) {
    EmulatedBarrier& b = *(EmulatedBarrier*)barrier;
    if (++b.waiting == b.arrivals) b.waiting = 0, ++b.phases;
    ++emulator::progress;
}

inline void announce(uint64_t* barrier, uint32_t bytes) {
    EmulatedCopies& copies = emulated_copies[barrier];
    ++copies.announced, copies.missing += bytes;
    ++emulator::progress;
}

inline bool elected() {
    return emulator::lane_of(emulator::current) == 0;
}

struct Copies {
    uint64_t* barrier;
    uint8_t* to;
    uint32_t bytes;

    Copies(uint64_t* b, uint8_t* memory, uint32_t size) : barrier(b), to(memory), bytes(size) {}
    void start(uint32_t beyond, uint64_t from) const {
        if (from % 16 || (uintptr_t)(to + beyond) % 16 || bytes % 16) abort();
        EmulatedCopies& copies = emulated_copies.at(barrier);
        if (bytes > copies.missing) abort();
        copies.missing -= bytes;
        copies.started.push_back({to + beyond, (const uint8_t*)from, bytes});
    }
};

inline void copy_pair(uint64_t* barrier, uint8_t* to, const uint8_t* a, const uint8_t* b, uint32_t bytes) {
    const Copies copies(barrier, to, bytes);
    announce(barrier, 2 * bytes);
    copies.start(0, (uint64_t)a);
    copies.start(bytes, (uint64_t)b);
}

inline bool passed(uint64_t* barrier, uint32_t parity) {
    EmulatedBarrier& b = *(EmulatedBarrier*)barrier;
    if (b.phases % 2 != parity) return true;
    auto found = emulated_copies.find(barrier);
    if (found == emulated_copies.end() || found->second.missing ||
        found->second.announced + b.waiting < b.arrivals) {
        emulator::yield();
        return false;
    }
    const EmulatedCopies copies = std::move(found->second);
    emulated_copies.erase(found);
    for (const EmulatedCopy& copy : copies.started) memcpy(copy.to, copy.from, copy.bytes);
    for (uint32_t i = 0; i < copies.announced; ++i) arrive(barrier);
    return true;
}

inline void await(uint64_t* barrier, uint32_t parity) {
    while (!passed(barrier, parity)) {
    }
}

inline void prefetch(const uint8_t*) {}
inline void prefetch(const uint8_t*, uint32_t) {}

inline uint32_t cycles() {
    static uint32_t now = 0;
    return now += 1024;
}

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
