// matmul: out[b0,b1,m,n] = scale * sum over k of a[b0,b1,m,k] b[b0,b1,k,n], summed in f32.
//
// Any strides (transposes and broadcast batches are strides) and any mix of f32, f16, bf16; b may also be
// blocks, which lie along k. Each product goes one of these ways:
//     up to 8 rows or columns   skinny.hpp: b is streamed once (memory-bound); vnni.hpp if b is blocks
//     weights along k           strips.hpp: b is read once, as it lies
//     any other                 packed panels (gemm.hpp; bound: multiply-adds), which the team shares if the
//                               product is large, else in one thread's scratch memory
#include "gemm.hpp"
#include "ops.hpp"
#include "skinny.hpp"
#include "strips.hpp"
#include "vnni.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

// A product of the batch with its operands' strides by name.
struct Matmul {
    int64_t b0, b1, m, n, k;
    float scale;
    Operand out, a, b;
    struct Strides {
        int64_t b0, b1, row, column;
    } out_s, a_s, b_s;
};

Matmul::Strides strides_of(const Operand& x) {
    return {x.strides[0], x.strides[1], x.strides[2], x.strides[3]};
}

template <class T>
void exchange(T& x, T& y) {
    const T old = x;
    x = y;
    y = old;
}

// C^T = B^T A^T: rows become columns.
void transpose(Matmul& p) {
    exchange(p.m, p.n);
    exchange(p.a, p.b);
    exchange(p.a_s, p.b_s);
    exchange(p.out_s.row, p.out_s.column);
    exchange(p.a_s.row, p.a_s.column);
    exchange(p.b_s.row, p.b_s.column);
}

// Batches that share one b are rows of one larger product.
void fold_batch(Matmul& p) {
    const auto rows_continue = [&](int64_t batch, const Matmul::Strides& s) {
        return p.m == 1 || batch == p.m * s.row;
    };
    if (p.b1 > 1 && p.b_s.b1 == 0 && rows_continue(p.a_s.b1, p.a_s) && rows_continue(p.out_s.b1, p.out_s)) {
        if (p.m == 1) {
            p.a_s.row = p.a_s.b1;
            p.out_s.row = p.out_s.b1;
        }
        p.m *= p.b1;
        p.b1 = 1;
    }
    if (p.b1 == 1 && p.b0 > 1) {
        p.b1 = p.b0;
        p.b0 = 1;
        p.a_s.b1 = p.a_s.b0;
        p.b_s.b1 = p.b_s.b0;
        p.out_s.b1 = p.out_s.b0;
        fold_batch(p);
    }
}

// Elements of C that the micro-kernels compute, padding included.
double padded(int64_t m, int64_t n) {
    return (double)(ceil_div(m, 2) * 2) * (double)(ceil_div(n, W) * W);
}

bool better_transposed(const Matmul& p) {
    if (p.m <= MAX_SKINNY || p.n <= MAX_SKINNY) return p.m > p.n;
    const double kept = padded(p.m, p.n), turned = padded(p.n, p.m);
    if (turned < 0.8 * kept) return true;
    const bool columns_lie_together = p.out_s.row == 1 && p.out_s.column != 1;
    return columns_lie_together && turned < 1.25 * kept;
}

Matmul plan(const Args& args) {
    Matmul p{args.dims[0],
             args.dims[1],
             args.dims[2],
             args.dims[3],
             args.dims[4],
             param(args, 0),
             args.operands[0],
             args.operands[1],
             args.operands[2],
             strides_of(args.operands[0]),
             strides_of(args.operands[1]),
             strides_of(args.operands[2])};
    if (p.k == 0) p.a_s = p.b_s = {};  // empty operands may have any strides
    fold_batch(p);
    if (!is_blocks(p.b.dtype) && better_transposed(p)) transpose(p);
    return p;
}

Operand moved(const Operand& x, int64_t elements) {
    Operand y = x;
    y.data = at(x, elements);
    return y;
}

void skinny_product(const Skinny& p, Team& team, bool alone, float* scratch) {
#if defined(__AVX512VNNI__)
    if (alone && is_blocks(p.b.dtype) && p.m > MAX_INTEGER) {  // there is room for so many rows at a time
        for (int64_t m = 0; m < p.m; m += MAX_INTEGER)
            skinny_product(rows_of(p, m, least(MAX_INTEGER, p.m - m)), team, alone, scratch);
        return;
    }
    if (integer_product(p, team, alone, scratch)) return;
#endif
    skinny(p, team, alone, scratch);
}

// Weights as a model has them: rows of many elements along k.
bool is_weights(const Matmul& p) {
    return is_blocks(p.b.dtype) || (p.b_s.row == 1 && p.k >= 64 && p.n >= 2 * STRIP_ROWS);
}

// More than eight rows times weights; in slices of eight where k is too long for panels.
void weights_product(const Skinny& p, Team& team, bool alone, float* scratch) {
    if (p.k > 0 && strip_columns(p, room_for_panels(alone)) > 0) return strips(p, team, alone, scratch);
    for (int64_t m = 0; m < p.m && !overdue(team); m += MAX_SKINNY)
        skinny_product(rows_of(p, m, least(MAX_SKINNY, p.m - m)), team, alone, scratch);
}

template <class Runner>
void packed_product(const Matmul& p, const Operand& out, const Operand& a, const Operand& b,
                    const Runner& runner) {
    const auto pack_a = [&](float* to, int64_t row, int64_t rows, int64_t k, int64_t depth, float* scratch) {
        pack<MR>(to, a, row * p.a_s.row + k * p.a_s.column, p.a_s.row, p.a_s.column, rows, depth, scratch);
    };
    const auto pack_b = [&](float* to, int64_t column, int64_t columns, int64_t k, int64_t depth,
                            float* scratch) {
        pack<NR>(to, b, column * p.b_s.column + k * p.b_s.row, p.b_s.column, p.b_s.row, columns, depth,
                 scratch);
    };
    const auto put = [&](int64_t row, int64_t column, int64_t n, const float* values) {
        write(at(out, row * p.out_s.row + column * p.out_s.column), out.dtype, p.out_s.column, values, n);
    };
    const bool direct = out.dtype == NOCOPY_F32 && (p.out_s.column == 1 || p.n == 1);
    float* c = direct ? reinterpret_cast<float*>(out.data) : nullptr;
    const Product<decltype(pack_a), decltype(pack_b), decltype(put)> product{
        p.m, p.n, p.k, p.scale, Operand{}, c, p.out_s.row, pack_a, pack_b, put};
    multiply(product, runner);
}

// One product of the batch.
void one(const Matmul& p, int64_t index, Team& team, bool alone, float* scratch) {
    const int64_t i1 = index % p.b1, i0 = index / p.b1;
    const Operand out = moved(p.out, i0 * p.out_s.b0 + i1 * p.out_s.b1);
    const Operand a = moved(p.a, i0 * p.a_s.b0 + i1 * p.a_s.b1);
    const Operand b = moved(p.b, i0 * p.b_s.b0 + i1 * p.b_s.b1);
    const Skinny flat{p.m,       p.n,          p.k,       p.scale,     out, a, b, p.out_s.row, p.out_s.column,
                      p.a_s.row, p.a_s.column, p.b_s.row, p.b_s.column};
    if (p.m <= MAX_SKINNY) return skinny_product(flat, team, alone, scratch);
    if (is_weights(p)) return weights_product(flat, team, alone, scratch);
    if (alone) return packed_product(p, out, a, b, LoneRunner{team, scratch});
    packed_product(p, out, a, b, TeamRunner{team});
}

}  // namespace

void matmul(const Args& args, Team& team) {
    for (int i = 0; i < 4; i++)
        if (args.dims[i] == 0) return;  // nothing to write
    const Matmul p = plan(args);
    const int64_t batches = p.b0 * p.b1;
    constexpr double ALONE_NS = 20e3, LONGEST_NS = 10e6, PRODUCT_NS = 100;
    const double moved_ns = PACK_NS * ((double)p.m * (double)p.k + (double)p.k * (double)p.n);
    const double cost = MULTIPLY_NS * (double)p.m * (double)p.n * (double)p.k + moved_ns + PRODUCT_NS;
    const bool many = batches >= 4 * (int64_t)threads(team) && cost < LONGEST_NS;
    if (cost > ALONE_NS && !many) {
        for (int64_t i = 0; i < batches && !overdue(team); i++) one(p, i, team, false, nullptr);
        return;
    }
    parallel(team, cut(team, batches, cost), [&](int64_t first, int64_t last, float* scratch) {
        for (int64_t i = first; i < last; i++) one(p, i, team, true, scratch);
    });
}

}  // namespace nocopy::NOCOPY_LEVEL
