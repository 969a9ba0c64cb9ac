// Largest elements of a line: argmax, topk.
//
//     argmax  out[d0,d1,d2] = lowest n where x[d0,d1,d2,n] is largest
//     topk    values, indices [d0,d1,d2,k]: the k largest, in falling order, ties by lowest index
//
// NaN counts as -infinity. A fold in vectors finds which block can matter; only there are elements compared
// one by one. topk keeps a heap of indices in the output itself, so it needs no memory however large k is:
// O(n + m log k) for m elements that enter the heap. Bound: memory bandwidth for small k.
#include "lines.hpp"
#include "ops.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

constexpr double SCAN_NS = 0.1, ENTER_NS = 10, LINE_NS = 30;

int64_t argmax_line(Line& x, int64_t n) {
    float best = -__builtin_inff();
    int64_t best_start = 0, best_count = 0;
    pieces(n, [&](int64_t start, int64_t count) {
        const float here = largest(x.piece(start, count), count);
        if (!(here > best)) return;
        best = here;
        best_start = start;
        best_count = count;
    });
    if (best_count == 0) return 0;  // nothing above -infinity
    return best_start + find(x.piece(best_start, best_count), best_count, best);
}

// A heap of indices with the least wanted at the root. It lies in the strided output `indices`.
struct Heap {
    const float* values;  // the whole line as f32, or NULL: elements are read one by one
    const Line& line;
    int32_t* indices;
    int64_t stride, size = 0;

    int32_t& entry(int64_t i) const { return indices[i * stride]; }

    float value(int64_t index) const {
        float v;
        if (values)
            v = values[index];
        else
            read(&v, line.dtype, line.data + index * line.stride * item_bytes(line.dtype), 1, 1);
        return v == v ? v : -__builtin_inff();
    }

    bool wanted_less(int32_t a, int32_t b) const {
        const float va = value(a), vb = value(b);
        return va < vb || (va == vb && a > b);
    }

    void sift(int64_t hole, int32_t index) const {
        for (int64_t child; (child = 2 * hole + 1) < size; hole = child) {
            if (child + 1 < size && wanted_less(entry(child + 1), entry(child))) child++;
            if (!wanted_less(entry(child), index)) break;
            entry(hole) = entry(child);
        }
        entry(hole) = index;
    }

    void fill(int64_t k) {
        for (int64_t i = 0; i < k; i++) entry(i) = (int32_t)i;
        size = k;
        for (int64_t i = k / 2 - 1; i >= 0; i--) sift(i, entry(i));
    }

    // Takes the least wanted out of the heap, again and again, to behind it: falling order.
    void sort() {
        while (size > 1) {
            size--;
            const int32_t moved = entry(size);
            entry(size) = entry(0);
            sift(0, moved);
        }
    }
};

void topk_line(const Args& args, int64_t index, float* scratch) {
    const Operand &values = args.operands[0], &indices = args.operands[1];
    const int64_t n = args.dims[3], k = args.dims[4];
    Line x(args.operands[2], 3, scratch);
    x.data = line(args, args.operands[2], index);
    const bool direct = x.dtype == NOCOPY_F32 && x.stride == 1;
    const float* whole = direct || n <= Line::PIECE ? x.piece(0, n) : nullptr;
    Heap heap{whole, x, reinterpret_cast<int32_t*>(line(args, indices, index)), indices.strides[3]};
    heap.fill(k);
    float floor = heap.value(heap.entry(0));
    for (int64_t start = k; start < n; start += SCAN) {
        const int64_t count = least(SCAN, n - start);
        const float* block = whole ? whole + start : x.piece(start, count);
        if (!(largest(block, count) > floor)) continue;
        for (int64_t i = 0; i < count; i++) {
            if (!(block[i] > floor)) continue;
            heap.sift(0, (int32_t)(start + i));
            floor = heap.value(heap.entry(0));
        }
    }
    heap.sort();
    uint8_t* to = line(args, values, index);
    for (int64_t i = 0; i < k; i++) {
        const float value = heap.value(heap.entry(i));
        write(to + i * values.strides[3] * item_bytes(values.dtype), values.dtype, 1, &value, 1);
    }
}

}  // namespace

void argmax(const Args& args, Team& team) {
    const int64_t lines = line_count(args), n = args.dims[3];
    if (lines == 0) return;
    parallel(team, cut(team, lines, SCAN_NS * (double)n + LINE_NS),
             [&](int64_t first, int64_t last, float* scratch) {
                 Line x(args.operands[1], 3, scratch);
                 for (int64_t i = first; i < last; i++) {
                     x.data = line(args, args.operands[1], i);
                     const int32_t found = (int32_t)argmax_line(x, n);
                     *reinterpret_cast<int32_t*>(line(args, args.operands[0], i)) = found;
                 }
             });
}

void topk(const Args& args, Team& team) {
    const int64_t n = args.dims[3], k = args.dims[4];
    if (k == 0) return;  // the other dims are bounded only while there are elements
    const int64_t lines = line_count(args);
    if (lines == 0) return;
    parallel(team, cut(team, lines, SCAN_NS * (double)n + ENTER_NS * (double)k + LINE_NS),
             [&](int64_t first, int64_t last, float* scratch) {
                 for (int64_t i = first; i < last; i++) topk_line(args, i, scratch);
             });
}

}  // namespace nocopy::NOCOPY_LEVEL
