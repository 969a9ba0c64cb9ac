// Rows of any element type and stride, as rows of f32 and back.
#pragma once

#include "blocks.hpp"
#include "level.hpp"

namespace nocopy::NOCOPY_LEVEL {

inline constexpr int64_t TILE = 512;  // floats; a few tiles lie in the L1 cache together

NOCOPY_INLINE constexpr int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
NOCOPY_INLINE constexpr int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}
NOCOPY_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
NOCOPY_INLINE float param(const Args& args, unsigned index) {
    return as<float>(args.params[index]);
}

NOCOPY_INLINE int64_t item_bytes(uint32_t dtype) {
    return dtype == NOCOPY_U8 ? 1 : dtype == NOCOPY_F16 || dtype == NOCOPY_BF16 ? 2 : 4;
}

// Calls f with a typed null pointer, so that a generic lambda learns the element type.
template <class Function>
NOCOPY_INLINE void with_type(uint32_t dtype, const Function& f) {
    switch (dtype) {
        case NOCOPY_F32:
            return f(static_cast<float*>(nullptr));
        case NOCOPY_F16:
            return f(static_cast<Float16*>(nullptr));
        case NOCOPY_BF16:
            return f(static_cast<BFloat16*>(nullptr));
        case NOCOPY_I32:
            return f(static_cast<int32_t*>(nullptr));
        default:
            return f(static_cast<uint8_t*>(nullptr));
    }
}

// The same for operands that are f32, f16 or bf16.
template <class Function>
NOCOPY_INLINE void with_float(uint32_t dtype, const Function& f) {
    switch (dtype) {
        case NOCOPY_F32:
            return f(static_cast<float*>(nullptr));
        case NOCOPY_F16:
            return f(static_cast<Float16*>(nullptr));
        default:
            return f(static_cast<BFloat16*>(nullptr));
    }
}

// Bytes that `elements` take; of a block type, a whole number of blocks.
NOCOPY_INLINE int64_t bytes_of(uint32_t dtype, int64_t elements) {
    if (!is_blocks(dtype)) return elements * item_bytes(dtype);
    const BlockShape shape = block_shape(dtype);
    return elements / shape.elements * shape.bytes;
}

// The element at `index` elements from the start; of a block type, the first of a block.
NOCOPY_INLINE uint8_t* at(const Operand& operand, int64_t index) {
    return operand.data + bytes_of(operand.dtype, index);
}

template <class T>
void read_row(float* out, const T* in, int64_t stride, int64_t n) {
    int64_t i = 0;
    if (stride == 1) {
        for (; i + W <= n; i += W) store(out + i, widen(in + i));
    } else if (stride == 0 && n > 0) {
        T same[W];
        for (int j = 0; j < W; j++) same[j] = in[0];
        const F v = widen(same);
        for (; i + W <= n; i += W) store(out + i, v);
    } else {
        for (; i + W <= n; i += W) {
            T some[W];
            for (int j = 0; j < W; j++) some[j] = in[(i + j) * stride];
            store(out + i, widen(some));
        }
    }
    if (i < n) {
        T some[W] = {};
        for (int j = 0; j < n - i; j++) some[j] = in[(i + j) * stride];
        store_part(out + i, widen(some), n - i);
    }
}

template <class T>
void write_row(T* out, int64_t stride, const float* in, int64_t n) {
    int64_t i = 0;
    if (stride == 1) {
        for (; i + W <= n; i += W) narrow(out + i, load(in + i));
    } else {
        for (; i + W <= n; i += W) {
            T some[W];
            narrow(some, load(in + i));
            for (int j = 0; j < W; j++) out[(i + j) * stride] = some[j];
        }
    }
    if (i < n) {
        T some[W];
        narrow(some, load_part(in + i, n - i));
        for (int j = 0; j < n - i; j++) out[(i + j) * stride] = some[j];
    }
}

// n elements from `in`, `stride` elements apart, as f32. Blocks lie side by side and are decoded whole.
NOCOPY_INLINE void read(float* out, uint32_t dtype, const uint8_t* in, int64_t stride, int64_t n) {
    if (is_blocks(dtype)) return decode(out, dtype, in, n);
    with_type(dtype, [&](auto* type) {
        read_row(out, reinterpret_cast<decltype(type)>(const_cast<uint8_t*>(in)), stride, n);
    });
}

// n floats converted to `dtype`, `stride` elements apart.
NOCOPY_INLINE void write(uint8_t* out, uint32_t dtype, int64_t stride, const float* in, int64_t n) {
    with_type(dtype, [&](auto* type) { write_row(reinterpret_cast<decltype(type)>(out), stride, in, n); });
}

// n elements as contiguous f32: where they lie if they are that already, else converted into `buffer`.
NOCOPY_INLINE const float* view(float* buffer, uint32_t dtype, const uint8_t* in, int64_t stride, int64_t n) {
    if (dtype == NOCOPY_F32 && stride == 1) return reinterpret_cast<const float*>(in);
    read(buffer, dtype, in, stride, n);
    return buffer;
}

// The same bits: elements of one size, no conversion.
template <class T>
void move_row(uint8_t* out_bytes, int64_t out_stride, const uint8_t* in_bytes, int64_t in_stride, int64_t n) {
    T* out = reinterpret_cast<T*>(out_bytes);
    const T* in = reinterpret_cast<const T*>(in_bytes);
    if (out_stride == 1 && in_stride == 1) {
        if (out != in) __builtin_memcpy(out, in, (size_t)n * sizeof(T));
    } else if (out_stride == 1 && in_stride == 0) {
        const T value = *in;
        for (int64_t i = 0; i < n; i++) out[i] = value;
    } else {
        for (int64_t i = 0; i < n; i++) out[i * out_stride] = in[i * in_stride];
    }
}

using Mover = void (*)(uint8_t*, int64_t, const uint8_t*, int64_t, int64_t);
NOCOPY_INLINE Mover mover(uint32_t dtype) {
    const int64_t size = item_bytes(dtype);
    return size == 1 ? move_row<uint8_t> : size == 2 ? move_row<uint16_t> : move_row<uint32_t>;
}

// Cuts `items` of about `cost` nanoseconds each into chunks: one chunk below what waking a thread costs, else
// chunks that are short against a deadline and even enough for the threads.
struct Cut {
    int64_t items, each;
    int64_t chunks() const { return ceil_div(items, each); }
    int64_t first(uint64_t chunk) const { return (int64_t)chunk * each; }
    int64_t last(uint64_t chunk) const { return least(items, first(chunk) + each); }
};

NOCOPY_INLINE Cut cut(const Team& team, int64_t items, double cost) {
    constexpr double ALONE_NS = 20e3, SHORTEST_NS = 5e3, LONGEST_NS = 2e6;
    const double total = (double)items * cost;
    if (total < ALONE_NS) return {items, most(items, 1)};
    const double share = total / (4.0 * threads(team));
    const double length = share < SHORTEST_NS ? SHORTEST_NS : share > LONGEST_NS ? LONGEST_NS : share;
    return {items, most(1, (int64_t)(length / cost))};
}

// body(first, last, scratch) for each chunk.
template <class Function>
NOCOPY_INLINE void parallel(Team& team, const Cut& pieces, const Function& body) {
    struct Context {
        const Cut& pieces;
        const Function& body;
    } context{pieces, body};
    run(
        team, (uint64_t)pieces.chunks(),
        [](const void* c, uint64_t chunk, float* scratch) {
            const auto& context = *static_cast<const Context*>(c);
            context.body(context.pieces.first(chunk), context.pieces.last(chunk), scratch);
        },
        &context);
}

}  // namespace nocopy::NOCOPY_LEVEL
