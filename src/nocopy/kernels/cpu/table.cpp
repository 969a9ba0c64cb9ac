// The kernels of this level, by opcode.
#include "ops.hpp"

namespace nocopy::NOCOPY_LEVEL {

extern const Kernel kernels[MAX_OPCODE + 1];
const Kernel kernels[MAX_OPCODE + 1] = {
    nullptr,  // opcodes start at 1
    copy,    fill, unary,  clamp,  binary, matmul,  reduce,    softmax, rmsnorm,  layernorm, gather,
    argmax,  topk, conv2d, resize, rope,   scatter, attention, glu,     penalize, sample,
};
static_assert(NOCOPY_OP_COPY == 1 && NOCOPY_OP_BINARY == 5 && NOCOPY_OP_REDUCE == 7 &&
              NOCOPY_OP_LAYERNORM == 10 && NOCOPY_OP_TOPK == 13 && NOCOPY_OP_RESIZE == 15 &&
              NOCOPY_OP_ATTENTION == 18 && NOCOPY_OP_GLU == 19 && NOCOPY_OP_SAMPLE == 21);

}  // namespace nocopy::NOCOPY_LEVEL
