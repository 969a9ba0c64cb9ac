/* wasi_nn.h: run models from a WebAssembly guest through wasi-nn, which many hosts provide.
 *
 *     wasi_nn_graph graph;
 *     wasi_nn_context context;
 *     uint32_t size, dimensions[] = {1, 1, 8, 8};
 *     float image[64], scores[10];
 *
 *     wasi_nn_errno error = wasi_nn_load_by_name("digits", 6, &graph);
 *     if (!error) error = wasi_nn_init_execution_context(graph, &context);
 *     if (!error) error = wasi_nn_set_tensor(context, 0, WASI_NN_F32, dimensions, 4, image, sizeof image);
 *     if (!error) error = wasi_nn_compute(context);
 *     if (!error) error = wasi_nn_get_output(context, 0, scores, sizeof scores, &size);
 *     if (error) fprintf(stderr, "%s\n", wasi_nn_error_text(error));
 *
 * The numbers are those of the module wasi_ephemeral_nn as Wasmtime, WasmEdge and WAMR have it, for 32-bit
 * guests. The functions in the last part are WasmEdge's; a module imports only those that it calls, so one that
 * leaves them alone runs anywhere.
 *
 * On nocopy, input tensors are read where they lie and outputs are written where they are wanted: keep what
 * was given to set_input unchanged until compute has returned.
 *
 * C99 and C++. Needs no C library.
 */
#ifndef WASI_NN_H
#define WASI_NN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- numbers ------------------------------------------------------------------------------------------- */

/* What every function returns. */
typedef uint32_t wasi_nn_errno;
enum {
    WASI_NN_SUCCESS = 0,
    WASI_NN_INVALID_ARGUMENT = 1, /* a handle, an index, a pointer, a shape or an option that cannot be */
    WASI_NN_INVALID_ENCODING = 2, /* the model is in no known format, or the configuration is no JSON */
    WASI_NN_MISSING_MEMORY = 3,
    WASI_NN_BUSY = 4,
    WASI_NN_RUNTIME_ERROR = 5,
    WASI_NN_UNSUPPORTED_OPERATION = 6,
    WASI_NN_TOO_LARGE = 7, /* the buffer is too small for the output, or a quota is used up */
    WASI_NN_NOT_FOUND = 8, /* the host was given no model of that name */
    WASI_NN_END_OF_SEQUENCE = 100, /* WasmEdge: the model ended its text */
    WASI_NN_CONTEXT_FULL = 101,    /* WasmEdge: no room for another token; the text so far can be read */
    WASI_NN_PROMPT_TOO_LONG = 102, /* WasmEdge: the prompt leaves no room for an answer */
    WASI_NN_MODEL_NOT_FOUND = 103  /* WasmEdge: the model's file is gone */
};

/* Element types of tensors. */
enum {
    WASI_NN_F16 = 0,
    WASI_NN_F32 = 1,
    WASI_NN_F64 = 2,
    WASI_NN_U8 = 3,
    WASI_NN_I32 = 4,
    WASI_NN_I64 = 5
};

/* Formats of models. Hosts number the last two differently; load_by_name needs neither. */
enum {
    WASI_NN_OPENVINO = 0,
    WASI_NN_ONNX = 1,
    WASI_NN_TENSORFLOW = 2,
    WASI_NN_PYTORCH = 3,
    WASI_NN_TENSORFLOW_LITE = 4,
    WASI_NN_GGML = 5,          /* the specification's text, WAMR */
    WASI_NN_GGML_WASMEDGE = 6, /* WasmEdge, whose 5 means "find out" */
};

/* Where a model should run. nocopy runs it on the device that the host chose. */
enum { WASI_NN_CPU = 0, WASI_NN_GPU = 1, WASI_NN_TPU = 2 };

/* ---- records ------------------------------------------------------------------------------------------- */

/* A loaded model, and one use of it. Numbers mean nothing to another guest and are never used again. */
typedef uint32_t wasi_nn_graph;
typedef uint32_t wasi_nn_context;

/* Bytes: a part of a model. */
typedef struct wasi_nn_buffer {
    const void *data;
    uint32_t size; /* bytes */
} wasi_nn_buffer;

/* A tensor: elements in C order, little-endian. */
typedef struct wasi_nn_tensor {
    const uint32_t *dimensions; /* outermost first */
    uint32_t rank;
    uint32_t type; /* WASI_NN_F32, ...; hosts read one byte or four */
    const void *data;
    uint32_t size; /* bytes */
} wasi_nn_tensor;

/* ---- the host's functions ------------------------------------------------------------------------------ */

#ifdef __wasm__
#define WASI_NN_IMPORT_(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(#name)))
#else
#define WASI_NN_IMPORT_(name) /* a native build, for unit tests: define these functions yourself */
#endif

/* Load a model from bytes: `count` parts, for ONNX one. */
WASI_NN_IMPORT_(load)
wasi_nn_errno wasi_nn_load(const wasi_nn_buffer *parts, uint32_t count, uint32_t encoding, uint32_t target,
                           wasi_nn_graph *graph);

/* Load a model that the host was given under a name of `length` bytes of UTF-8. */
WASI_NN_IMPORT_(load_by_name)
wasi_nn_errno wasi_nn_load_by_name(const char *name, uint32_t length, wasi_nn_graph *graph);

/* Begin to use a model. Each context has its own inputs, outputs and, for language models, cache. */
WASI_NN_IMPORT_(init_execution_context)
wasi_nn_errno wasi_nn_init_execution_context(wasi_nn_graph graph, wasi_nn_context *context);

/* Give an input. For language models input 0 is the prompt and input 1 options as JSON. */
WASI_NN_IMPORT_(set_input)
wasi_nn_errno wasi_nn_set_input(wasi_nn_context context, uint32_t index, const wasi_nn_tensor *tensor);

/* Run the model on the inputs. */
WASI_NN_IMPORT_(compute)
wasi_nn_errno wasi_nn_compute(wasi_nn_context context);

/* Get an output; `*written` says how many bytes it has. One that does not fit `size` bytes is an error, and
 * nothing is written. For language models output 0 is the text and output 1 says as JSON what was done. */
WASI_NN_IMPORT_(get_output)
wasi_nn_errno wasi_nn_get_output(wasi_nn_context context, uint32_t index, void *data, uint32_t size,
                                 uint32_t *written);

/* ---- WasmEdge's functions ------------------------------------------------------------------------------ */

/* Load a model by name, with options as JSON that every context of it begins with. */
WASI_NN_IMPORT_(load_by_name_with_config)
wasi_nn_errno wasi_nn_load_by_name_with_config(const char *name, uint32_t length, const char *config,
                                               uint32_t config_length, wasi_nn_graph *graph);

/* Make the next token of the answer. WASI_NN_END_OF_SEQUENCE says that there is none. */
WASI_NN_IMPORT_(compute_single) wasi_nn_errno wasi_nn_compute_single(wasi_nn_context context);

/* Get what the last compute_single made. A token may hold a part of a character. */
WASI_NN_IMPORT_(get_output_single)
wasi_nn_errno wasi_nn_get_output_single(wasi_nn_context context, uint32_t index, void *data, uint32_t size,
                                        uint32_t *written);

/* End an answer that was made token by token. */
WASI_NN_IMPORT_(fini_single) wasi_nn_errno wasi_nn_fini_single(wasi_nn_context context);

/* Let go of a model. */
WASI_NN_IMPORT_(unload) wasi_nn_errno wasi_nn_unload(wasi_nn_graph graph);

/* Let go of a context. */
WASI_NN_IMPORT_(finalize_execution_context)
wasi_nn_errno wasi_nn_finalize_execution_context(wasi_nn_context context);

/* ---- conveniences -------------------------------------------------------------------------------------- */

/* Give a tensor as an input. */
static inline wasi_nn_errno wasi_nn_set_tensor(wasi_nn_context context, uint32_t index, uint32_t type,
                                               const uint32_t *dimensions, uint32_t rank, const void *data,
                                               uint32_t size) {
    wasi_nn_tensor tensor;
    tensor.dimensions = dimensions;
    tensor.rank = rank;
    tensor.type = type;
    tensor.data = data;
    tensor.size = size;
    return wasi_nn_set_input(context, index, &tensor);
}

/* Give text as an input: a prompt (0) or options (1). */
static inline wasi_nn_errno wasi_nn_set_text(wasi_nn_context context, uint32_t index, const char *text,
                                             uint32_t length) {
    return wasi_nn_set_tensor(context, index, WASI_NN_U8, &length, 1, text, length);
}

/* What an error means, in English. */
static inline const char *wasi_nn_error_text(wasi_nn_errno error) {
    switch (error) {
        case WASI_NN_SUCCESS: return "success";
        case WASI_NN_INVALID_ARGUMENT: return "invalid argument";
        case WASI_NN_INVALID_ENCODING: return "invalid encoding";
        case WASI_NN_MISSING_MEMORY: return "missing memory";
        case WASI_NN_BUSY: return "busy";
        case WASI_NN_RUNTIME_ERROR: return "runtime error";
        case WASI_NN_UNSUPPORTED_OPERATION: return "unsupported operation";
        case WASI_NN_TOO_LARGE: return "too large";
        case WASI_NN_NOT_FOUND: return "not found";
        case WASI_NN_END_OF_SEQUENCE: return "end of sequence";
        case WASI_NN_CONTEXT_FULL: return "context full";
        case WASI_NN_PROMPT_TOO_LONG: return "prompt too long";
        case WASI_NN_MODEL_NOT_FOUND: return "model not found";
        default: return "unknown error";
    }
}

#ifdef __cplusplus
}
#endif

#endif
