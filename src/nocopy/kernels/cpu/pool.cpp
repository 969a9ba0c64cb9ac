#include "pool.hpp"

#include <sys/mman.h>

#include <chrono>
#include <new>

namespace nocopy {

namespace {

constexpr std::uint64_t OPEN = std::uint64_t{1} << 31;
constexpr std::uint64_t INSIDE = OPEN - 1;

// Spinning: about 2 us of pause instructions, then yielding the core, then sleep. 50 us covers the pause
// between two plays of a guest that submits in a loop; see bench/matmul.py.
constexpr int PAUSES = 64;
constexpr std::chrono::microseconds AWAKE{50};

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

std::int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// Spins until ready() or AWAKE has passed; says which.
template <class Ready>
bool spin(const Ready& ready) {
    for (int i = 0; i < PAUSES; i++) {
        if (ready()) return true;
        pause();
    }
    const auto end = std::chrono::steady_clock::now() + AWAKE;
    while (std::chrono::steady_clock::now() < end) {
        for (int i = 0; i < 8; i++) {
            if (ready()) return true;
            pause();
        }
        std::this_thread::yield();
    }
    return ready();
}

Floats map_floats(std::size_t count) {
    const std::size_t bytes = count * sizeof(float);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);  // only a wish: fewer TLB misses in packed panels
#endif
    return Floats(static_cast<float*>(memory), Unmap{bytes});
}

}  // namespace

void Unmap::operator()(float* memory) const {
    munmap(memory, bytes);
}

Team::Team(unsigned threads)
    : threads_(threads), scratch_(map_floats(threads * SCRATCH_FLOATS)), shared_(map_floats(SHARED_FLOATS)) {
    workers_.reserve(threads - 1);
    try {
        for (unsigned i = 1; i < threads; i++) workers_.emplace_back([this, i] { worker(i); });
    } catch (...) {
        this->~Team();
        throw;
    }
}

Team::~Team() {
    stop_.store(true);
    wake_.fetch_add(1);
    wake_.notify_all();
    for (std::thread& thread : workers_) thread.join();
    workers_.clear();
}

void Team::set_deadline(std::int64_t deadline) {
    deadline_ = deadline;
    expired_.store(false, std::memory_order_relaxed);
}

bool Team::check_deadline() {
    if (deadline_ != NO_DEADLINE && now() >= deadline_) expired_.store(true, std::memory_order_relaxed);
    return expired();
}

void Team::run(std::uint64_t chunks, Body body, const void* context) {
    chunks_ = chunks;
    body_ = body;
    context_ = context;
    next_chunk_.store(0, std::memory_order_relaxed);
    if (chunks <= 1 || threads_ == 1) {
        work(scratch(0));
        return;
    }
    const std::uint64_t job = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(job << 32 | OPEN);
    wake(chunks - 1);
    work(scratch(0));
    state_.fetch_and(~OPEN);
    wait_for_workers();
}

void Team::populate(const nocopy_range* ranges, std::uint64_t count) {
    pages_.add(ranges, count);
    if (threads_ > 1) return wake(1);
    while (pages_.next()) continue;
}

// Wakes so many workers at most.
void Team::wake(std::uint64_t most) {
    const std::uint64_t sleepers = sleepers_.load();
    if (sleepers == 0) return;
    wake_.fetch_add(1);
    for (std::uint64_t i = 0; i < sleepers && i < most; i++) wake_.notify_one();
}

void Team::work(float* scratch) {
    for (;;) {
        const std::uint64_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
        if (chunk >= chunks_ || check_deadline()) return;
        body_(context_, chunk, scratch);
    }
}

void Team::wait_for_workers() {
    const auto alone = [this] { return (state_.load(std::memory_order_acquire) & INSIDE) == 0; };
    while (!spin(alone)) {
        const std::uint32_t ticket = left_.load();
        caller_sleeps_.store(true);
        if ((state_.load() & INSIDE) != 0) left_.wait(ticket);
        caller_sleeps_.store(false);
    }
}

void Team::worker(unsigned index) {
    std::uint32_t seen = 0;
    for (;;) {
        std::uint64_t state = next_job(seen);
        if (stop_.load()) return;
        if (pages_.waits()) {
            pages_.next();
            if (pages_.waits()) wake(1);  // each wakes another, so that the caller need not
            continue;
        }
        seen = static_cast<std::uint32_t>(state >> 32);
        while ((state & OPEN) && static_cast<std::uint32_t>(state >> 32) == seen) {
            if (!state_.compare_exchange_weak(state, state + 1)) continue;
            work(scratch(index));
            state_.fetch_sub(1);
            if (caller_sleeps_.load()) {
                left_.fetch_add(1);
                left_.notify_one();
            }
            break;
        }
    }
}

// Waits for a job that is not number `seen`, for pages, or for the end; returns the state with that job.
std::uint64_t Team::next_job(std::uint32_t seen) {
    std::uint64_t state = 0;
    const auto ready = [&] {
        state = state_.load(std::memory_order_acquire);
        return static_cast<std::uint32_t>(state >> 32) != seen || pages_.waits() ||
               stop_.load(std::memory_order_relaxed);
    };
    while (!spin(ready)) {
        // The caller changes the state and then looks at sleepers_; we do it the other way round, so at least
        // one of us sees the other.
        const std::uint32_t ticket = wake_.load();
        sleepers_.fetch_add(1);
        if (!ready()) wake_.wait(ticket);
        sleepers_.fetch_sub(1);
    }
    return state;
}

void run(Team& team, std::uint64_t chunks, Body body, const void* context) {
    team.run(chunks, body, context);
}
bool expired(const Team& team) {
    return team.expired();
}
bool overdue(Team& team) {
    return team.check_deadline();
}
unsigned threads(const Team& team) {
    return team.threads();
}
float* shared(Team& team) {
    return team.shared();
}

}  // namespace nocopy
