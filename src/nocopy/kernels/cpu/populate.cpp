// Puts pages into the page tables before they are touched, on a thread that starts with the first request and
// sleeps between them: to wake it costs a tenth of what starting one does.
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "nocopy.h"

namespace {

#ifdef __linux__
// Linux's numbers; the C library's headers have them since 2.35 only.
constexpr int POPULATE_READ = 22;
constexpr int POPULATE_WRITE = 23;

void populate(const nocopy_range& range) {
    madvise(range.address, range.nbytes, range.write ? POPULATE_WRITE : POPULATE_READ);
}
#else
void populate(const nocopy_range&) {}
#endif

class Populator {
  public:
    Populator() {
        std::thread([this] { work(); }).detach();
    }

    void add(const nocopy_range* ranges, uint64_t count) {
        if (getpid() != process_) return;  // a forked child has no thread
        {
            const std::lock_guard lock(mutex_);
            waiting_.insert(waiting_.end(), ranges, ranges + count);
        }
        wake_.notify_one();
    }

  private:
    [[noreturn]] void work() {
        std::vector<nocopy_range> taken;
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [this] { return !waiting_.empty(); });
                taken.swap(waiting_);
            }
            for (const nocopy_range& range : taken) populate(range);
            taken.clear();
        }
    }

    const pid_t process_ = getpid();
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<nocopy_range> waiting_;
};

}  // namespace

extern "C" void nocopy_populate(const nocopy_range* ranges, uint64_t count) {
    try {
        // Never destroyed: its thread ends with the process.
        static Populator* const populator = new Populator;
        populator->add(ranges, count);
    } catch (const std::exception&) {
        // Out of memory or of threads: pages are mapped when they are touched.
    }
}
