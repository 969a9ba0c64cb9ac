// rope: rotary positions. Pair i of a head turns by positions[r] * frequencies[i]:
//
//     a, b = x[i], x[i + f]  (half)  or  x[2i], x[2i + 1]  (interleaved)
//     out = scale (a cos - b sin), scale (a sin + b cos); elements from 2 f on are copied
//
// Angles are the same for all heads of a row. out may be x. Bound: sine and cosine for one row, memory
// bandwidth for many heads.
#include "math.hpp"
#include "ops.hpp"
#include "tile.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

struct Rope {
    int64_t heads, n, pairs;
    bool interleaved;
    float scale;
    Operand out, x, frequencies;

    // Pairs i .. i + count of one head.
    void turn(int64_t row, int64_t head, int64_t i, int64_t count, const float* cosines,
              const float* sines) const {
        alignas(64) float a[TILE], b[TILE], first[TILE], second[TILE];
        const int64_t apart = interleaved ? 2 : 1, other = interleaved ? 1 : pairs;
        const auto place = [&](const Operand& o, int64_t element) {
            return at(o, row * o.strides[0] + head * o.strides[1] + element * o.strides[2]);
        };
        read(a, x.dtype, place(x, i * apart), apart * x.strides[2], count);
        read(b, x.dtype, place(x, i * apart + other), apart * x.strides[2], count);
        for (int64_t j = 0; j < count; j++) {
            first[j] = a[j] * cosines[j] - b[j] * sines[j];
            second[j] = a[j] * sines[j] + b[j] * cosines[j];
        }
        write(place(out, i * apart), out.dtype, apart * out.strides[2], first, count);
        write(place(out, i * apart + other), out.dtype, apart * out.strides[2], second, count);
    }

    void keep(int64_t row, int64_t head) const {
        alignas(64) float same[TILE];
        for (int64_t i = 2 * pairs; i < n; i += TILE) {
            const int64_t count = least(TILE, n - i);
            read(same, x.dtype, at(x, row * x.strides[0] + head * x.strides[1] + i * x.strides[2]),
                 x.strides[2], count);
            write(at(out, row * out.strides[0] + head * out.strides[1] + i * out.strides[2]), out.dtype,
                  out.strides[2], same, count);
        }
    }

    void turn_row(int64_t row, int32_t position) const {
        alignas(64) float angles[TILE] = {}, cosines[TILE], sines[TILE];
        for (int64_t i = 0; i < pairs; i += TILE) {
            const int64_t count = least(TILE, pairs - i);
            read(angles, NOCOPY_F32, at(frequencies, i * frequencies.strides[0]), frequencies.strides[0],
                 count);
            for (int64_t j = 0; j < count; j += W) {
                const F angle =
                    rounded((float)position * load(angles + j));  // what lies beyond count is not used
                store(cosines + j, scale * sine<1>(angle));
                store(sines + j, scale * sine<0>(angle));
            }
            for (int64_t head = 0; head < heads; head++) turn(row, head, i, count, cosines, sines);
        }
        for (int64_t head = 0; head < heads; head++) keep(row, head);
    }
};

}  // namespace

void rope(const Args& args, Team& team) {
    const int64_t rows = args.dims[0];
    const Rope rope{
        args.dims[1],   args.dims[2],     args.dims[3],     args.function == NOCOPY_ROPE_INTERLEAVED,
        param(args, 0), args.operands[0], args.operands[1], args.operands[2]};
    const Operand& positions = args.operands[3];
    if (rows == 0 || rope.heads == 0 || rope.n == 0) return;
    constexpr double ELEMENT_NS = 0.5, PAIR_NS = 2;
    const double cost = ELEMENT_NS * (double)(rope.heads * rope.n) + PAIR_NS * (double)rope.pairs;
    parallel(team, cut(team, rows, cost), [&](int64_t first, int64_t last, float*) {
        for (int64_t row = first; row < last && !overdue(team); row++)
            rope.turn_row(
                row, *reinterpret_cast<const volatile int32_t*>(at(positions, row * positions.strides[0])));
    });
}

}  // namespace nocopy::NOCOPY_LEVEL
