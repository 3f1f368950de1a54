"""The instrument in Megatron-LM (Megatron-Core), without a change to it.

    import forgetscope.megatron
    scope = forgetscope.megatron.attach(model, optimizer)       # after setup_model_and_optimizer: chunks, optimizer
    with scope.task("legal"):
        train(...)                                              # as ever
    with scope.reference("legal"):                              # weights unchanged; each iteration is one batch
        for _ in range(32):
            zero_gradients(); forward_backward(...)

Gradients are read when `config.finalize_model_grads_func` has reduced them, where they lie: in the flat buffers of
Megatron's DistributedDataParallel. With the distributed optimizer a rank holds the reduced gradient, and the fp32
master copy, of a part of each bucket only: that part is bound as a flat range of its parameter, cut wherever Megatron
cuts. What several ranks hold alike (tensor-parallel replicas, data-parallel copies, shared embeddings of the last
pipeline stage) is measured once.

With tensor parallelism each rank's part of a matrix is a tensor of its own ("…@tp1"), with the numbers that its heads
have in the whole model: sums over ranks are those of the whole matrix, for heads, roles, layers and the model.

Cost: binding once, then the three calls of a step. Clipping happens inside `optimizer.step()`, after the gradients were
read: sizes of gradients are those before clipping, directions and updates are exact.
"""

from .megatron_scope import MegatronScope, attach
from .parallel import Parallel

__all__ = ["MegatronScope", "Parallel", "attach"]
