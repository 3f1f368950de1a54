"""PyTorch tensors handed to the library as they are: raw pointers, strides, and the stream of now.

Needs torch, ctypes and tests/python/fgs.py. Nothing is copied; a tensor has to live as long as the library reads it.
"""

import ctypes as c
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import fgs  # noqa: E402

DTYPES = {torch.float32: (2, 32), torch.float64: (2, 64), torch.float16: (2, 16), torch.bfloat16: (4, 16)}


class Tensor(fgs.Tensor):
    """fgs_dltensor over a torch tensor, which it keeps alive."""

    def __init__(self, tensor):
        self.tensor = tensor
        numbers = c.c_int64 * max(tensor.ndim, 1)
        self.lengths, self.steps = numbers(*tensor.shape), numbers(*tensor.stride())
        code, bits = DTYPES[tensor.dtype]
        device = (2, tensor.device.index or 0) if tensor.is_cuda else (1, 0)
        c.Structure.__init__(self, tensor.data_ptr(), *device, tensor.ndim, code, bits, 1, self.lengths, self.steps, 0)


def stream(device):
    """PyTorch's current stream, as `stream` arguments want it; NULL for host memory."""
    return c.c_void_p(torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None)


class Measured:
    """A scope over the parameters of a module. `spec(name)` gives fields of fgs_tensor."""

    def __init__(self, module, spec=lambda name: {}, **options):
        self.module, self.scope, self.ids = module, fgs.Scope(**options), {}
        self.device = next(module.parameters()).device
        for name, parameter in module.named_parameters():
            raw = fgs.TensorSpec(size=c.sizeof(fgs.TensorSpec), magic=fgs.MAGIC, name=name.encode(), numel=parameter.numel(),
                                 head_axis=fgs.UNSET32, tied_to=fgs.UNSET32, layer_count=1, layer=-1, expert=-1)
            for key, value in spec(name).items():
                setattr(raw, key, value)
            number = c.c_uint32()
            self.scope.register(raw, c.byref(number))
            self.ids[name] = number.value
            self.scope.bind(number.value, fgs.PARAM, Tensor(parameter.detach()))

    def bind_gradients(self):
        """Where autograd put them; they stay there as long as they are zeroed and not dropped."""
        for name, parameter in self.module.named_parameters():
            self.scope.bind(self.ids[name], fgs.GRAD, Tensor(parameter.grad))

    def reference_add(self, task, examples):
        self.scope.reference_add(task, c.c_uint64(examples), 1.0, stream(self.device))

    def step_begin(self, number):
        self.scope.step_begin(c.c_uint64(number))

    def gradients_ready(self, scale=1.0):
        self.scope.gradients_ready(scale, 0, stream(self.device))

    def step_end(self):
        self.scope.step_end(1, stream(self.device))

    def task_end(self):
        self.scope.snapshot(None, stream(self.device))
        self.scope.task_end()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.scope.__exit__()
