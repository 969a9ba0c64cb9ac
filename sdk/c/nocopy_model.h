/* nocopy_model.h: conveniences over the model functions of nocopy.h: memory for sessions, text in and out.
 *
 *     int32_t model = nc_model("default");
 *     nc_session s;
 *     if (model < 0 || nc_open(&s, model, 2048, NOCOPY_F16) < 0) ...
 *     nc_append_text(&s, "def fibonacci(n):", NOCOPY_TOKENIZE_ADD_SPECIAL);
 *     nocopy_generation options = nocopy_generation_default();
 *     char *text = nc_generate_text(&s, &options, 64);
 *
 * C99 and C++. Needs malloc, so a C library. Functions return 0 or more, or one of NOCOPY_ERROR_*; those that
 * return a pointer return NULL then. What they return was made by malloc: free it. nocopy_last_error says why.
 */
#ifndef NOCOPY_MODEL_H
#define NOCOPY_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "nocopy.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { NC_ALIGNMENT = 65536 };

/* A session and the bytes that it lies in. */
typedef struct nc_session {
    int32_t model;
    int32_t handle;
    void *region;
    size_t bytes;
} nc_session;

/* Open the model that was granted under a name. */
static inline int32_t nc_model(const char *name) {
    return nocopy_model_open(name, (uint32_t)strlen(name));
}

/* What a model is, as JSON. */
static inline char *nc_info(int32_t model) {
    int32_t size = nocopy_model_info(model, NULL, 0);
    char *text = size < 0 ? NULL : (char *)malloc((size_t)size + 1);
    if (text && nocopy_model_info(model, text, (uint32_t)size + 1) >= 0) return text;
    free(text);
    return NULL;
}

static inline int32_t nc_region_(nc_session *s, int32_t model, size_t bytes) {
    s->model = model;
    s->handle = NOCOPY_ERROR_MEMORY_LIMIT;
    s->bytes = bytes;
    s->region = aligned_alloc(NC_ALIGNMENT, bytes);
    return s->region ? 0 : NOCOPY_ERROR_MEMORY_LIMIT;
}

static inline int32_t nc_opened_(nc_session *s, int32_t handle) {
    s->handle = handle;
    if (handle >= 0) return 0;
    free(s->region);
    s->region = NULL;
    return handle;
}

/* Open a session of at most `context` tokens; `kv` as in nocopy_session_size. */
static inline int32_t nc_open(nc_session *s, int32_t model, uint32_t context, uint32_t kv) {
    uint64_t bytes = 0;
    int32_t error = nocopy_session_size(model, context, kv, &bytes);
    s->region = NULL;
    if (error < 0) return s->handle = error;
    if (bytes > SIZE_MAX) return s->handle = NOCOPY_ERROR_MEMORY_LIMIT;
    error = nc_region_(s, model, (size_t)bytes);
    return error < 0 ? error : nc_opened_(s, nocopy_session_open(model, s->region, s->bytes, context, kv));
}

/* Open a session that continues from where another one is. */
static inline int32_t nc_fork(nc_session *s, const nc_session *from) {
    int32_t error = nc_region_(s, from->model, from->bytes);
    return error < 0 ? error : nc_opened_(s, nocopy_session_fork(from->handle, s->region, s->bytes));
}

/* Close a session and free its bytes. */
static inline int32_t nc_close(nc_session *s) {
    int32_t error = nocopy_session_close(s->handle);
    if (error >= 0) free(s->region);
    return error;
}

/* Cut text into tokens; `*tokens` is NULL on an error. Returns how many there are. */
static inline int32_t nc_tokens(int32_t model, const char *text, uint32_t flags, int32_t **tokens) {
    uint32_t len = (uint32_t)strlen(text), room = len + 16;
    int32_t count = NOCOPY_ERROR_MEMORY_LIMIT;
    for (*tokens = NULL;; room = (uint32_t)count) {
        int32_t *larger = (int32_t *)realloc(*tokens, (size_t)room * sizeof **tokens);
        if (!larger) break;
        *tokens = larger;
        count = nocopy_tokenize(model, text, len, *tokens, room, flags);
        if (count >= 0 && (uint32_t)count <= room) return count;
        if (count < 0) break;
    }
    free(*tokens);
    *tokens = NULL;
    return count < 0 ? count : NOCOPY_ERROR_MEMORY_LIMIT;
}

/* The text of tokens, with a NUL; `flags` are NOCOPY_DETOKENIZE_* added up. */
static inline char *nc_text(int32_t model, const int32_t *tokens, uint32_t count, uint32_t flags) {
    int32_t size = nocopy_detokenize(model, tokens, count, NULL, 0, flags);
    char *text = size < 0 ? NULL : (char *)malloc((size_t)size + 1);
    if (text && nocopy_detokenize(model, tokens, count, text, (uint32_t)size, flags) >= 0) {
        text[size] = 0;
        return text;
    }
    free(text);
    return NULL;
}

/* The prompt of a conversation; see nocopy_chat_template. `*prompt` is NULL on an error. */
static inline int32_t nc_chat_prompt(int32_t model, const char *messages, char **prompt) {
    uint32_t len = (uint32_t)strlen(messages);
    int32_t size = nocopy_chat_template(model, messages, len, NULL, 0);
    *prompt = NULL;
    if (size < 0) return size;
    *prompt = (char *)malloc((size_t)size + 1);
    if (!*prompt) return NOCOPY_ERROR_MEMORY_LIMIT;
    size = nocopy_chat_template(model, messages, len, *prompt, (uint32_t)size);
    (*prompt)[size < 0 ? 0 : size] = 0;
    return size < 0 ? size : 0;
}

/* Feed text. Returns how many tokens it was. */
static inline int32_t nc_append_text(nc_session *s, const char *text, uint32_t flags) {
    int32_t *tokens, count = nc_tokens(s->model, text, flags, &tokens);
    int32_t error = count < 0 ? count : nocopy_session_append(s->handle, tokens, (uint32_t)count);
    free(tokens);
    return error < 0 ? error : count;
}

/* Make the session hold exactly this text, feeding only what it does not have yet. Returns how many tokens
 * it had. */
static inline int32_t nc_extend_text(nc_session *s, const char *text, uint32_t flags) {
    int32_t *tokens, count = nc_tokens(s->model, text, flags, &tokens);
    int32_t had = count < 0 ? count : nocopy_session_extend(s->handle, tokens, (uint32_t)count);
    free(tokens);
    return had;
}

/* Allow only what fits; see nocopy_session_constrain. */
static inline int32_t nc_constrain(nc_session *s, uint32_t kind, const char *text) {
    return nocopy_session_constrain(s->handle, kind, text, (uint32_t)strlen(text));
}

/* Generate at most `max` tokens and return their text. */
static inline char *nc_generate_text(nc_session *s, nocopy_generation *options, uint32_t max) {
    int32_t *tokens = (int32_t *)malloc(((size_t)max + 1) * sizeof *tokens);
    int32_t count = tokens ? nocopy_session_generate(s->handle, options, tokens, max) : -1;
    char *text =
        count < 0 ? NULL : nc_text(s->model, tokens, (uint32_t)count, NOCOPY_DETOKENIZE_CONTINUES);
    free(tokens);
    return text;
}

#ifdef __cplusplus
}
#endif

#endif
