// The C interface of the native library. `src/nocopy/native.py` mirrors it for ctypes.
//
// Ownership: what a `_create` returns belongs to the caller, who gives it back to the matching `_destroy`.
// Everything else that is passed in is borrowed. Nothing here throws, exits or keeps a pointer longer than
// its comment says.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../tape.h"

#define NOCOPY_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum {
    NOCOPY_SPACES = 4,
    NOCOPY_OK = 0,
    NOCOPY_DEADLINE = 1,    // stopped between chunks; outputs of the record under way are half written
    NOCOPY_UNKNOWN_OP = 2,  // a record that this library is too old for; records before it were played
};

// -- the player -------------------------------------------------------------------------------------------

typedef struct nocopy_player nocopy_player;

// Name of instruction-set level `index` that this build has and this machine can run, best last; NULL past
// the end. Static storage.
NOCOPY_API const char* nocopy_level(uint32_t index);

// A player with `threads` threads, the one that plays included (at least 1, at most 256). `level` names an
// instruction-set level; NULL means the best. NULL when the level is not available here or memory ran out.
NOCOPY_API nocopy_player* nocopy_player_create(uint32_t threads, const char* level);

// Ends its threads. Not while something plays. NULL is allowed. In a forked child it leaks instead: the
// threads stayed in the parent.
NOCOPY_API void nocopy_player_destroy(nocopy_player* player);

// Plays `count` validated records over four base addresses (NULL for a space that the records do not use) and
// returns when the last byte is written. Several threads may call; they take turns. `timeout_s` in seconds;
// infinity, NaN or anything negative means none.
NOCOPY_API int32_t nocopy_play(nocopy_player* player, const nocopy_record* records, uint64_t count,
                               uint8_t* const bases[NOCOPY_SPACES], double timeout_s);

// Whole pages of private mappings that will soon be read, or with `write` not 0 be written.
typedef struct nocopy_range {
    uint8_t* address;
    uint64_t nbytes;
    uint64_t write;
} nocopy_range;

// Has the player's other threads put them into the page tables, in order, so that whoever touches them takes
// no fault for each; returns at once, or where there are no others does it itself. What is played meanwhile
// begins without those threads. A hint: it does nothing where the system cannot (Linux can since 5.14), in a
// forked child, or to pages that are not mapped any more, and never changes what they hold.
NOCOPY_API void nocopy_populate(nocopy_player* player, const nocopy_range* ranges, uint64_t count);

// -- the native side of guest calls -----------------------------------------------------------------------

// What wasmtime passes to an unchecked host function; see wasmtime/func.h. Declared here so that the library
// builds and loads without wasmtime.
typedef struct wasm_trap_t wasm_trap_t;
typedef struct wasmtime_caller wasmtime_caller_t;
typedef union nocopy_wasm_value {
    int32_t i32;
    int64_t i64;
    uint64_t slot[2];  // wasmtime keeps values 16 bytes apart
} nocopy_wasm_value;
typedef wasm_trap_t* (*nocopy_host_function)(void* env, wasmtime_caller_t* caller, nocopy_wasm_value* values,
                                             size_t count);

// What a guest's `nocopy.submit` runs on. The creator fills in every field and keeps what they point to alive
// until `nocopy_host_destroy`; fields may be changed while the guest is not running, `bases` only together
// with `nocopy_host_forget`.
typedef struct nocopy_host_config {
    nocopy_player* player;          // NULL: nothing is cached and every call goes to `fallback`
    uint8_t* memory;                // base of the guest's linear memory
    const size_t* memory_bytes;     // its current size; read on every call
    uint8_t* bases[NOCOPY_SPACES];  // what accepted records play over; `bases[0]` is `memory`
    double timeout_s;               // for each play, as in `nocopy_play`
    uint32_t memory64;              // 1: the pointer argument is an i64
    uint32_t capacity;              // accepted tapes to keep, at most 64; 0 keeps none
    nocopy_host_function fallback;  // called when the cache cannot answer
    void* fallback_env;             // its first argument
} nocopy_host_config;

typedef struct nocopy_host nocopy_host;

// NULL when memory ran out. The config is copied.
NOCOPY_API nocopy_host* nocopy_host_create(const nocopy_host_config* config);
NOCOPY_API void nocopy_host_destroy(nocopy_host* host);

// The config in use, to be read or changed in place.
NOCOPY_API nocopy_host_config* nocopy_host_settings(nocopy_host* host);

// `nocopy.submit(tape: i32 or i64, count: i32) -> i32` as wasmtime's unchecked callback; `env` is a
// `nocopy_host*`. Copies the guest's records to private memory, looks the copy up among the accepted tapes
// and plays the cached one: 0 for the guest. Otherwise (not in the cache, out of bounds, more records than
// are cached, or the play did not end with NOCOPY_OK) the fallback gets the same arguments and answers. It
// finds out about the last case with `nocopy_host_status` and must not play again then.
NOCOPY_API wasm_trap_t* nocopy_host_submit(void* env, wasmtime_caller_t* caller, nocopy_wasm_value* values,
                                           size_t count);

// Remember records that the validator accepted for this guest's spaces; they are copied. Returns 1 when they
// are kept, 0 when the tape is too long (more than 1024 records), the cache is off or memory ran out. When
// the cache is full the tape that was played longest ago goes.
NOCOPY_API int32_t nocopy_host_remember(nocopy_host* host, const nocopy_record* records, uint64_t count);

// Forget all accepted tapes (after a space moved or shrank).
NOCOPY_API void nocopy_host_forget(nocopy_host* host);

// Status of the play that made `nocopy_host_submit` call the fallback; NOCOPY_OK if it had not played.
NOCOPY_API int32_t nocopy_host_status(const nocopy_host* host);

// Calls answered from the cache so far.
NOCOPY_API uint64_t nocopy_host_hits(const nocopy_host* host);

// `nocopy.version() -> i32` as wasmtime's unchecked callback: NOCOPY_TAPE_VERSION. `env` is not used.
NOCOPY_API wasm_trap_t* nocopy_host_version(void* env, wasmtime_caller_t* caller, nocopy_wasm_value* values,
                                            size_t count);

// NOCOPY_TAPE_VERSION of this build, so that a library of another version is noticed at load.
NOCOPY_API uint32_t nocopy_tape_version(void);

#ifdef __cplusplus
}
#endif
