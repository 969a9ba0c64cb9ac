// A guest that uses every builder the way a program does. test_every_builder.py says the same in Python.
#include "nocopy.h"

enum { FLOATS = 4096, CAPACITY = 32 };

float arena[FLOATS];  // the host writes random numbers here before `play`
uint8_t bytes[64];
int32_t indices[8];
nocopy_record records[CAPACITY];
nocopy_tape tape;

#define EXPORT __attribute__((visibility("default")))

EXPORT void* arena_at(void) {
    return arena;
}
EXPORT void* bytes_at(void) {
    return bytes;
}
EXPORT void* indices_at(void) {
    return indices;
}
EXPORT void* records_at(void) {
    return records;
}

static float* at(uint32_t i) {
    return arena + i;
}

EXPORT int32_t build(void) {
    const nocopy_tensor none = nocopy_none();
    const nocopy_tensor a = nocopy_2d(at(0), NOCOPY_F32, 6, 8), b = nocopy_2d(at(64), NOCOPY_F32, 5, 8);
    const nocopy_tensor row = nocopy_1d(at(128), NOCOPY_F32, 8),
                        x = nocopy_4d(at(144), NOCOPY_F32, 1, 4, 7, 6);
    const nocopy_tensor kernel = nocopy_4d(at(320), NOCOPY_F32, 4, 2, 3, 3),
                        bias = nocopy_1d(at(400), NOCOPY_F32, 4);
    const nocopy_tensor product = nocopy_2d(at(1024), NOCOPY_F32, 6, 5),
                        sum = nocopy_2d(at(1088), NOCOPY_F32, 6, 8);
    const nocopy_tensor squares = nocopy_in_scratch(a, 256), hwc = nocopy_3d(bytes, NOCOPY_U8, 4, 4, 3);

    tape = nocopy_tape_over(records, CAPACITY);
    nocopy_matmul(&tape, product, a, nocopy_transposed(b), 0.5f);
    nocopy_binary(&tape, NOCOPY_BINARY_ADD, sum, a, row);
    nocopy_unary(&tape, NOCOPY_UNARY_SQUARE, squares, sum);
    nocopy_clamp(&tape, nocopy_2d(at(1152), NOCOPY_F32, 6, 8), squares, -0.5f, 0.5f);
    nocopy_reduce(&tape, NOCOPY_REDUCE_MAX, nocopy_1d(at(1216), NOCOPY_F32, 8), nocopy_transposed(a));
    nocopy_softmax(&tape, nocopy_2d(at(1232), NOCOPY_F32, 6, 8), a, 2.0f);
    nocopy_rmsnorm(&tape, nocopy_2d(at(1296), NOCOPY_F32, 6, 8), a, row, 1e-5f);
    nocopy_layernorm(&tape, nocopy_2d(at(1360), NOCOPY_F32, 6, 8), a, row, none, 1e-5f);
    nocopy_gather(&tape, nocopy_2d(at(1424), NOCOPY_F32, 8, 8), a, nocopy_1d(indices, NOCOPY_I32, 8));
    nocopy_argmax(&tape, nocopy_1d(at(1488), NOCOPY_I32, 6), a);
    nocopy_topk(&tape, nocopy_2d(at(1504), NOCOPY_F32, 6, 3), nocopy_2d(at(1536), NOCOPY_I32, 6, 3), a);
    nocopy_conv2d(&tape, nocopy_4d(at(1568), NOCOPY_F32, 1, 4, 4, 3), x, kernel, bias, 2, 2, 1, 1, 1, 1);
    nocopy_conv2d(&tape, nocopy_4d(at(1632), NOCOPY_F32, 1, 4, 5, 4), x, kernel, none, 1, 1, 0, 0, 1, 1);
    nocopy_resize(&tape, nocopy_4d(at(1728), NOCOPY_F32, 1, 4, 5, 9), x);
    nocopy_fill(&tape, nocopy_sliced(sum, 1, 1, 8, 2), 3.0f);
    const nocopy_tensor corner =
        nocopy_sliced(nocopy_sliced(nocopy_sliced(x, 1, 0, 3, 1), 2, 1, 5, 1), 3, 0, 4, 1);
    nocopy_copy(&tape, nocopy_permuted(hwc, 2, 0, 1, 9), nocopy_selected(corner, 0, 0));
    const nocopy_tensor heads = nocopy_3d(at(1920), NOCOPY_F32, 3, 2, 8),
                        keys = nocopy_3d(at(0), NOCOPY_F32, 6, 1, 8),
                        last = nocopy_1d(indices, NOCOPY_I32, 3);
    nocopy_rope(&tape, NOCOPY_ROPE_INTERLEAVED, heads, nocopy_3d(at(64), NOCOPY_F32, 3, 2, 8),
                nocopy_1d(at(400), NOCOPY_F32, 4), last, 1.0f);
    nocopy_attention(&tape, nocopy_3d(at(1968), NOCOPY_F32, 3, 2, 8), heads, keys, keys, last, 0.5f, 5.0f, 4);
    nocopy_scatter(&tape, nocopy_2d(at(2016), NOCOPY_F32, 6, 8), nocopy_2d(at(0), NOCOPY_F32, 3, 8), last);
    nocopy_glu(&tape, NOCOPY_GLU_SILU, nocopy_2d(at(2064), NOCOPY_F32, 6, 8), a, sum);
    nocopy_penalize(&tape, nocopy_2d(at(2112), NOCOPY_F32, 6, 8), a, nocopy_2d(indices, NOCOPY_I32, 1, 4),
                    nocopy_2d(at(400), NOCOPY_F32, 1, 4));
    nocopy_sample(&tape, nocopy_1d(at(2160), NOCOPY_I32, 6), a, nocopy_2d(at(404), NOCOPY_F32, 6, 3),
                  nocopy_2d(at(1488), NOCOPY_I32, 1, 5), 7);
    return tape.error;
}

EXPORT uint32_t count(void) {
    return tape.count;
}
EXPORT const char* what(void) {
    return tape.what;
}
EXPORT int32_t play(void) {
    return nocopy_submit_tape(&tape);
}
