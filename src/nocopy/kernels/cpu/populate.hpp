// Pages that are put into the page tables before they are touched.
#pragma once

#include <atomic>
#include <deque>
#include <mutex>

#include "nocopy.h"

namespace nocopy {

// Ranges that wait for whoever has the time, in order. Thread-safe.
class Populate {
  public:
    // Throws std::bad_alloc.
    void add(const nocopy_range* ranges, std::uint64_t count);
    // Whether anything is left to begin; costs nothing.
    bool waits() const { return waits_.load(); }
    // Makes a piece ready, some 20 to 200 us of work; false if nothing is left to begin.
    bool next();

  private:
    bool take(nocopy_range& piece);

    alignas(64) std::atomic<bool> waits_{false};
    std::mutex mutex_;
    std::deque<nocopy_range> left_;
};

}  // namespace nocopy
