/* Search by meaning: a language model turns every line of a text and a question into vectors, near if alike.
 *
 *   search [-f FILE] [-n COUNT] QUESTION...
 *
 * The model runs on the host, through wasi-nn, the functions that other hosts have too. It was granted under
 * the name minilm; text goes in, a vector as JSON comes out. Without -f the lines are those of notes.txt,
 * which the guest carries. Exit status: 0 found, 1 refused, 2 usage.
 */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "wasi_nn.h"

enum { MAX_WIDTH = 4096, MAX_LINES = 10000, JSON = 24 * MAX_WIDTH };

static const char NOTES[] = {
#embed "notes.txt"
    , 0};

typedef struct {
    char* text;
    float* vector;
    float score;
} line;

static wasi_nn_context context;
static uint32_t width;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fail(const char* what, wasi_nn_errno error) {
    fprintf(stderr, "search: %s: %s (%u)\n", what, wasi_nn_error_text(error), (unsigned)error);
    return 1;
}

/* ---- the model ----------------------------------------------------------------------------------------- */

static int open_model(void) {
    static const char NAME[] = "minilm", OPTIONS[] = "{\"embedding\": true}";
    wasi_nn_graph graph;
    wasi_nn_errno error = wasi_nn_load_by_name(NAME, sizeof NAME - 1, &graph);
    if (error) {
        fputs("search: this needs an embedding model, granted under the name minilm\n", stderr);
        return fail("load_by_name", error);
    }
    if ((error = wasi_nn_init_execution_context(graph, &context)))
        return fail("init_execution_context", error);
    if ((error = wasi_nn_set_text(context, 1, OPTIONS, sizeof OPTIONS - 1))) return fail("options", error);
    return 0;
}

/* The vector of a text, of length 1; its width is kept in `width`. NULL on an error, which is printed. */
static float* embed(const char* text) {
    static char json[JSON + 1];
    uint32_t size = 0;
    char* at;
    float* vector;
    wasi_nn_errno error = wasi_nn_set_text(context, 0, text, (uint32_t)strlen(text));
    if (!error) error = wasi_nn_compute(context);
    if (!error) error = wasi_nn_get_output(context, 0, json, JSON, &size);
    if (error) return fail(text, error), NULL;
    json[size] = 0;
    at = strstr(json, "\"n_embedding\": ");
    width = at ? (uint32_t)strtoul(at + strlen("\"n_embedding\": "), NULL, 10) : 0;
    at = strchr(json, '[');
    if (!at || !width || width > MAX_WIDTH) return fputs("search: that is no vector\n", stderr), NULL;
    if (!(vector = malloc(width * sizeof *vector))) return fputs("search: no memory\n", stderr), NULL;
    for (uint32_t i = 0; i < width; i++) vector[i] = strtof(at + 1, &at);
    return vector;
}

static float dot(const float* a, const float* b) {
    float sum = 0;
    for (uint32_t i = 0; i < width; i++) sum += a[i] * b[i];
    return sum;
}

/* ---- the text ------------------------------------------------------------------------------------------ */

/* A whole file with a NUL after it, or NULL. */
static char* read_file(const char* path) {
    size_t room = 1 << 16, size = 0;
    char* text = NULL;
    FILE* file = fopen(path, "rb");
    if (!file) return NULL;
    for (;; room *= 2) {
        char* larger = realloc(text, room + 1);
        if (!larger) break;
        text = larger;
        size += fread(text + size, 1, room - size, file);
        if (size < room) {
            text[size] = 0;
            fclose(file);
            return text;
        }
    }
    fclose(file);
    free(text);
    errno = ENOMEM;
    return NULL;
}

/* Cut `text` at line ends; empty lines are left out. Returns how many lines there are. */
static int split(char* text, line* lines) {
    int count = 0;
    for (char* one = strtok(text, "\r\n"); one && count < MAX_LINES; one = strtok(NULL, "\r\n"))
        lines[count++].text = one;
    return count;
}

static int by_score(const void* a, const void* b) {
    const float x = ((const line*)a)->score, y = ((const line*)b)->score;
    return x < y ? 1 : x > y ? -1 : 0;
}

static int usage(void) {
    fputs("usage: search [-f FILE] [-n COUNT] QUESTION...\n", stderr);
    return 2;
}

int main(int argc, char** argv) {
    static line lines[MAX_LINES];
    static char question[1024];
    const char* path = NULL;
    int most = 3, count, i = 1;
    char* text;
    float* wanted;
    double start;

    for (; i < argc && argv[i][0] == '-'; i += 2) {
        if (!strcmp(argv[i], "--")) {
            i++;
            break;
        }
        if (i + 1 < argc && !strcmp(argv[i], "-f"))
            path = argv[i + 1];
        else if (i + 1 < argc && !strcmp(argv[i], "-n"))
            most = atoi(argv[i + 1]);
        else
            return usage();
    }
    for (; i < argc; i++) {
        const size_t used = strlen(question), more = strlen(argv[i]);
        if (used + more + 2 > sizeof question) return fputs("search: the question is too long\n", stderr), 2;
        sprintf(question + used, "%s%s", used ? " " : "", argv[i]);
    }
    if (!*question || most < 1) return usage();
    text = path ? read_file(path) : strdup(NOTES);
    if (!text) return fprintf(stderr, "search: cannot read %s: %s\n", path, strerror(errno)), 1;
    if (!(count = split(text, lines))) return fputs("search: there are no lines in it\n", stderr), 1;

    if (open_model()) return 1;
    start = now();
    for (i = 0; i < count; i++)
        if (!(lines[i].vector = embed(lines[i].text))) return 1;
    printf("read      %d lines as vectors of %u numbers, %.1f ms each\n", count, (unsigned)width,
           1e3 * (now() - start) / count);
    start = now();
    if (!(wanted = embed(question))) return 1;
    for (i = 0; i < count; i++) lines[i].score = dot(lines[i].vector, wanted);
    qsort(lines, (size_t)count, sizeof *lines, by_score);
    printf("question  %s\n", question);
    for (i = 0; i < most && i < count; i++) printf("%.3f     %s\n", (double)lines[i].score, lines[i].text);
    printf("found     in %.1f ms\n", 1e3 * (now() - start));
    return 0;
}
