/* The guest behind `nocopy prove`, `bench roundtrip` and the resident-memory measurement.
 *
 * It is compiled twice. sharing.wasm submits its tape to the device, on its own pages. copying.wasm asks a
 * host that copies, by the three calls of wasi-nn: set_input, compute, get_output. Nothing else differs.
 *
 *     python tools/build_guests.py           build both
 *     python tools/build_guests.py --check   fail if what is committed differs
 */
#include "nocopy.h"

#define EXPORT(name) __attribute__((export_name(#name)))
#define COPYING_IMPORT(name) __attribute__((import_module("copying"), import_name(#name)))

enum { WASM_PAGE = 65536, NO_MEMORY = NOCOPY_ERROR_MEMORY_LIMIT };

extern unsigned char __heap_base;

static nocopy_record records[1];
static nocopy_tape tape;
static float* x;       /* the tensor of the round trip */
static uint32_t count; /* its elements */
static float sign;     /* of what every element should be now, against what `prepare` wrote */
static float ticket;   /* what the last round wrote into the first and last element */

#ifdef COPYING
COPYING_IMPORT(set_input) int32_t copying_set_input(const void* data, size_t bytes);
COPYING_IMPORT(compute) int32_t copying_compute(void);
COPYING_IMPORT(get_output) int32_t copying_get_output(void* data, size_t bytes);

static int32_t play(void) {
    size_t bytes = (size_t)count * sizeof(float);
    int32_t error = copying_set_input(x, bytes);
    if (error >= 0) error = copying_compute();
    if (error >= 0) error = copying_get_output(x, bytes);
    return error;
}
#else
static int32_t play(void) {
    return nocopy_submit_tape(&tape);
}
#endif

/* The first page behind the program's own data, with `bytes` bytes there; NULL if the memory can't grow. */
static void* pages(size_t bytes) {
    size_t start = ((size_t)&__heap_base + WASM_PAGE - 1) / WASM_PAGE * WASM_PAGE;
    uint64_t needed = ((uint64_t)start + bytes + WASM_PAGE - 1) / WASM_PAGE;
    if (needed > UINT32_MAX / WASM_PAGE) return NULL;
    size_t have = __builtin_wasm_memory_size(0);
    if (needed > have && __builtin_wasm_memory_grow(0, needed - have) == (size_t)-1) return NULL;
    return (void*)start;
}

static float written(uint32_t i) {
    return (float)(i % 1021) + 1.0f;
}

/* Fill a tensor of `bytes` bytes and record the tape that negates it in place. Returns its address. */
EXPORT(prepare) int32_t prepare(uint32_t bytes) {
    x = pages(bytes);
    count = bytes / sizeof(float);
    if (!x) return NO_MEMORY;
    for (uint32_t i = 0; i < count; i++) x[i] = written(i);
    sign = 1.0f;
    ticket = 0.0f;
    tape = nocopy_tape_over(records, 1);
    nocopy_tensor t = nocopy_1d(x, NOCOPY_F32, count);
    int32_t error = nocopy_unary(&tape, NOCOPY_UNARY_NEG, t, t);
    return error < 0 ? error : (int32_t)(uintptr_t)x;
}

/* One round trip: write, let the device compute, read. Returns 0, 1 if the answer is wrong, or an error. */
EXPORT(round_trip) int32_t round_trip(void) {
    ticket += 1.0f;
    x[0] = ticket;
    x[count - 1] = ticket;
    int32_t error = play();
    if (error < 0) return error;
    sign = -sign;
    return x[0] != -ticket || x[count - 1] != -ticket;
}

/* How many elements are not what they should be after all rounds so far. */
EXPORT(wrong) uint32_t wrong(void) {
    uint32_t bad = 0;
    for (uint32_t i = 1; i + 1 < count; i++) bad += x[i] != sign * written(i);
    return bad;
}

#ifndef COPYING
/* Numbers in [0.5, 1.5), the same ones on every machine: no cancellation hides or inflates an error. */
static void fill(float* to, uint32_t n, uint32_t seed) {
    for (uint32_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        to[i] = 0.5f + (float)(seed >> 8) / 16777216.0f;
    }
}

/* c = a @ b, each n x n, one after the other from the address that it returns: a, b, c. */
EXPORT(matmul) int32_t matmul(uint32_t n) {
    float* a = pages(3 * (size_t)n * n * sizeof(float));
    if (!a) return NO_MEMORY;
    float *b = a + (size_t)n * n, *c = b + (size_t)n * n;
    fill(a, n * n, 1);
    fill(b, n * n, 2);
    tape = nocopy_tape_over(records, 1);
    nocopy_tensor ta = nocopy_2d(a, NOCOPY_F32, n, n), tb = nocopy_2d(b, NOCOPY_F32, n, n);
    nocopy_matmul(&tape, nocopy_2d(c, NOCOPY_F32, n, n), ta, tb, 1.0f);
    int32_t error = play();
    return error < 0 ? error : (int32_t)(uintptr_t)a;
}
#endif
