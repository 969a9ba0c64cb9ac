/* An agent in a sandbox: it asks a language model which tool to use, uses it, and has the model answer.
 *
 * The model runs on the host's device. The session's KV cache lies in this guest's own memory; tokens and
 * logits are written there by the device. The tools are functions of this file. Under a JSON schema, any
 * model, trained or not, asks for a tool that exists with arguments that fit.
 */
#include <stdio.h>
#include <time.h>

#include "nocopy_model.h"

enum { CONTEXT = 4096, CALL = 64, ANSWER = 96 };

/* Small models learn from examples what to do: a question, the call that helps, its result, the answer. */
static const char* const EXAMPLES[][4] = {
    {"What is 31 + 47?", "{\"tool\":\"add\",\"arguments\":{\"a\":31,\"b\":47}}",
     "The tool says: 78. What is 31 + 47?", "31 + 47 is 78."},
    {"What is wasm?", "{\"tool\":\"lookup\",\"arguments\":{\"word\":\"wasm\"}}",
     "The tool says: a safe instruction set. What is wasm?", "Wasm is a safe instruction set."},
};

static const char SCHEMA[] =
    "{\"anyOf\": ["
    "{\"type\": \"object\", \"additionalProperties\": false, \"required\": [\"tool\", \"arguments\"],"
    " \"properties\": {\"tool\": {\"const\": \"add\"},"
    "  \"arguments\": {\"type\": \"object\", \"additionalProperties\": false, \"required\": [\"a\", \"b\"],"
    "   \"properties\": {\"a\": {\"type\": \"integer\", \"minimum\": -99999, \"maximum\": 99999},"
    "                    \"b\": {\"type\": \"integer\", \"minimum\": -99999, \"maximum\": 99999}}}}},"
    "{\"type\": \"object\", \"additionalProperties\": false, \"required\": [\"tool\", \"arguments\"],"
    " \"properties\": {\"tool\": {\"const\": \"lookup\"},"
    "  \"arguments\": {\"type\": \"object\", \"additionalProperties\": false, \"required\": [\"word\"],"
    "   \"properties\": {\"word\": {\"enum\": [\"wasm\", \"tape\", \"ledger\"]}}}}}"
    "], \"x-guidance\": {\"whitespace_flexible\": false}}";

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fail(const char* what, int32_t error) {
    char text[1024];
    nocopy_last_error(text, sizeof text);
    fprintf(stderr, "agent: %s: error %d: %s\n", what, (int)error, text);
    return 1;
}

/* ---- the tools ----------------------------------------------------------------------------------------- */

static int lookup(const char* word, char* out, size_t size) {
    static const char* const WORDS[][2] = {
        {"wasm", "WebAssembly: a small, safe instruction set that runs anywhere"},
        {"tape", "an array of op records that a device plays in order"},
        {"ledger", "the count of every byte that was copied, by cause"},
    };
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        if (!strcmp(word, WORDS[i][0])) return snprintf(out, size, "%s", WORDS[i][1]), 1;
    return 0;
}

/* Do what the model asked for. The schema leaves no other spelling than these two. */
static int use_tool(const char* call, char* out, size_t size) {
    int a, b;
    char word[16];
    if (sscanf(call, "{\"tool\":\"add\",\"arguments\":{\"a\":%d,\"b\":%d}}", &a, &b) == 2)
        return snprintf(out, size, "%d", a + b), 1;
    if (sscanf(call, "{\"tool\":\"lookup\",\"arguments\":{\"word\":\"%15[a-z]\"}}", word) == 1)
        return lookup(word, out, size);
    return 0;
}

/* ---- the conversation ---------------------------------------------------------------------------------- */

typedef struct {
    char json[32768];
    char plain[8192];
    size_t json_len, plain_len;
    int full;
} conversation;

static void put(char* text, size_t* len, size_t size, int* full, const char* more) {
    size_t n = strlen(more);
    if (*len + n + 1 > size) {
        *full = 1;
        return;
    }
    memcpy(text + *len, more, n + 1);
    *len += n;
}

static void put_json(conversation* c, const char* more) {
    put(c->json, &c->json_len, sizeof c->json, &c->full, more);
}

static void put_plain(conversation* c, const char* more) {
    put(c->plain, &c->plain_len, sizeof c->plain, &c->full, more);
}

/* Add text to a JSON string. */
static void put_escaped(conversation* c, const char* text) {
    for (; *text; text++) {
        char one[8] = {*text, 0};
        if ((unsigned char)*text < 32 || *text == '"' || *text == '\\')
            snprintf(one, sizeof one, "\\u%04x", (unsigned)(unsigned char)*text);
        put_json(c, one);
    }
}

static void say(conversation* c, const char* role, const char* text) {
    put_json(c, c->json_len ? ", {\"role\": \"" : "[{\"role\": \"");
    put_json(c, role);
    put_json(c, "\", \"content\": \"");
    put_escaped(c, text);
    put_json(c, "\"}");
    put_plain(c, role);
    put_plain(c, ": ");
    put_plain(c, text);
    put_plain(c, "\n");
}

/* Bring the session to where the model answers. Returns how many tokens it had already. */
static int32_t prompt(nc_session* s, const conversation* c) {
    static char text[2 * sizeof c->json];
    char* rendered;
    int32_t error;
    if (c->full) return NOCOPY_ERROR_MEMORY_LIMIT;
    snprintf(text, sizeof text, "%s]", c->json);
    error = nc_chat_prompt(s->model, text, &rendered);
    if (error == NOCOPY_ERROR_METADATA) { /* the model knows no conversations */
        snprintf(text, sizeof text, "%sassistant: ", c->plain);
        return nc_extend_text(s, text, NOCOPY_TOKENIZE_ADD_SPECIAL);
    }
    if (error >= 0) error = nc_extend_text(s, rendered, NOCOPY_TOKENIZE_PARSE_SPECIAL);
    free(rendered);
    return error;
}

/* ---- the run ------------------------------------------------------------------------------------------- */

typedef struct {
    int32_t tokens;
    double seconds;
} timing;

static void show(const char* label, const char* text) {
    printf("%-9s ", label);
    for (; *text; text++) putchar((unsigned char)*text < 32 || *text == 127 ? ' ' : *text);
    putchar('\n');
}

static void show_rate(const char* label, timing t, const char* what) {
    printf("%-9s %d tokens in %.1f ms, %.1f tokens/s%s\n", label, (int)t.tokens, 1e3 * t.seconds,
           t.seconds > 0 ? t.tokens / t.seconds : 0.0, what);
}

/* Feed the conversation and generate. Adds to both timings. Returns the text, or NULL. */
static char* turn(nc_session* s, const conversation* c, uint32_t max, timing* fed, timing* made,
                  int32_t* had) {
    nocopy_generation options = nocopy_generation_default();
    double start = now(), ready;
    int32_t length;
    char* text;
    options.temperature = 0;
    *had = prompt(s, c);
    if (*had < 0) return NULL;
    ready = now();
    length = nocopy_session_length(s->handle);
    fed->tokens += length - *had;
    fed->seconds += ready - start;
    text = nc_generate_text(s, &options, max);
    made->tokens += nocopy_session_length(s->handle) - length;
    made->seconds += now() - ready;
    return text;
}

static uint32_t context_of(const char* info) {
    const char* at = strstr(info, "\"context\": ");
    unsigned long context = at ? strtoul(at + strlen("\"context\": "), NULL, 10) : 0;
    return context < CONTEXT ? (uint32_t)context : CONTEXT;
}

static int run(nc_session* s, const char* question) {
    static conversation c;
    static char text[4096];
    char result[128], reuse[64];
    timing fed = {0, 0}, made = {0, 0};
    int32_t had, error;
    char *call, *answer;

    show("question", question);
    if (strlen(question) > sizeof text / 2) return fputs("agent: the question is too long\n", stderr), 2;
    for (size_t i = 0; i < sizeof EXAMPLES / sizeof *EXAMPLES; i++)
        for (size_t k = 0; k < 4; k++) say(&c, k % 2 ? "assistant" : "user", EXAMPLES[i][k]);
    say(&c, "user", question);
    if ((error = nc_constrain(s, NOCOPY_CONSTRAINT_JSON_SCHEMA, SCHEMA)) < 0) return fail("schema", error);
    if (!(call = turn(s, &c, CALL, &fed, &made, &had))) return fail("call", had);
    show("call", call);
    if (!use_tool(call, result, sizeof result))
        return fputs("agent: that is not a whole call; the context may be full\n", stderr), 1;
    show("result", result);

    say(&c, "assistant", call);
    free(call);
    snprintf(text, sizeof text, "The tool says: %s. %s", result, question);
    say(&c, "user", text);
    nc_constrain(s, NOCOPY_CONSTRAINT_NONE, "");
    if (!(answer = turn(s, &c, ANSWER, &fed, &made, &had))) return fail("answer", had);
    show("answer", answer);
    free(answer);
    snprintf(reuse, sizeof reuse, "; %d more were in the cache", (int)had);
    show_rate("prompts", fed, reuse);
    show_rate("generated", made, "");
    return 0;
}

int main(int argc, char** argv) {
    nc_session s;
    int32_t model, error;
    uint32_t context;
    char* info;
    int status;
    if (argc != 2) return fprintf(stderr, "usage: agent QUESTION\n"), 2;
    if ((model = nc_model("default")) < 0) return fail("model", model);
    if (!(info = nc_info(model))) return fail("model", 0);
    context = context_of(info);
    free(info);
    if ((error = nc_open(&s, model, context, NOCOPY_F16)) < 0) return fail("session", error);
    printf("%-9s %u tokens of context in %.1f MiB of the guest's own memory, at %p\n", "session",
           (unsigned)context, (double)s.bytes / (1 << 20), s.region);
    status = run(&s, argv[1]);
    nc_close(&s);
    nocopy_model_close(model);
    return status;
}
