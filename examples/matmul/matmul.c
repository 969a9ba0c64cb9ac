// A guest fills two matrices in its own memory, the device multiplies them there, the guest checks the
// answer.
//
//   matmul [SIZE]    SIZE x SIZE matrices of f32, 1024 unless given
//
// Exit status: 0 right, 1 wrong or refused, 2 usage.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "nocopy.h"

enum { PLAYS = 5, MAX_SIZE = 16384 };

// Seconds after which the product is not played again.
static const double PLAY_BUDGET = 2;
// Multiply-adds that the check may cost, some tenths of a second. Up to SIZE = 1024 every element is checked.
static const double CHECK_BUDGET = 1 << 30;
// Errors are relative to n / 4, which is what the magnitudes of n products of numbers in [-1, 1) add up to.
// Players add them up in f32, in any order.
static const double TOLERANCE = 1e-6;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Reproducible values in [-1, 1).
static void fill(float* matrix, uint32_t n, uint32_t seed) {
    for (size_t i = 0; i < (size_t)n * n; i++) {
        seed = seed * 1664525 + 1013904223;
        matrix[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
}

// Largest error of row i of c. `sum` is workspace for one row.
static double check_row(const float* a, const float* b, const float* c, uint32_t n, uint32_t i, double* sum) {
    double worst = 0;
    for (uint32_t j = 0; j < n; j++) sum[j] = 0;
    for (uint32_t k = 0; k < n; k++) {
        const double x = a[(size_t)i * n + k];
        for (uint32_t j = 0; j < n; j++) sum[j] += x * b[(size_t)k * n + j];
    }
    for (uint32_t j = 0; j < n; j++) {
        const double error = fabs(c[(size_t)i * n + j] - sum[j]) / (0.25 * n);
        if (!(error <= worst)) worst = error;  // a NaN is an error too
    }
    return worst;
}

static double check(const float* a, const float* b, const float* c, uint32_t n, uint32_t* rows) {
    const double affordable = fmin(n, fmax(1, CHECK_BUDGET / ((double)n * n)));
    double* workspace = malloc(n * sizeof *workspace);
    double worst = 0;
    if (!workspace) return INFINITY;
    *rows = (uint32_t)affordable;
    for (uint32_t row = 0; row < *rows; row++) {
        const uint32_t i = *rows < 2 ? 0 : (uint32_t)((uint64_t)row * (n - 1) / (*rows - 1));
        const double error = check_row(a, b, c, n, i, workspace);
        if (!(error <= worst)) worst = error;
    }
    free(workspace);
    return worst;
}

static int fail(const nocopy_tape* tape, int32_t code) {
    char text[512];
    nocopy_error_text(tape, text, sizeof text);
    fprintf(stderr, "matmul: error %d: %s\n", (int)code, text);
    return 1;
}

static void print_device(void) {
    static const char* const modes[] = {"works on these very addresses", "has these pages mapped",
                                        "copies them there and back"};
    nocopy_device_info info;
    nocopy_describe(&info, sizeof info);
    printf("device  %s (%s), which %s\n", info.name, info.product, info.mode < 3 ? modes[info.mode] : "?");
}

int main(int argc, char** argv) {
    char* end = "";
    const unsigned long n = argc > 1 ? strtoul(argv[1], &end, 10) : 1024;
    if (argc > 2 || *end || n < 1 || n > MAX_SIZE) {
        fprintf(stderr, "usage: matmul [SIZE], 1 to %d\n", MAX_SIZE);
        return 2;
    }
    const uint32_t size = (uint32_t)n;
    const size_t bytes = (size_t)n * n * sizeof(float);
    float *a = malloc(bytes), *b = malloc(bytes), *c = malloc(bytes);
    if (!a || !b || !c) {
        fprintf(stderr, "matmul: three matrices of %zu bytes do not fit the guest's memory\n", bytes);
        return 1;
    }
    fill(a, size, 1);
    fill(b, size, 2);
    print_device();
    printf("guest   a at %p, b at %p, c at %p: %lu x %lu f32 in its own memory\n", (void*)a, (void*)b,
           (void*)c, n, n);

    nocopy_record records[1];
    nocopy_tape tape = nocopy_tape_over(records, 1);
    nocopy_matmul(&tape, nocopy_2d(c, NOCOPY_F32, size, size), nocopy_2d(a, NOCOPY_F32, size, size),
                  nocopy_2d(b, NOCOPY_F32, size, size), 1.0f);
    double best = INFINITY, spent = 0;
    int plays = 0;
    for (; plays < PLAYS && spent < PLAY_BUDGET; plays++) {
        const double start = seconds();
        const int32_t code = nocopy_submit_tape(&tape);
        if (code < 0) return fail(&tape, code);
        const double took = seconds() - start;
        best = fmin(best, took);
        if (plays) spent += took; /* the first one also waits for kernels to be compiled */
    }
    printf("submit  best of %d: %.2f ms, %.1f GFLOP/s\n", plays, 1e3 * best, 2e-9 * n * n * n / best);

    uint32_t rows = 0;
    const double error = check(a, b, c, size, &rows);
    const int right = error <= TOLERANCE;
    printf("check   %u of %lu rows, largest relative error %.1e: %s\n", rows, n, error,
           right ? "right" : "WRONG");
    return right ? 0 : 1;
}
