#pragma once

#include <sys/types.h>

#include <memory>
#include <mutex>

#include "level.hpp"
#include "pool.hpp"

namespace nocopy {

// Plays tapes with the kernels of one level on a team of threads. Several threads may call `play`; they take
// turns.
class Player {
  public:
    // Throws std::bad_alloc or std::system_error.
    Player(unsigned threads, const Level& level);
    ~Player();

    // See `nocopy_play`.
    std::int32_t play(const nocopy_record* records, std::uint64_t count, std::uint8_t* const* bases,
                      double timeout_s);
    // See `nocopy_populate`. Throws std::bad_alloc.
    void populate(const nocopy_range* ranges, std::uint64_t count);

  private:
    const Level& level_;
    std::unique_ptr<Team> team_;
    std::mutex turn_;
    const pid_t process_;
};

}  // namespace nocopy

struct nocopy_player : nocopy::Player {
    using Player::Player;
};
