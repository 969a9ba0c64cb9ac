// A small convolutional network reads handwritten digits, through wasi-nn: the functions that other hosts
// have too.
//
//   classify
//
// The guest carries the network, digits.onnx, and 450 pictures that the training never saw, digits.bin;
// train.py writes both. The pictures are constants: the host reads them where the module has them and writes
// the scores into the guest's array. Exit status: 0 when at least 98 % are recognised, 1 when not or refused.
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "wasi_nn.h"

enum { SIDE = 8, PIXELS = SIDE * SIDE, DIGITS = 10, PICTURES = 450, SHOWN = 6, GOAL = 98 };

static const unsigned char network[] = {
#embed "digits.onnx"
};

static const union {
    unsigned char bytes[PICTURES * PIXELS + PICTURES];
    struct {
        uint8_t pictures[PICTURES][PIXELS], labels[PICTURES];
    };
} file = {{
#embed "digits.bin"
}};

static float scores[PICTURES][DIGITS], alone[DIGITS];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fail(const char* what, wasi_nn_errno error) {
    fprintf(stderr, "classify: %s: %s (%u)\n", what, wasi_nn_error_text(error), (unsigned)error);
    return 1;
}

// The digit with the highest score.
static int best(const float* of) {
    int found = 0;
    for (int i = 1; i < DIGITS; i++)
        if (of[i] > of[found]) found = i;
    return found;
}

// Scores of `count` pictures from `first` on. Returns an error of wasi-nn.
static wasi_nn_errno classify(wasi_nn_context context, int first, uint32_t count, float* out) {
    const uint32_t shape[] = {count, 1, SIDE, SIDE};
    uint32_t written;
    wasi_nn_errno error = wasi_nn_set_tensor(context, 0, WASI_NN_U8, shape, 4, file.pictures[first],
                                             count * (uint32_t)sizeof *file.pictures);
    if (!error) error = wasi_nn_compute(context);
    if (!error) error = wasi_nn_get_output(context, 0, out, count * (uint32_t)sizeof *scores, &written);
    return error;
}

static void show(const int* which, int count) {
    for (int y = 0; y < SIDE; y++) {
        for (int i = 0; i < count; i++) {
            for (int x = 0; x < SIDE; x++) {
                const char ink = " .:-=+*#@"[file.pictures[which[i]][y * SIDE + x] / 2];
                printf("%c%c", ink, ink);
            }
            printf("  ");
        }
        printf("\n");
    }
    for (int i = 0; i < count; i++) {
        const int read = best(scores[which[i]]);
        printf("%d (%2.0f %%), is %d     ", read, (double)(100 * scores[which[i]][read]),
               file.labels[which[i]]);
    }
    printf("\n\n");
}

int main(void) {
    const wasi_nn_buffer part = {network, sizeof network};
    wasi_nn_graph graph;
    wasi_nn_context context;
    wasi_nn_errno error = wasi_nn_load(&part, 1, WASI_NN_ONNX, WASI_NN_CPU, &graph);
    if (error) return fail("load", error);
    if ((error = wasi_nn_init_execution_context(graph, &context)))
        return fail("init_execution_context", error);

    // Twice: the first run of a shape prepares the network for it.
    double together = 0;
    for (int run = 0; run < 2; run++) {
        const double start = now();
        if ((error = classify(context, 0, PICTURES, scores[0]))) return fail("all pictures", error);
        together = now() - start;
    }
    const double start = now();
    int same = 0;
    for (int i = 0; i < PICTURES; i++) {
        if ((error = classify(context, i, 1, alone))) return fail("one picture", error);
        same += best(alone) == best(scores[i]);
    }
    const double singly = now() - start;

    int right = 0, wrong[SHOWN], wrongs = 0;
    for (int i = 0; i < PICTURES; i++) {
        if (best(scores[i]) == file.labels[i])
            right++;
        else if (wrongs < SHOWN)
            wrong[wrongs++] = i;
    }
    const int first[SHOWN] = {0, 1, 2, 3, 4, 5};
    show(first, SHOWN);
    if (wrongs) printf("It is fooled by these:\n\n");
    if (wrongs) show(wrong, wrongs);
    printf("accuracy  %.4f on %d pictures it has never seen\n", (double)right / PICTURES, PICTURES);
    printf("together  %.1f us a picture\n", 1e6 * together / PICTURES);
    printf("singly    %.1f us a picture, %d answers the same\n", 1e6 * singly / PICTURES, same);
    return 100 * right >= GOAL * PICTURES ? 0 : 1;
}
