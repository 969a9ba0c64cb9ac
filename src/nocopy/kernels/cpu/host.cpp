// The native side of guest calls: `nocopy.submit` without Python when the guest submits a tape again.
//
// The guest may change its memory at any time (another of its threads), so what is compared and what is
// played is never the guest's own bytes: records are copied out once, the copy is compared with tapes that
// the validator accepted, and on a hit our own copy of the accepted tape is played.
#include <cstring>
#include <new>
#include <vector>

#include "player.hpp"

namespace {

constexpr uint64_t MAX_RECORDS = 1024;  // per remembered tape: 256 KiB
constexpr uint32_t MAX_TAPES = 64;

struct Accepted {
    uint64_t hash;
    uint64_t last_use;
    std::vector<nocopy_record> records;
};

// FNV-1a over 64-bit words. Only a filter: equality is decided by memcmp.
uint64_t hash_of(const nocopy_record* records, uint64_t count) {
    uint64_t hash = 0xcbf29ce484222325;
    const auto* bytes = reinterpret_cast<const unsigned char*>(records);
    for (uint64_t i = 0; i < count * sizeof(nocopy_record); i += 8) {
        uint64_t word;
        std::memcpy(&word, bytes + i, 8);
        hash = (hash ^ word) * 0x100000001b3;
    }
    return hash;
}

bool same(const Accepted& tape, uint64_t hash, const nocopy_record* records, uint64_t count) {
    return tape.hash == hash && tape.records.size() == count &&
           std::memcmp(tape.records.data(), records, count * sizeof(nocopy_record)) == 0;
}

}  // namespace

struct nocopy_host {
    nocopy_host_config config;
    std::vector<Accepted> tapes;
    std::vector<nocopy_record> copy;  // of what the guest submits now
    uint64_t clock = 0;
    uint64_t hits = 0;
    int32_t status = NOCOPY_OK;

    Accepted* find(const nocopy_record* records, uint64_t count) {
        const uint64_t hash = hash_of(records, count);
        for (Accepted& tape : tapes)
            if (same(tape, hash, records, count)) return &tape;
        return nullptr;
    }

    uint32_t capacity() const {
        return !config.player ? 0 : config.capacity < MAX_TAPES ? config.capacity : MAX_TAPES;
    }

    // Copies the guest's records out; false when they cannot be in the cache or lie outside the memory.
    bool take(uint64_t pointer, uint64_t count) {
        if (tapes.empty() || count == 0 || count > MAX_RECORDS) return false;
        const uint64_t size = *config.memory_bytes;
        const uint64_t bytes = count * sizeof(nocopy_record);
        if (pointer > size || bytes > size - pointer) return false;
        std::memcpy(copy.data(), config.memory + pointer, bytes);
        return true;
    }

    // True if a remembered tape was played to its end.
    bool replay(uint64_t pointer, uint64_t count) {
        status = NOCOPY_OK;
        if (!take(pointer, count)) return false;
        Accepted* tape = find(copy.data(), count);
        if (!tape) return false;
        tape->last_use = ++clock;
        status = nocopy_play(config.player, tape->records.data(), count, config.bases, config.timeout_s);
        hits += status == NOCOPY_OK;
        return status == NOCOPY_OK;
    }

    bool remember(const nocopy_record* records, uint64_t count) {
        if (capacity() == 0 || count == 0 || count > MAX_RECORDS) return false;
        if (find(records, count)) return true;
        Accepted tape{hash_of(records, count), ++clock, {records, records + count}};
        copy.resize(MAX_RECORDS);
        while (tapes.size() >= capacity()) drop_oldest();
        tapes.push_back(std::move(tape));
        return true;
    }

    void drop_oldest() {
        size_t oldest = 0;
        for (size_t i = 1; i < tapes.size(); i++)
            if (tapes[i].last_use < tapes[oldest].last_use) oldest = i;
        tapes.erase(tapes.begin() + static_cast<std::ptrdiff_t>(oldest));
    }
};

extern "C" {

nocopy_host* nocopy_host_create(const nocopy_host_config* config) {
    return new (std::nothrow) nocopy_host{*config, {}, {}};
}

void nocopy_host_destroy(nocopy_host* host) {
    delete host;
}

nocopy_host_config* nocopy_host_settings(nocopy_host* host) {
    return &host->config;
}

wasm_trap_t* nocopy_host_submit(void* env, wasmtime_caller_t* caller, nocopy_wasm_value* values,
                                size_t count) {
    auto* host = static_cast<nocopy_host*>(env);
    const nocopy_host_config& config = host->config;
    const uint64_t pointer =
        config.memory64 ? static_cast<uint64_t>(values[0].i64) : static_cast<uint32_t>(values[0].i32);
    if (!host->replay(pointer, static_cast<uint32_t>(values[1].i32)))
        return config.fallback(config.fallback_env, caller, values, count);
    values[0].i32 = 0;
    return nullptr;
}

int32_t nocopy_host_remember(nocopy_host* host, const nocopy_record* records, uint64_t count) {
    try {
        return host->remember(records, count);
    } catch (const std::bad_alloc&) {
        return 0;  // not kept, as the header says; the tape was played all the same
    }
}

void nocopy_host_forget(nocopy_host* host) {
    host->tapes.clear();
}

int32_t nocopy_host_status(const nocopy_host* host) {
    return host->status;
}

uint64_t nocopy_host_hits(const nocopy_host* host) {
    return host->hits;
}

wasm_trap_t* nocopy_host_version(void*, wasmtime_caller_t*, nocopy_wasm_value* values, size_t) {
    values[0].i32 = NOCOPY_TAPE_VERSION;
    return nullptr;
}

}  // extern "C"
