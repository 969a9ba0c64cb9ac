/* Does with wasi-nn what stdin says, and writes to stdout what came of it.
 *
 * stdin    "VERB SIZE\n" and SIZE bytes, again and again
 * stdout   "VERB ERRNO SIZE\n", SIZE bytes and "\n" for each
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wasi_nn.h"

static char text[1 << 20], out[1 << 20];
static wasi_nn_graph graph;
static wasi_nn_context context, kept;

static wasi_nn_errno run(const char* verb, uint32_t size, uint32_t* written) {
    const wasi_nn_buffer part = {text, size};
    const char* at;
    if (!strcmp(verb, "load")) return wasi_nn_load(&part, 1, WASI_NN_GGML_WASMEDGE, WASI_NN_CPU, &graph);
    if (!strcmp(verb, "name")) return wasi_nn_load_by_name(text, size, &graph);
    if (!strcmp(verb, "config")) {
        at = strchr(text, ' ');
        return wasi_nn_load_by_name_with_config(text, (uint32_t)(at - text), at + 1, (uint32_t)strlen(at + 1),
                                                &graph);
    }
    if (!strcmp(verb, "context")) return wasi_nn_init_execution_context(graph, &context);
    if (!strcmp(verb, "keep")) return kept = context, 0;
    if (!strcmp(verb, "swap")) {
        const wasi_nn_context now = context;
        context = kept;
        kept = now;
        return 0;
    }
    if (!strcmp(verb, "which")) return *written = (uint32_t)sprintf(out, "%u", (unsigned)context), 0;
    if (!strcmp(verb, "options")) return wasi_nn_set_text(context, 1, text, size);
    if (!strcmp(verb, "input2")) return wasi_nn_set_text(context, 2, text, size);
    if (!strcmp(verb, "prompt")) {
        /* As guests of WasmEdge do: the shape says 1, whatever the text is. */
        const uint32_t one = 1;
        return wasi_nn_set_tensor(context, 0, WASI_NN_U8, &one, 1, text, size);
    }
    if (!strcmp(verb, "compute")) return wasi_nn_compute(context);
    if (!strcmp(verb, "single")) return wasi_nn_compute_single(context);
    if (!strcmp(verb, "text")) return wasi_nn_get_output(context, 0, out, sizeof out, written);
    if (!strcmp(verb, "short")) return wasi_nn_get_output(context, 0, out, 1, written);
    if (!strcmp(verb, "meta")) return wasi_nn_get_output(context, 1, out, sizeof out, written);
    if (!strcmp(verb, "output2")) return wasi_nn_get_output(context, 2, out, sizeof out, written);
    if (!strcmp(verb, "piece")) return wasi_nn_get_output_single(context, 0, out, sizeof out, written);
    if (!strcmp(verb, "piecemeta")) return wasi_nn_get_output_single(context, 1, out, sizeof out, written);
    if (!strcmp(verb, "fini")) return wasi_nn_fini_single(context);
    if (!strcmp(verb, "finalize")) return wasi_nn_finalize_execution_context(context);
    if (!strcmp(verb, "unload")) return wasi_nn_unload(graph);
    abort();
}

int main(void) {
    char verb[16];
    unsigned size;
    while (scanf("%15s %u", verb, &size) == 2) {
        uint32_t written = 0;
        wasi_nn_errno error;
        if (getchar() != '\n' || size >= sizeof text || fread(text, 1, size, stdin) != size) abort();
        text[size] = 0;
        error = run(verb, size, &written);
        printf("%s %u %u\n", verb, (unsigned)error, (unsigned)written);
        fwrite(out, 1, error ? 0 : written, stdout);
        putchar('\n');
        fflush(stdout);
    }
    return 0;
}
