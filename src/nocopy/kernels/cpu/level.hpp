// What the player and the kernels know of each other.
//
// Kernel files are compiled once per instruction-set level, inside namespace nocopy::<level>. Code that is
// shared between levels must not be inline: the linker would keep one copy, perhaps the one with AVX-512
// instructions, for machines that have none. So this header has data types and declarations only, and the
// kernels use nothing of the standard library that has a body.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nocopy.h"

namespace nocopy {

struct Team;  // the threads that play; see pool.hpp

// Floats of private scratch memory that each thread has, 64-byte aligned: 1 MiB, about an L2 cache.
inline constexpr std::size_t SCRATCH_FLOATS = 256 * 1024;
// Floats of scratch memory that all threads share, 64-byte aligned: packed panels of a matmul. Untouched
// pages cost nothing.
inline constexpr std::size_t SHARED_FLOATS = 8 * 1024 * 1024;

using Body = void (*)(const void* context, std::uint64_t chunk, float* scratch);

// Runs body(context, 0 .. chunks-1, scratch of the running thread), in any order, on the team's threads and
// the caller's, and returns when all have ended. After the deadline the remaining chunks are skipped; a
// kernel that runs several times in a row asks `expired` in between. One chunk runs on the caller alone.
void run(Team& team, std::uint64_t chunks, Body body, const void* context);
bool expired(const Team& team);
// The same, after a look at the clock (25 ns): for bodies whose single chunk may take long.
bool overdue(Team& team);
unsigned threads(const Team& team);
float* shared(Team& team);

struct Operand {
    std::uint8_t* data;  // first element; NULL if the operand is absent
    std::uint32_t dtype;
    std::int64_t strides[NOCOPY_MAX_AXES];  // in elements; of blocks, multiples of a block but for a 1
};

// One record with its operands resolved to addresses.
struct Args {
    unsigned function;
    Operand operands[NOCOPY_MAX_OPERANDS];
    std::int64_t dims[NOCOPY_MAX_DIMS];
    const std::uint32_t* params;
};

using Kernel = void (*)(const Args& args, Team& team);

inline constexpr unsigned MAX_OPCODE = NOCOPY_OP_SAMPLE;

struct Level {
    const char* name;
    bool (*available)();
    const Kernel* kernels;  // by opcode, 0 .. MAX_OPCODE; NULL where there is no op
};

// The best available level of that name, or the best of all for NULL; NULL if there is none.
const Level* find_level(const char* name);

}  // namespace nocopy
