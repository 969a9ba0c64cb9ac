// The threads that play a tape.
//
// One caller walks the tape; `threads - 1` workers help with the chunks of the record under way. A worker
// joins a job by itself and the caller never waits for one that has not joined, so a machine with fewer cores
// than threads, or a worker that the scheduler has put aside, costs help but never a stall. Workers spin for
// some microseconds after a job, since the next record follows at once, and then sleep in the kernel.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "level.hpp"
#include "populate.hpp"

namespace nocopy {

struct Unmap {
    std::size_t bytes = 0;
    void operator()(float* memory) const;
};
using Floats = std::unique_ptr<float, Unmap>;

struct Team {
  public:
    // Throws std::bad_alloc or std::system_error.
    explicit Team(unsigned threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    unsigned threads() const { return threads_; }
    float* shared() { return shared_.get(); }

    // Nanoseconds of the steady clock after which `run` skips chunks.
    void set_deadline(std::int64_t deadline);
    // True once the deadline has passed; looks at the clock.
    bool check_deadline();
    bool expired() const { return expired_.load(std::memory_order_relaxed); }

    void run(std::uint64_t chunks, Body body, const void* context);
    // Has workers make pages ready before they join another job; without workers the caller does. Throws
    // std::bad_alloc.
    void populate(const nocopy_range* ranges, std::uint64_t count);

    static constexpr std::int64_t NO_DEADLINE = std::numeric_limits<std::int64_t>::max();

  private:
    void work(float* scratch);
    void worker(unsigned index);
    std::uint64_t next_job(std::uint32_t seen);
    void wait_for_workers();
    void wake(std::uint64_t most);
    float* scratch(unsigned index) { return scratch_.get() + index * SCRATCH_FLOATS; }

    const unsigned threads_;
    Floats scratch_;
    Floats shared_;

    // The job. Written by the caller while no worker is in it.
    std::uint64_t chunks_ = 0;
    Body body_ = nullptr;
    const void* context_ = nullptr;
    std::int64_t deadline_ = NO_DEADLINE;

    Populate pages_;

    // Job number << 32 | open << 31 | workers inside. A worker enters by adding 1 while the job is open.
    alignas(64) std::atomic<std::uint64_t> state_{0};
    alignas(64) std::atomic<std::uint64_t> next_chunk_{0};
    alignas(64) std::atomic<bool> expired_{false};
    std::atomic<bool> stop_{false};
    std::atomic<std::uint32_t> sleepers_{0};
    std::atomic<std::uint32_t> wake_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<std::uint32_t> left_{0};

    std::vector<std::thread> workers_;
};

}  // namespace nocopy
