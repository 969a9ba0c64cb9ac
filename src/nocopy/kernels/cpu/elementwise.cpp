// Element-wise ops: copy, fill, unary, clamp, binary, glu.
//
//     out[d0,d1,d2,d3] = convert(function(f32(x[d0,d1,d2,d3]), ...))
//
// Any strides (0 repeats an input) and any mix of element types. Contiguous f32 is read and written where it
// lies; everything else passes through tiles of 512 floats in the L1 cache, so there is one loop per function
// and not one per combination of types. Bound: memory bandwidth for the cheap functions, about 1 ns per
// element and lane group for exp and its kind.
#include "grid.hpp"
#include "math.hpp"
#include "ops.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

// Nanoseconds per element, measured on one Zen 4 core; they only decide how work is cut.
constexpr double MOVE_NS = 0.1, CHEAP_NS = 0.15, COSTLY_NS = 0.5, POW_NS = 8;

using Loop = void (*)(float* out, const float* a, const float* b, int64_t n);

template <F (*function)(F)>
void loop1(float* out, const float* x, const float*, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, function(load(x + i)));
    if (i < n) store_part(out + i, function(load_part(x + i, n - i)), n - i);
}

template <F (*function)(F, F)>
void loop2(float* out, const float* a, const float* b, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, function(load(a + i), load(b + i)));
    if (i < n) store_part(out + i, function(load_part(a + i, n - i), load_part(b + i, n - i)), n - i);
}

NOCOPY_INLINE F neg(F x) {
    return -x;
}
NOCOPY_INLINE F abs(F x) {
    return as<F>(as<I>(x) & INT32_MAX);
}
NOCOPY_INLINE F sign(F x) {
    const F up = x > 0.0f ? set(1.0f) : F{};
    const F signs = x < 0.0f ? set(-1.0f) : up;
    return x == x ? signs : x;
}
NOCOPY_INLINE F square(F x) {
    return x * x;
}
NOCOPY_INLINE F rsqrt(F x) {
    return 1.0f / sqrt(x);
}
NOCOPY_INLINE F reciprocal(F x) {
    return 1.0f / x;
}
NOCOPY_INLINE F sin(F x) {
    return sine<0>(x);
}
NOCOPY_INLINE F cos(F x) {
    return sine<1>(x);
}
NOCOPY_INLINE F sigmoid(F x) {
    return 1.0f / (1.0f + exp(-x));
}
NOCOPY_INLINE F relu(F x) {
    return x < 0.0f ? F{} : x;
}
NOCOPY_INLINE F gelu(F x) {
    return 0.5f * x * (1.0f + erf(x * 0.707106781f));
}
NOCOPY_INLINE F gelu_tanh(F x) {
    return 0.5f * x * (1.0f + tanh(0.797884561f * (x + 0.044715f * (x * x * x))));
}
NOCOPY_INLINE F silu(F x) {
    return x / (1.0f + exp(-x));
}

struct Unary {
    Loop loop;
    double cost;
};
// In the order of the op table.
constexpr Unary UNARY[] = {
    {loop1<neg>, CHEAP_NS},        {loop1<abs>, CHEAP_NS},   {loop1<sign>, CHEAP_NS},
    {loop1<square>, CHEAP_NS},     {loop1<sqrt>, CHEAP_NS},  {loop1<rsqrt>, COSTLY_NS},
    {loop1<reciprocal>, CHEAP_NS}, {loop1<exp>, COSTLY_NS},  {loop1<log>, COSTLY_NS},
    {loop1<sin>, COSTLY_NS},       {loop1<cos>, COSTLY_NS},  {loop1<tanh>, COSTLY_NS},
    {loop1<sigmoid>, COSTLY_NS},   {loop1<relu>, CHEAP_NS},  {loop1<gelu>, COSTLY_NS},
    {loop1<gelu_tanh>, COSTLY_NS}, {loop1<silu>, COSTLY_NS}, {loop1<floor>, CHEAP_NS},
    {loop1<ceil>, CHEAP_NS},       {loop1<rint>, CHEAP_NS},
};
static_assert(NOCOPY_UNARY_NEG == 0 && NOCOPY_UNARY_EXP == 7 && NOCOPY_UNARY_TANH == 11 &&
              NOCOPY_UNARY_ROUND + 1 == sizeof UNARY / sizeof UNARY[0]);

NOCOPY_INLINE F add(F a, F b) {
    return a + b;
}
NOCOPY_INLINE F sub(F a, F b) {
    return a - b;
}
NOCOPY_INLINE F mul(F a, F b) {
    return a * b;
}
NOCOPY_INLINE F div(F a, F b) {
    return a / b;
}
NOCOPY_INLINE F eq(F a, F b) {
    return a == b ? set(1.0f) : F{};
}
NOCOPY_INLINE F lt(F a, F b) {
    return a < b ? set(1.0f) : F{};
}
NOCOPY_INLINE F le(F a, F b) {
    return a <= b ? set(1.0f) : F{};
}

// In the order of the op table.
constexpr Loop BINARY[] = {
    loop2<add>,     loop2<sub>, loop2<mul>, loop2<div>, loop2<min_nan>,
    loop2<max_nan>, loop2<pow>, loop2<eq>,  loop2<lt>,  loop2<le>,
};
static_assert(NOCOPY_BINARY_ADD == 0 && NOCOPY_BINARY_MIN == 4 && NOCOPY_BINARY_POW == 6 &&
              NOCOPY_BINARY_LE + 1 == sizeof BINARY / sizeof BINARY[0]);

// A gated unit: function(a) * b.
template <F (*function)(F)>
F gate(F a, F b) {
    return function(a) * b;
}
constexpr Loop GLU[] = {loop2<gate<silu>>, loop2<gate<gelu>>, loop2<gate<gelu_tanh>>};
static_assert(NOCOPY_GLU_SILU == 0 && NOCOPY_GLU_GELU == 1 && NOCOPY_GLU_GELU_TANH == 2);

// One input of a row: contiguous f32 where it lies, else a tile at a time.
struct Input {
    uint32_t dtype;
    int64_t stride;
    const uint8_t* data;
    float* tile;

    bool direct() const { return dtype == NOCOPY_F32 && stride == 1; }
    const float* part(int64_t start, int64_t n) const {
        if (direct()) return reinterpret_cast<const float*>(data) + start;
        if (stride != 0 || start == 0)  // a repeated value fills the tile once
            read(tile, dtype, data + start * stride * item_bytes(dtype), stride, n);
        return tile;
    }
};

// loop(out, inputs, n) over every row, through tiles where types or strides need them.
template <int inputs, class Function>
void map(const Args& args, Team& team, double cost, const Function& loop) {
    if (empty(args)) return;
    const Grid grid = plan(args, inputs + 1);
    const int last = grid.axes - 1;
    const Operand& out = args.operands[0];
    const int64_t out_stride = grid.strides[0][last];
    const bool direct_out = out.dtype == NOCOPY_F32 && out_stride == 1;
    sweep<inputs + 1>(args, team, grid, cost, [&](uint8_t* const* addresses, int64_t n) {
        alignas(64) float tiles[inputs + 1][TILE];
        Input in[2] = {};
        bool all_direct = direct_out;
        for (int i = 0; i < inputs; i++) {
            in[i] = {args.operands[i + 1].dtype, grid.strides[i + 1][last], addresses[i + 1], tiles[i + 1]};
            all_direct &= in[i].direct();
        }
        const int64_t step = all_direct ? n : TILE;
        for (int64_t start = 0; start < n; start += step) {
            const int64_t part = least(step, n - start);
            float* to = direct_out ? reinterpret_cast<float*>(addresses[0]) + start : tiles[0];
            const float* a = in[0].part(start, part);
            loop(to, a, inputs == 2 ? in[1].part(start, part) : nullptr, part);
            if (!direct_out)
                write(addresses[0] + start * out_stride * item_bytes(out.dtype), out.dtype, out_stride, to,
                      part);
        }
    });
}

void move(const Args& args, Team& team) {
    const Grid grid = plan(args, 2);
    const int64_t out_stride = grid.strides[0][grid.axes - 1], in_stride = grid.strides[1][grid.axes - 1];
    const auto row = mover(args.operands[0].dtype);
    sweep<2>(args, team, grid, MOVE_NS, [&](uint8_t* const* addresses, int64_t n) {
        row(addresses[0], out_stride, addresses[1], in_stride, n);
    });
}

void same_values(float* out, const float* x, const float*, int64_t n) {
    __builtin_memcpy(out, x, (size_t)n * sizeof(float));
}

}  // namespace

void copy(const Args& args, Team& team) {
    if (empty(args)) return;
    if (args.operands[0].dtype == args.operands[1].dtype) return move(args, team);
    map<1>(args, team, CHEAP_NS, same_values);
}

void fill(const Args& args, Team& team) {
    if (empty(args)) return;
    alignas(8) uint8_t element[4];
    const float value = param(args, 0);
    Args filled = args;
    filled.operands[1] = {element, args.operands[0].dtype, {0, 0, 0, 0}};
    write(element, args.operands[0].dtype, 1, &value, 1);
    move(filled, team);
}

void unary(const Args& args, Team& team) {
    const Unary& function = UNARY[args.function];
    map<1>(args, team, function.cost, function.loop);
}

void clamp(const Args& args, Team& team) {
    const F low = set(param(args, 0)), high = set(param(args, 1));
    map<1>(args, team, CHEAP_NS, [=](float* out, const float* x, const float*, int64_t n) {
        int64_t i = 0;
        for (; i + W <= n; i += W) store(out + i, min_nan(max_nan(load(x + i), low), high));
        if (i < n) store_part(out + i, min_nan(max_nan(load_part(x + i, n - i), low), high), n - i);
    });
}

void binary(const Args& args, Team& team) {
    const double cost = args.function == NOCOPY_BINARY_POW ? POW_NS : CHEAP_NS;
    map<2>(args, team, cost, BINARY[args.function]);
}

void glu(const Args& args, Team& team) {
    map<2>(args, team, COSTLY_NS, GLU[args.function]);
}

}  // namespace nocopy::NOCOPY_LEVEL
