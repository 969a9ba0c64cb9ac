// The kernels that every level defines; the names are those of the op table.
#pragma once

#include "level.hpp"

namespace nocopy::NOCOPY_LEVEL {

void copy(const Args& args, Team& team);
void fill(const Args& args, Team& team);
void unary(const Args& args, Team& team);
void clamp(const Args& args, Team& team);
void binary(const Args& args, Team& team);
void matmul(const Args& args, Team& team);
void reduce(const Args& args, Team& team);
void softmax(const Args& args, Team& team);
void rmsnorm(const Args& args, Team& team);
void layernorm(const Args& args, Team& team);
void gather(const Args& args, Team& team);
void argmax(const Args& args, Team& team);
void topk(const Args& args, Team& team);
void conv2d(const Args& args, Team& team);
void resize(const Args& args, Team& team);
void rope(const Args& args, Team& team);
void scatter(const Args& args, Team& team);
void attention(const Args& args, Team& team);
void glu(const Args& args, Team& team);
void penalize(const Args& args, Team& team);
void sample(const Args& args, Team& team);

}  // namespace nocopy::NOCOPY_LEVEL
