// The kernels of this level, by opcode.
#include "ops.hpp"

namespace nocopy::NOCOPY_LEVEL {

extern const Kernel kernels[MAX_OPCODE + 1];
const Kernel kernels[MAX_OPCODE + 1] = {};

}  // namespace nocopy::NOCOPY_LEVEL
