// Walks a tape: resolves each record's operands to addresses and calls its kernel.
#include "player.hpp"

#include <unistd.h>

#include <chrono>
#include <cmath>

namespace nocopy {

namespace {

constexpr double MAX_TIMEOUT_S = 1e9;  // 30 years; keeps nanoseconds within 64 bits

std::int64_t deadline_after(double timeout_s) {
    if (!(timeout_s >= 0) || std::isinf(timeout_s)) return Team::NO_DEADLINE;
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    const double ns = std::fmin(timeout_s, MAX_TIMEOUT_S) * 1e9;
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count() + static_cast<std::int64_t>(ns);
}

Args resolve(const nocopy_record& record, std::uint8_t* const* bases) {
    Args args;
    args.function = record.function;
    args.params = record.params;
    for (unsigned i = 0; i < NOCOPY_MAX_OPERANDS; i++) {
        const nocopy_operand& from = record.operands[i];
        Operand& to = args.operands[i];
        to.dtype = from.dtype;
        to.data = from.dtype == NOCOPY_NONE ? nullptr : bases[from.space] + from.offset;
        for (unsigned axis = 0; axis < NOCOPY_MAX_AXES; axis++) to.strides[axis] = from.strides[axis];
    }
    for (unsigned i = 0; i < NOCOPY_MAX_DIMS; i++) args.dims[i] = record.dims[i];
    return args;
}

}  // namespace

Player::Player(unsigned threads, const Level& level)
    : level_(level), team_(std::make_unique<Team>(threads)), process_(getpid()) {}

Player::~Player() {
    if (getpid() != process_) (void)team_.release();  // a forked child has no threads to join
}

std::int32_t Player::play(const nocopy_record* records, std::uint64_t count, std::uint8_t* const* bases,
                          double timeout_s) {
    const std::lock_guard turn(turn_);
    team_->set_deadline(deadline_after(timeout_s));
    for (std::uint64_t i = 0; i < count; i++) {
        const unsigned opcode = records[i].opcode;
        const Kernel kernel = opcode <= MAX_OPCODE ? level_.kernels[opcode] : nullptr;
        if (!kernel) return NOCOPY_UNKNOWN_OP;
        if (team_->check_deadline()) return NOCOPY_DEADLINE;
        kernel(resolve(records[i], bases), *team_);
        if (team_->expired()) return NOCOPY_DEADLINE;
    }
    return NOCOPY_OK;
}

void Player::populate(const nocopy_range* ranges, std::uint64_t count) {
    if (getpid() == process_) team_->populate(ranges, count);  // a forked child has no threads
}

}  // namespace nocopy
