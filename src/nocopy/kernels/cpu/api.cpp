// The C functions of the player. No exception leaves them.
#include <exception>

#include "player.hpp"

extern "C" {

uint32_t nocopy_tape_version(void) {
    return NOCOPY_TAPE_VERSION;
}

nocopy_player* nocopy_player_create(uint32_t threads, const char* level_name) {
    constexpr uint32_t MAX_THREADS = 256;
    const nocopy::Level* level = nocopy::find_level(level_name);
    if (!level || threads < 1 || threads > MAX_THREADS) return nullptr;
    try {
        return new nocopy_player(threads, *level);
    } catch (const std::exception&) {
        return nullptr;  // out of memory or of threads, as the header says
    }
}

void nocopy_player_destroy(nocopy_player* player) {
    delete player;
}

int32_t nocopy_play(nocopy_player* player, const nocopy_record* records, uint64_t count,
                    uint8_t* const bases[NOCOPY_SPACES], double timeout_s) {
    return player->play(records, count, bases, timeout_s);
}

void nocopy_populate(nocopy_player* player, const nocopy_range* ranges, uint64_t count) {
    try {
        player->populate(ranges, count);
    } catch (const std::exception&) {
        // Out of memory: pages are mapped when they are touched.
    }
}

}  // extern "C"
