// Puts pages into the page tables before they are touched, on a thread that starts with the first request and
// sleeps between them: to wake it costs a tenth of what starting one does.
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

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

constexpr uint64_t PIECE = 32 << 20;  // bytes to read that one thread takes at a time

class Populator {
  public:
    Populator() {
        std::thread([this] { work(); }).detach();
    }

    void add(const nocopy_range* ranges, uint64_t count) {
        if (getpid() != process_) return;  // a forked child has no thread
        {
            const std::lock_guard lock(mutex_);
            for (uint64_t i = 0; i < count; i++) add(ranges[i]);
        }
        wake_.notify_one();
    }

    void rest() {
        if (getpid() != process_) return;
        nocopy_range taken;
        while (take(taken)) populate(taken);
    }

  private:
    void add(nocopy_range range) {
        while (!range.write && range.nbytes > PIECE) {
            waiting_.push_back({range.address, PIECE, range.write});
            range.address += PIECE;
            range.nbytes -= PIECE;
        }
        waiting_.push_back(range);
    }

    bool take(nocopy_range& taken) {
        const std::lock_guard lock(mutex_);
        if (waiting_.empty()) return false;
        taken = waiting_.front();
        waiting_.pop_front();
        return true;
    }

    [[noreturn]] void work() {
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [this] { return !waiting_.empty(); });
            }
            rest();
        }
    }

    const pid_t process_ = getpid();
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<nocopy_range> waiting_;
};

// Never destroyed: its thread ends with the process.
Populator& populator() {
    static Populator* const made = new Populator;
    return *made;
}

}  // namespace

extern "C" void nocopy_populate(const nocopy_range* ranges, uint64_t count) {
    try {
        populator().add(ranges, count);
    } catch (const std::exception&) {
        // Out of memory or of threads: pages are mapped when they are touched.
    }
}

extern "C" void nocopy_populate_rest(void) {
    try {
        populator().rest();
    } catch (const std::exception&) {
    }
}
