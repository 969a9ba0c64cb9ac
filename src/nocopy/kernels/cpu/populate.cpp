#include "populate.hpp"

#include <sys/mman.h>

#include <algorithm>

namespace nocopy {

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

constexpr std::uint64_t PIECE = 64 << 20;  // bytes that one thread takes at a time

}  // namespace

void Populate::add(const nocopy_range* ranges, std::uint64_t count) {
    const std::lock_guard lock(mutex_);
    left_.insert(left_.end(), ranges, ranges + count);
    waits_.store(!left_.empty());
}

bool Populate::take(nocopy_range& piece) {
    const std::lock_guard lock(mutex_);
    if (left_.empty()) return false;
    nocopy_range& range = left_.front();
    piece = range;
    piece.nbytes = std::min(range.nbytes, PIECE);
    range.address += piece.nbytes;
    range.nbytes -= piece.nbytes;
    if (range.nbytes == 0) left_.pop_front();
    waits_.store(!left_.empty());
    return true;
}

bool Populate::next() {
    nocopy_range piece;
    if (!take(piece)) return false;
    populate(piece);
    return true;
}

}  // namespace nocopy
