/* An agent that writes a program line by line and can be sent back to any line.
 *
 * At the end of each line it checkpoints: the host may freeze it there, or fork it, and each clone goes on
 * with another seed. All that it knows, the text, the session's KV cache, the score, lies in this memory.
 */
#include <math.h>
#include <stdio.h>

#include "nocopy_model.h"

enum { CONTEXT = 512, LINES = 16, LINE = 32, TEXT = 8192 };

static nc_session session;
static nocopy_generation options;
static char text[TEXT];
static uint32_t length, drawn, whole;
static double surprise; /* of all tokens drawn, in nats */

static int32_t fail(const char* what) {
    char why[512];
    nocopy_last_error(why, sizeof why);
    fprintf(stderr, "timetravel: %s: %s\n", what, why);
    return 1;
}

/* How unlikely the model found a token: minus the logarithm of its probability. */
static double surprise_at(const float* logits, int32_t count, int32_t token) {
    double largest = logits[0], sum = 0;
    for (int32_t i = 1; i < count; i++)
        if (logits[i] > largest) largest = logits[i];
    for (int32_t i = 0; i < count; i++) sum += exp(logits[i] - largest);
    return largest + log(sum) - logits[token];
}

/* Draw one token and add its text. Returns 1, 0 at the end, or an error. */
static int32_t draw(void) {
    static float before[1 << 18];
    uint64_t at;
    int32_t token, made, count = nocopy_session_logits(session.handle, &at), size;
    if (count < 0 || count > (int32_t)(sizeof before / sizeof *before)) return NOCOPY_ERROR_MEMORY_LIMIT;
    memcpy(before, (const float*)(uintptr_t)at, (size_t)count * sizeof(float));
    made = nocopy_session_generate(session.handle, &options, &token, 1);
    if (made <= 0) return made;
    size = nocopy_detokenize(session.model, &token, 1, text + length, TEXT - 1 - length,
                             NOCOPY_DETOKENIZE_CONTINUES);
    if (size < 0) return size;
    if (length + (uint32_t)size > TEXT - 1) return 0;
    surprise += surprise_at(before, count, token);
    drawn++;
    length += (uint32_t)size;
    return 1;
}

/* Write on until a line that has something in it ends. Returns the same. */
static int32_t write_line(void) {
    uint32_t start = length;
    int32_t more = 1;
    for (int n = 0; n < LINE && more > 0; n++) {
        more = draw();
        text[length] = 0;
        whole = strchr(text + start + strspn(text + start, " \n"), '\n') != NULL;
        if (whole) break;
    }
    return more;
}

NOCOPY_EXPORT(nocopy_resume) int32_t nocopy_resume(void) {
    nocopy_clone_info clone;
    int32_t more;
    nocopy_clone(&clone, sizeof clone);
    options.seed += clone.index + 1; /* each clone its own way, and the same way each time */
    more = write_line();
    if (more < 0) return fail("going on");
    if (more == 0 || drawn >= LINES * LINE) return fwrite(text, 1, length, stdout), fflush(stdout), 0;
    return nocopy_checkpoint("line", 4);
}

/* What the host asks of a clone. */
NOCOPY_EXPORT(text_at) const char* text_at(void) {
    return text;
}
NOCOPY_EXPORT(text_length) uint32_t text_length(void) {
    return length;
}
NOCOPY_EXPORT(score) double score(void) { /* a line that has no end is no line */
    return (drawn ? -surprise / drawn : 0) - (whole ? 0 : 10);
}

int main(int argc, char** argv) {
    int32_t model;
    if (argc < 2 || argc > 3 || strlen(argv[1]) >= TEXT / 2)
        return fprintf(stderr, "usage: timetravel PROMPT [SEED]\n"), 2;
    if ((model = nc_model("default")) < 0) return fail("model");
    if (nc_open(&session, model, CONTEXT, NOCOPY_F16) < 0) return fail("session");
    if (nc_append_text(&session, argv[1], NOCOPY_TOKENIZE_ADD_SPECIAL) < 0) return fail("prompt");
    strcpy(text, argv[1]);
    length = (uint32_t)strlen(text);
    options = nocopy_generation_default();
    options.seed = argc > 2 ? strtoull(argv[2], NULL, 10) * 1000 : 0;
    return nocopy_checkpoint("line", 4) < 0 ? fail("checkpoint") : 0;
}
