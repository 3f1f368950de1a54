"""Arrays in the memory of a CUDA device: with FGS_TEST_CUDA=1 the oracles run on a device, real or the tests' double.

Every array that is handed to the library has a copy on the device, which is brought up to date before each call and, where
the library may have written to it, read back afterwards. All of it is on the legacy default stream, so copies come in order.
"""

import ctypes as c
import os

import numpy as np

ON_DEVICE = os.environ.get("FGS_TEST_CUDA", "") not in ("", "0")
CUDA, HOST = 2, 1  # DLPack's device types


class Mirror:
    """The device's copies, by address of the array."""

    def __init__(self):
        self.driver = c.CDLL("libcuda.so.1")
        self.copies, self.uploaded = {}, {}
        device, context = c.c_int(), c.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", c.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", c.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        status = getattr(self.driver, name)(*arguments)
        assert status == 0, f"{name}: CUDA error {status}"

    def address(self, array):
        """Where the array's elements are on the device. Views of one base share its copy."""
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        low, high = np.lib.array_utils.byte_bounds(base)
        key = (low, high)
        if key not in self.copies:
            memory = c.c_uint64()
            self.call("cuMemAlloc_v2", c.byref(memory), c.c_size_t(max(high - low, 1)))
            self.copies[key] = (base, memory.value)
        return self.copies[key][1] + array.ctypes.data - low

    def upload(self):
        for (low, high), (_, memory) in self.copies.items():
            now = c.string_at(low, high - low)
            if self.uploaded.get(low) != now:  # most arrays never change, and a copy costs more than a look
                self.call("cuMemcpyHtoD_v2", c.c_uint64(memory), c.c_void_p(low), c.c_size_t(high - low))
                self.uploaded[low] = now

    def download(self):
        for (low, high), (base, memory) in self.copies.items():
            if base.flags.writeable:
                self.call("cuMemcpyDtoH_v2", c.c_void_p(low), c.c_uint64(memory), c.c_size_t(high - low))
                self.uploaded[low] = c.string_at(low, high - low)

    def clear(self):
        for _, memory in self.copies.values():
            self.call("cuMemFree_v2", c.c_uint64(memory))
        self.copies.clear()
        self.uploaded.clear()


mirror = Mirror() if ON_DEVICE else None
