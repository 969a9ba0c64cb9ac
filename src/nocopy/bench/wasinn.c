/* The guest behind `bench wasinn`: one inference by the three calls of wasi-nn, on tensors of its own.
 *
 * The same module runs in our host and in the one that copies: both provide wasi_ephemeral_nn.
 *
 *     python tools/build_guests.py           build it
 *     python tools/build_guests.py --check   fail if what is committed differs
 */
#include <stddef.h>
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(#name)))
#define NN(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(#name)))

NN(load)
int32_t nn_load(const void* parts, uint32_t count, uint32_t encoding, uint32_t target, uint32_t* graph);
NN(init_execution_context) int32_t nn_init_execution_context(uint32_t graph, uint32_t* context);
NN(set_input) int32_t nn_set_input(uint32_t context, uint32_t index, const void* tensor);
NN(compute) int32_t nn_compute(uint32_t context);
NN(get_output)
int32_t nn_get_output(uint32_t context, uint32_t index, void* out, uint32_t size, uint32_t* written);

enum { WASM_PAGE = 65536, MOST_DIMENSIONS = 8, ONNX = 1, CPU = 0, F32 = 1, NO_MEMORY = -1, WRONG_SIZE = -2 };

extern unsigned char __heap_base;

typedef struct {
    const void* data;
    uint32_t size;
} list;

typedef struct {
    list dimensions;
    uint32_t type;
    list data;
} tensor;

static uint32_t shape[MOST_DIMENSIONS];
static tensor input;
static float* x;
static float* y;
static uint32_t count, out_bytes, context;
static float ticket;
static size_t next;

/* Bytes of the memory that nothing uses, at a multiple of 64; NULL if it can't grow. */
EXPORT(room) void* room(uint32_t bytes) {
    if (!next) next = (size_t)&__heap_base;
    size_t at = (next + 63) / 64 * 64;
    uint64_t needed = ((uint64_t)at + bytes + WASM_PAGE - 1) / WASM_PAGE;
    if (needed > UINT32_MAX / WASM_PAGE) return NULL;
    size_t have = __builtin_wasm_memory_size(0);
    if (needed > have && __builtin_wasm_memory_grow(0, needed - have) == (size_t)-1) return NULL;
    next = at + bytes;
    return (void*)at;
}

/* Where the host writes the input's shape. */
EXPORT(dimensions) uint32_t* dimensions(void) {
    return shape;
}

/* Load a model and make tensors for it: an input of `elements` f32 in `rank` dimensions. Returns an error. */
EXPORT(prepare)
int32_t prepare(const void* model, uint32_t size, uint32_t rank, uint32_t elements, uint32_t out) {
    list part = {model, size};
    uint32_t graph;
    int32_t error = nn_load(&part, 1, ONNX, CPU, &graph);
    if (!error) error = nn_init_execution_context(graph, &context);
    if (error) return error;
    count = elements;
    out_bytes = out;
    x = room(count * (uint32_t)sizeof(float));
    y = room(out_bytes);
    if (!x || !y) return NO_MEMORY;
    for (uint32_t i = 0; i < count; i++) x[i] = (float)(i % 1021) / 1021.0f;
    input = (tensor){{shape, rank}, F32, {x, count * (uint32_t)sizeof(float)}};
    return 0;
}

EXPORT(input_at) float* input_at(void) {
    return x;
}

EXPORT(output_at) float* output_at(void) {
    return y;
}

/* One inference: two elements change, all outputs come back. Returns an error, or 0. */
EXPORT(infer) int32_t infer(void) {
    uint32_t written = 0;
    ticket = ticket == 1.0f ? 0.0f : 1.0f;
    x[0] = x[count - 1] = ticket;
    int32_t error = nn_set_input(context, 0, &input);
    if (!error) error = nn_compute(context);
    if (!error) error = nn_get_output(context, 0, y, out_bytes, &written);
    if (!error && written != out_bytes) error = WRONG_SIZE;
    return error;
}
