// As much of the Metal Shading Language as Slang uses for our kernels, in C++14, and a way to run a kernel.
//
// Address spaces vanish; `threadgroup` variables are made static by the caller of the compiler. Each thread
// of a group is a fiber; a barrier yields to the next one. The order in which they run differs from launch to
// launch and from barrier to barrier, so that a missing barrier shows. Threads that do not all reach the same
// number of barriers are an error, as they are on a GPU. One group runs after the other.
#include <stdint.h>
#include <string.h>

#include "fibers.hpp"

#define device
#define constant
#define thread

typedef uint8_t uchar;
typedef uint16_t ushort;
typedef uint32_t uint;
typedef unsigned long ulong;
static_assert(sizeof(ulong) == 8, "ulong has 64 bits in Metal");

template <typename T>
struct pair_of {
    T x, y;
    pair_of() {}
    pair_of(T a, T b) : x(a), y(b) {}
    explicit pair_of(T a) : x(a), y(a) {}
    template <typename U>
    explicit pair_of(pair_of<U> v) : x(T(v.x)), y(T(v.y)) {}
    friend pair_of operator+(pair_of a, pair_of b) { return pair_of(T(a.x + b.x), T(a.y + b.y)); }
    friend pair_of operator-(pair_of a, pair_of b) { return pair_of(T(a.x - b.x), T(a.y - b.y)); }
    friend pair_of operator*(pair_of a, pair_of b) { return pair_of(T(a.x * b.x), T(a.y * b.y)); }
};
typedef pair_of<uint> uint2;
typedef pair_of<int> int2;
typedef pair_of<float> float2;

struct uint3 {
    uint x, y, z;
    uint operator[](int i) const { return i == 0 ? x : i == 1 ? y : z; }
};

// Two of four elements: without constructors, so that it may lie in a union.
struct uint2_of_four {
    uint first, second;
    operator uint2() const { return uint2(first, second); }
};

struct uint4 {
    union {
        struct {
            uint x, y, z, w;
        };
        struct {
            uint2_of_four xy;
        };
        struct {
            uint3 xyz;
        };
        struct {
            uint _first;
            uint3 yzw;
        };
        struct {
            uint _before;
            uint2_of_four yz;
        };
    };
    uint4() {}
    uint4(uint a, uint b, uint c, uint d) : x(a), y(b), z(c), w(d) {}
    uint4(uint3 v, uint d) : x(v.x), y(v.y), z(v.z), w(d) {}
    uint4(uint2 v, uint c, uint d) : x(v.x), y(v.y), z(c), w(d) {}
};

namespace metal {
template <typename T, int N>
struct array {
    T values[N];
    T& operator[](ulong i) {
        if (i >= ulong(N)) __builtin_trap();
        return values[i];
    }
    const T& operator[](ulong i) const {
        if (i >= ulong(N)) __builtin_trap();
        return values[i];
    }
};

template <typename To, typename From>
To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

inline float rint(float x) {
    return __builtin_rintf(x);
}
inline float floor(float x) {
    return __builtin_floorf(x);
}
inline float ceil(float x) {
    return __builtin_ceilf(x);
}
inline float sqrt(float x) {
    return __builtin_sqrtf(x);
}
inline float abs(float x) {
    return __builtin_fabsf(x);
}
inline uint clz(uint x) {
    return x ? uint(__builtin_clz(x)) : 32u;
}
template <typename T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
    return a < b ? b : a;
}
template <typename T>
T clamp(T x, T low, T high) {
    return min(max(x, low), high);
}

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags flags);
}  // namespace metal

extern "C" uint nocopy_constants[5];
uint nocopy_constants[5];

// -- running a kernel
// -----------------------------------------------------------------------------------------

static const int MOST_THREADS = 256;
static fibers::Fiber group_threads[MOST_THREADS];
static int current;

void metal::threadgroup_barrier(mem_flags) {
    fibers::yield();
}

static void run_thread(int index);

static void run_current() {
    run_thread(current);
}

// Runs one group; false if some threads waited at a barrier that others never reached. `order` is 0 for
// rising, 1 for falling and 2 for alternating order of the threads between barriers.
static bool run_group(int threads, int order) {
    for (fibers::Fiber& fiber : group_threads) fiber.ended = false;
    for (int phase = 0;; phase++) {
        int done = 0;
        for (int i = 0; i < threads; i++) {
            bool falling = order == 1 || (order == 2 && (phase & 1));
            current = falling ? threads - 1 - i : i;
            if (!group_threads[current].ended) fibers::step(group_threads[current], run_current);
            done += group_threads[current].ended;
        }
        if (done == threads) return true;
        if (done != 0) {
            for (fibers::Fiber& fiber : group_threads) fiber.begun = false;  // some wait in the kernel
            return false;
        }
    }
}
