// A libcuda.so.1 for machines without a GPU: the driver functions that nocopy calls, over the emulator, so
// that cuda-bindings and the ctypes calls run for real. Work is done by a thread, one piece after another. It
// is strict: calls without a current context, double registrations, unknown kernels and pages that are not
// registered or allocated are errors, as on a GPU; unknown functions are not found.
#include <dlfcn.h>
#include <elf.h>
#include <stdlib.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "emulator.cpp"

namespace {

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
    LAUNCH_FAILED = 719,
};

constexpr size_t MEMORY = 1 << 30;

// What is alive, for tests that look for leaks; see `nocopy_live`.
std::atomic<long> contexts{0}, modules{0}, graphs{0};
// With NOCOPY_EMULATION=dry, launches are checked and counted, but no kernel runs: it would take most of the
// time.
const bool dry = getenv("NOCOPY_EMULATION") && !strcmp(getenv("NOCOPY_EMULATION"), "dry");

using Piece = std::function<int()>;

// A graph with a branch runs it before what is captured beside it, the next time after that.
struct Graph {
    std::vector<Piece> pieces, branch;
    size_t parted = 0, branches = 0;
    bool apart = false;

    int part() {
        if (apart) return INVALID_VALUE;
        return apart = true, parted = pieces.size(), SUCCESS;
    }
    int meet() {
        if (!apart) return INVALID_VALUE;
        auto at = pieces.begin() + (branches++ % 2 ? pieces.size() : parted);
        pieces.insert(at, branch.begin(), branch.end());
        return apart = false, branch.clear(), SUCCESS;
    }
};

struct Context {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Piece> queue;
    size_t started = 0, ended = 0;
    std::deque<size_t> events;  // how many pieces were started before each was recorded
    int failed = 0;
    bool ending = false;
    int streams = 0;
    Graph* capture = nullptr;
    std::map<uintptr_t, size_t> registered, allocated;
    std::thread worker{[this] { work(); }};

    void work() {
        std::unique_lock lock(mutex);
        for (;;) {
            changed.wait(lock, [this] { return ending || !queue.empty(); });
            if (queue.empty()) return;
            Piece piece = std::move(queue.front());
            queue.pop_front();
            bool skip = failed;
            lock.unlock();
            int status = skip ? 0 : piece();
            lock.lock();
            if (status) failed = status;
            ++ended;
        }
    }

    int start(Piece piece, void* stream) {
        std::lock_guard lock(mutex);
        if (failed) return failed;
        bool beside = stream != this;
        if (beside && !(capture && capture->apart)) return INVALID_VALUE;
        if (capture) {
            (beside ? capture->branch : capture->pieces).push_back(std::move(piece));
        } else {
            queue.push_back(std::move(piece));
            ++started;
            changed.notify_all();
        }
        return SUCCESS;
    }

    void drain() {
        while (state() == NOT_READY) std::this_thread::yield();
    }

    int state() {
        std::lock_guard lock(mutex);
        return ended < started ? (int)NOT_READY : failed;
    }

    int record(size_t* event) {
        std::lock_guard lock(mutex);
        return *event = started, SUCCESS;
    }

    int reached(const size_t* event) {
        std::lock_guard lock(mutex);
        return ended < *event ? (int)NOT_READY : failed;
    }

    bool reaches(uintptr_t address) {
        std::lock_guard lock(mutex);
        for (auto* ranges : {&registered, &allocated})
            for (auto [start, size] : *ranges)
                if (start <= address && address < start + size) return true;
        return false;
    }
};

thread_local std::vector<Context*> current_contexts;

// The current context, refused if there is none or it has failed.
#define CURRENT(c)                                        \
    if (current_contexts.empty()) return INVALID_CONTEXT; \
    Context* c = current_contexts.back();                 \
    if (int state = c->state(); state && state != NOT_READY) return state

int init(unsigned) {
    return SUCCESS;
}
int driver_version(int* version) {
    return *version = 13000, SUCCESS;
}
int device_get(int* device, int) {
    return *device = 0, SUCCESS;
}
int device_name(char* name, int size, int) {
    return snprintf(name, size, "emulated GPU"), SUCCESS;
}
int device_memory(size_t* bytes, int) {
    return *bytes = MEMORY, SUCCESS;
}
int device_attribute(int* value, int attribute, int) {
    static const std::map<int, int> VALUES = {{16, 3}, {75, 9}, {76, 0}, {81, 233472}, {97, 232448}};
    auto found = VALUES.find(attribute);
    *value = found == VALUES.end() ? 1 : found->second;
    return SUCCESS;
}

// As on an H200: once a kernel has faulted, the process gets no other context.
std::atomic<bool> faulted{false};

int context_create(Context** context, void*, unsigned, int) {
    if (faulted) return ILLEGAL_ADDRESS;
    current_contexts.push_back(*context = new Context);
    ++contexts;
    return SUCCESS;
}
int context_push(Context* context) {
    return current_contexts.push_back(context), SUCCESS;
}
int context_pop(Context** context) {
    if (current_contexts.empty()) return INVALID_CONTEXT;
    if (context) *context = current_contexts.back();
    current_contexts.pop_back();
    return SUCCESS;
}
int context_current(Context** context) {
    *context = current_contexts.empty() ? nullptr : current_contexts.back();
    return SUCCESS;
}
int context_destroy(Context* context) {
    {
        std::lock_guard lock(context->mutex);
        context->ending = true;
        context->changed.notify_all();
    }
    context->worker.join();
    for (auto [start, size] : context->allocated) free((void*)start);
    if (!current_contexts.empty() && current_contexts.back() == context) current_contexts.pop_back();
    delete context;
    --contexts;
    return SUCCESS;
}

int host_register(void* address, size_t size, unsigned flags) {
    CURRENT(c);
    if (!size || flags != 3) return INVALID_VALUE;
    std::lock_guard lock(c->mutex);
    for (auto [start, length] : c->registered)
        if ((uintptr_t)address < start + length && start < (uintptr_t)address + size)
            return ALREADY_REGISTERED;
    c->registered[(uintptr_t)address] = size;
    return SUCCESS;
}
int host_unregister(void* address) {
    CURRENT(c);
    c->drain();
    std::lock_guard lock(c->mutex);
    return c->registered.erase((uintptr_t)address) ? SUCCESS : NOT_REGISTERED;
}
int host_pointer(uintptr_t* device, void* host, unsigned) {
    CURRENT(c);
    *device = (uintptr_t)host;
    return c->reaches(*device) ? SUCCESS : INVALID_VALUE;
}

int allocate(uintptr_t* address, size_t size) {
    CURRENT(c);
    if (!size) return INVALID_VALUE;
    if (size > MEMORY) return OUT_OF_MEMORY;
    *address = (uintptr_t)aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    memset((void*)*address, 0xa5, size);
    std::lock_guard lock(c->mutex);
    c->allocated[*address] = size;
    return SUCCESS;
}
int release(uintptr_t address) {
    CURRENT(c);
    c->drain();
    std::lock_guard lock(c->mutex);
    if (!c->allocated.erase(address)) return INVALID_VALUE;
    free((void*)address);
    return SUCCESS;
}
int host_allocate(void** address, size_t size, unsigned) {
    return allocate((uintptr_t*)address, size);
}
int host_release(void* address) {
    return release((uintptr_t)address);
}
int memory_info(size_t* free, size_t* total) {
    CURRENT(c);
    *free = *total = MEMORY;
    std::lock_guard lock(c->mutex);
    for (auto [start, size] : c->allocated) *free -= size;
    return SUCCESS;
}
int fill(uintptr_t address, unsigned char value, size_t size, void*) {
    CURRENT(c);
    return c->start([=] { return memset((void*)address, value, size), 0; }, c);
}
int copy_memory(uintptr_t to, uintptr_t from, size_t size, void* stream) {
    CURRENT(c);
    if (stream != c) return memmove((void*)to, (void*)from, size), SUCCESS;  // past what the first one runs
    return c->start([=] { return memmove((void*)to, (void*)from, size), 0; }, c);
}

// The machine code is real; its kernels' names are looked up in it, then run from this library.
int module_load(std::string** module, const char* image) {
    CURRENT(c);
    auto* header = (const Elf64_Ehdr*)image;
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_machine != 190) return INVALID_IMAGE;
    size_t sections = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
    size_t segments = header->e_phoff + (size_t)header->e_phnum * header->e_phentsize;
    *module = new std::string(image, sections > segments ? sections : segments);
    ++modules;
    return SUCCESS;
}
std::map<void*, size_t> argument_bytes;  // of each kernel that was looked up
int module_function(void** function, std::string* module, const char* name) {
    CURRENT(c);
    if (module->find(std::string(".text.") + name + '\0') == std::string::npos) return NOT_FOUND;
    Dl_info self;
    dladdr((void*)&module_function, &self);
    *function = dlsym(dlopen(self.dli_fname, RTLD_LAZY), name);
    bool is_fused = !strncmp(name, "fused_", 6), copies_words = !strcmp(name, "copy_words");
    argument_bytes[*function] = is_fused       ? sizeof(nocopy_fused)
                                : copies_words ? sizeof(nocopy_words)
                                               : sizeof(nocopy_launch);
    return *function ? SUCCESS : NOT_FOUND;
}
int set_attribute(void* function, int attribute, int value) {
    if (!argument_bytes.count(function)) return INVALID_VALUE;
    bool known = (attribute == 8 && value <= 232448) || (attribute == 9 && value <= 100);
    return known ? SUCCESS : INVALID_VALUE;
}

struct LaunchConfig {
    unsigned grid[3], block[3], shared_bytes;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};

// True if a kernel's operands begin in memory that the context has.
bool reachable(Context* c, const std::vector<uint8_t>& argument) {
    if (argument.size() == sizeof(nocopy_fused)) {
        auto& fused = *(const nocopy_fused*)argument.data();
        for (uint32_t p = 0; p < fused.count; ++p)
            if (!c->reaches(fused.products[p].weight) || !c->reaches(fused.products[p].out)) return false;
        return c->reaches(fused.x);
    }
    if (argument.size() == sizeof(nocopy_words)) {
        auto& words = *(const nocopy_words*)argument.data();
        uint64_t end = 0;
        for (auto range = words.ranges; end < words.count; end = range++->end)
            if (!c->reaches(range->from)) return false;
        return c->reaches(words.to);
    }
    auto& launch = *(const nocopy_launch*)argument.data();
    for (auto& operand : launch.record.operands)
        if (operand.dtype && !c->reaches(launch.spaces[operand.space])) return false;
    return true;
}

int launch(const LaunchConfig* config, void* function, void** parameters, void**) {
    CURRENT(c);
    if (!config->stream || config->grid[1] != 1 || config->block[2] != 1) return INVALID_VALUE;
    if (config->block[0] * config->block[1] > 1024 || config->shared_bytes > 232448) return INVALID_VALUE;
    if (config->attribute_count > 1) return INVALID_VALUE;
    size_t bytes = argument_bytes.at(function);
    std::vector<uint8_t> argument((uint8_t*)parameters[0], (uint8_t*)parameters[0] + bytes);
    LaunchConfig shape = *config;
    auto run = [=] {
        if (!reachable(c, argument)) {
            faulted = true;
            return (int)ILLEGAL_ADDRESS;
        }
        if (dry) return (int)SUCCESS;
        int stuck = emulate((void (*)())function, shape.grid[0], shape.block[0], shape.block[1],
                            shape.shared_bytes, argument.data(), bytes);
        return stuck ? (int)LAUNCH_FAILED : (int)SUCCESS;
    };
    return c->start(run, config->stream);
}

// A context's first stream runs kernels and is the context itself; what its second one is given is done at
// once; on the third a graph's branch is captured.
int stream_create(void** stream, unsigned) {
    CURRENT(c);
    *stream = c->streams ? (void*)((char*)&c->streams + c->streams) : c;
    ++c->streams;
    return SUCCESS;
}
int stream_synchronize(void* stream) {
    CURRENT(c);
    if (stream == c) c->drain();
    return SUCCESS;
}
int stream_query(void* stream) {
    if (current_contexts.empty()) return INVALID_CONTEXT;
    Context* c = current_contexts.back();
    return stream == c ? c->state() : (int)SUCCESS;
}
int event_create(size_t** event, unsigned) {
    CURRENT(c);
    return *event = &c->events.emplace_back(), SUCCESS;
}
int event_record(size_t* event, void* stream) {
    CURRENT(c);
    if (c->capture) return SUCCESS;  // `stream_await` says what for
    return stream == c ? c->record(event) : (int)INVALID_VALUE;
}
int stream_await(void* stream, size_t*, unsigned) {
    CURRENT(c);
    if (!c->capture) return INVALID_VALUE;
    return stream == c ? c->capture->meet() : c->capture->part();
}
int event_query(size_t* event) {
    if (current_contexts.empty()) return INVALID_CONTEXT;
    return current_contexts.back()->reached(event);
}
int capture_begin(void*, int) {
    CURRENT(c);
    if (c->capture) return INVALID_VALUE;
    c->capture = new Graph;
    ++graphs;
    return SUCCESS;
}
int capture_end(void*, Graph** graph) {
    CURRENT(c);
    *graph = c->capture;
    c->capture = nullptr;
    return *graph && !(*graph)->apart ? SUCCESS : INVALID_VALUE;
}
int graph_instantiate(Graph** ready, Graph* graph, unsigned long long) {
    return ++graphs, *ready = new Graph(*graph), SUCCESS;
}
int graph_destroy(Graph* graph) {
    return --graphs, delete graph, SUCCESS;
}
int graph_launch(Graph* graph, void* stream) {
    CURRENT(c);
    if (stream != c) return INVALID_VALUE;
    for (Piece& piece : graph->pieces)
        if (int status = c->start(piece, c)) return status;
    return SUCCESS;
}

int error_string(int status, const char** text) {
    *text = status == ALREADY_REGISTERED ? "already mapped" : "emulated failure";
    return SUCCESS;
}

const std::map<std::string, void*> FUNCTIONS = {
    {"cuInit", (void*)init},
    {"cuDriverGetVersion", (void*)driver_version},
    {"cuDeviceGet", (void*)device_get},
    {"cuDeviceGetName", (void*)device_name},
    {"cuDeviceTotalMem", (void*)device_memory},
    {"cuDeviceGetAttribute", (void*)device_attribute},
    {"cuCtxCreate", (void*)context_create},
    {"cuCtxPushCurrent", (void*)context_push},
    {"cuCtxPopCurrent", (void*)context_pop},
    {"cuCtxGetCurrent", (void*)context_current},
    {"cuCtxDestroy", (void*)context_destroy},
    {"cuMemHostRegister", (void*)host_register},
    {"cuMemHostUnregister", (void*)host_unregister},
    {"cuMemHostGetDevicePointer", (void*)host_pointer},
    {"cuMemHostAlloc", (void*)host_allocate},
    {"cuMemFreeHost", (void*)host_release},
    {"cuMemAlloc", (void*)allocate},
    {"cuMemFree", (void*)release},
    {"cuMemGetInfo", (void*)memory_info},
    {"cuMemsetD8Async", (void*)fill},
    {"cuMemcpyHtoDAsync", (void*)copy_memory},
    {"cuMemcpyDtoHAsync", (void*)copy_memory},
    {"cuMemcpyDtoDAsync", (void*)copy_memory},
    {"cuModuleLoadData", (void*)module_load},
    {"cuModuleGetFunction", (void*)module_function},
    {"cuFuncSetAttribute", (void*)set_attribute},
    {"cuLaunchKernelEx", (void*)launch},
    {"cuStreamCreate", (void*)stream_create},
    {"cuStreamQuery", (void*)stream_query},
    {"cuEventCreate", (void*)event_create},
    {"cuEventRecord", (void*)event_record},
    {"cuEventQuery", (void*)event_query},
    {"cuStreamWaitEvent", (void*)stream_await},
    {"cuStreamSynchronize", (void*)stream_synchronize},
    {"cuStreamBeginCapture", (void*)capture_begin},
    {"cuStreamEndCapture", (void*)capture_end},
    {"cuGraphInstantiate", (void*)graph_instantiate},
    {"cuGraphInstantiateWithFlags", (void*)graph_instantiate},
    {"cuGraphDestroy", (void*)graph_destroy},
    {"cuGraphExecDestroy", (void*)graph_destroy},
    {"cuGraphLaunch", (void*)graph_launch},
    {"cuGetErrorString", (void*)error_string},
};

}  // namespace

// What is alive: contexts, modules, graphs; and of the current context registrations, allocations, their
// bytes.
extern "C" void nocopy_live(long counts[6]) {
    counts[0] = contexts, counts[1] = modules, counts[2] = graphs;
    counts[3] = counts[4] = counts[5] = 0;
    if (current_contexts.empty()) return;
    Context* c = current_contexts.back();
    std::lock_guard lock(c->mutex);
    counts[3] = (long)c->registered.size(), counts[4] = (long)c->allocated.size();
    for (auto [start, size] : c->allocated) counts[5] += (long)size;
}

// Puts a piece of work on a stream of the current context, or into the graph that is captured there.
extern "C" int emulated_start(const std::function<int()>& piece, void* stream) {
    CURRENT(c);
    return c->start(piece, stream);
}

extern "C" int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found) {
    auto entry = FUNCTIONS.find(name);
    if (!strcmp(name, "cuGetProcAddress")) {
        *function = (void*)cuGetProcAddress_v2;
    } else if (entry != FUNCTIONS.end()) {
        *function = entry->second;
    } else {
        *function = nullptr;
        if (found) *found = 1;
        return NOT_FOUND;
    }
    if (found) *found = 0;
    return SUCCESS;
}
extern "C" int cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
