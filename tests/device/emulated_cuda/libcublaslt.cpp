// A libcublasLt.so.13 for machines without a GPU: the functions that nocopy calls, over libcuda.cpp. It reads
// column-major matrices as the real one does and is strict about what it is told: attributes, types and the
// alignment that an algorithm was asked for.
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <map>

#define __device__
static float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
#include "half.cuh"

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68 };

struct Operation {
    bool transpose_a = false;
};

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
    int32_t count = 1;
    int64_t step = 0;

    uint64_t bytes() const { return type == R_32F ? 4 : 2; }

    int64_t place(int64_t batch, uint64_t row, uint64_t column) const {
        return batch * step + (int64_t)column * leading + (int64_t)row;
    }

    void put(void* base, int64_t batch, uint64_t row, uint64_t column, float value) const {
        int64_t at = place(batch, row, column);
        if (type == R_32F)
            ((float*)base)[at] = value;
        else
            ((uint16_t*)base)[at] = f32_to_bf16(value);
    }

    float get(const void* base, int64_t batch, uint64_t row, uint64_t column) const {
        int64_t at = place(batch, row, column);
        if (type == R_32F) return ((const float*)base)[at];
        uint16_t bits = ((const uint16_t*)base)[at];
        return type == R_16F ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
};

struct Preference {
    uint64_t workspace = 0;
    std::map<int, uint32_t> alignments;
};

struct Algorithm {
    uint64_t workspace;
    uint32_t alignments[4];
    uint64_t rest[5];
};

struct Found {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
static_assert(sizeof(Algorithm) == 64 && sizeof(Found) == 96, "as in cublasLt.h");

template <typename T>
bool value_of(T* to, const void* from, size_t size) {
    if (size != sizeof(T)) return false;
    memcpy(to, from, size);
    return true;
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() {
    return 130100;
}
int cublasLtCreate(void** handle) {
    return *handle = new int, SUCCESS;
}
int cublasLtDestroy(void* handle) {
    return delete (int*)handle, SUCCESS;
}
int cublasLtMatmulDescCreate(Operation** made, int compute, int scale) {
    if (compute != COMPUTE_32F || scale != R_32F) return INVALID_VALUE;
    return *made = new Operation, SUCCESS;
}
int cublasLtMatmulDescDestroy(Operation* operation) {
    return delete operation, SUCCESS;
}
int cublasLtMatmulDescSetAttribute(Operation* operation, int attribute, const void* value, size_t size) {
    int32_t transpose;
    if (attribute != 3 || !value_of(&transpose, value, size)) return INVALID_VALUE;
    return operation->transpose_a = transpose == 1, SUCCESS;
}
int cublasLtMatrixLayoutCreate(Layout** made, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (type != R_32F && type != R_16F && type != R_16BF) return INVALID_VALUE;
    if (leading < (int64_t)rows) return INVALID_VALUE;
    return *made = new Layout{type, rows, columns, leading}, SUCCESS;
}
int cublasLtMatrixLayoutDestroy(Layout* layout) {
    return delete layout, SUCCESS;
}
int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t size) {
    if (attribute == 5) return value_of(&layout->count, value, size) ? SUCCESS : INVALID_VALUE;
    if (attribute == 6) return value_of(&layout->step, value, size) ? SUCCESS : INVALID_VALUE;
    return INVALID_VALUE;
}
int cublasLtMatmulPreferenceCreate(Preference** made) {
    return *made = new Preference, SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(Preference* preference) {
    return delete preference, SUCCESS;
}
int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value,
                                         size_t size) {
    if (attribute == 1) return value_of(&preference->workspace, value, size) ? SUCCESS : INVALID_VALUE;
    if (attribute < 5 || attribute > 8) return INVALID_VALUE;
    return value_of(&preference->alignments[attribute], value, size) ? SUCCESS : INVALID_VALUE;
}
int cublasLtMatmulAlgoGetHeuristic(void*, Operation* operation, Layout* a, Layout* b, Layout* c, Layout* d,
                                   Preference* preference, int wanted, Found* found, int* count) {
    if (!operation->transpose_a || wanted != 1 || c != d || a->rows != b->rows) return NOT_SUPPORTED;
    if (d->rows != a->columns || d->columns != b->columns || a->type != b->type) return NOT_SUPPORTED;
    if (d->type != R_32F && !(d->type == R_16BF && a->type == R_16BF)) return NOT_SUPPORTED;
    if (a->count != b->count || a->count != d->count) return NOT_SUPPORTED;
    memset(found, 0, sizeof *found);
    found->algorithm.workspace = found->workspace = preference->workspace;
    for (int i = 0; i < 3; ++i) {
        auto asked = preference->alignments.find(5 + i);
        found->algorithm.alignments[i] = asked == preference->alignments.end() ? 256 : asked->second;
    }
    return *count = 1, SUCCESS;
}
int cublasLtMatmul(void*, Operation*, const float* alpha, const void* a, Layout* a_layout, const void* b,
                   Layout* b_layout, const float* beta, const void* c, Layout*, void* d, Layout* d_layout,
                   const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
    const void* operands[3] = {a, b, d};
    for (int i = 0; i < 3; ++i)
        if ((uintptr_t)operands[i] % algorithm->alignments[i]) return INVALID_VALUE;
    if (!workspace || workspace_bytes < algorithm->workspace || !stream || c != d) return INVALID_VALUE;
    float scale = *alpha, keep = *beta;
    Layout la = *a_layout, lb = *b_layout, ld = *d_layout;
    std::function<int()> piece = [=] {
        for (int32_t batch = 0; batch < ld.count; ++batch)
            for (uint64_t column = 0; column < ld.columns; ++column)
                for (uint64_t row = 0; row < ld.rows; ++row) {
                    float sum = 0.0f;
                    for (uint64_t k = 0; k < la.rows; ++k)
                        sum += la.get(a, batch, k, row) * lb.get(b, batch, k, column);
                    ld.put(d, batch, row, column,
                           scale * sum + (keep != 0.0f ? keep * ld.get(d, batch, row, column) : 0.0f));
                }
        return 0;
    };
    using Start = int (*)(const std::function<int()>&, void*);
    static auto start = (Start)dlsym(dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD), "emulated_start");
    return start(piece, stream) ? INVALID_VALUE : SUCCESS;
}
}
