// What the tests of the double share: checks that name the line, and the objects that most of them need.
#pragma once

#include <unistd.h>

#include <cstdio>

#include "driver_api.h"

inline void expect(CUresult got, CUresult wanted, const char* what, const char* file, int line) {
    if (got == wanted) return;
    fprintf(stderr, "%s:%d: %s gives %d, not %d\n", file, line, what, got, wanted);
    _exit(1);
}
#define GIVES(call, wanted) expect(call, wanted, #call, __FILE__, __LINE__)
#define OK(call) GIVES(call, CUDA_SUCCESS)
#define EXPECT(condition) \
    expect((condition) ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN, CUDA_SUCCESS, #condition, __FILE__, __LINE__)

// As NVRTC would write it, cut to what a driver reads first.
constexpr char ptx[] =
    "//\n.version 8.0\n.target sm_80\n.address_size 64\n"
    ".visible .entry test_ring(\n\t.param .align 8 .b8 test_ring_param_0[16]\n)\n.maxntid 1024, 1, 1\n{\n\tret;\n}\n"
    ".visible .entry test_sum(\n\t.param .align 8 .b8 test_sum_param_0[32]\n)\n{\n\tret;\n}\n"
    ".visible .entry test_warp(\n\t.param .align 8 .b8 test_warp_param_0[12]\n)\n{\n\tret;\n}\n"
    ".visible .entry test_histogram(\n\t.param .align 8 .b8 test_histogram_param_0[24]\n)\n{\n\tret;\n}\n"
    ".visible .entry not_compiled(\n\t.param .align 8 .b8 not_compiled_param_0[8]\n)\n{\n\tret;\n}\n";

inline CUcontext primary(CUdevice device = 0) {
    CUcontext context;
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, device));
    OK(cuCtxSetCurrent(context));
    return context;
}

inline CUstream new_stream(unsigned flags = CU_STREAM_NON_BLOCKING) {
    CUstream stream;
    OK(cuStreamCreate(&stream, flags));
    return stream;
}

inline CUevent new_event() {
    CUevent event;
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    return event;
}

inline CUdeviceptr allocate(size_t bytes) {
    CUdeviceptr pointer;
    OK(cuMemAlloc_v2(&pointer, bytes));
    return pointer;
}

inline CUfunction function(const char* name) {
    CUmodule module;
    CUfunction found;
    OK(cuModuleLoadData(&module, ptx));
    OK(cuModuleGetFunction(&found, module, name));
    return found;
}

struct RingParams {
    CUdeviceptr out;
    unsigned rounds;
};

inline CUresult launch_ring(CUfunction ring, CUstream stream, CUdeviceptr out, unsigned rounds, unsigned threads = 64) {
    RingParams params{out, rounds};
    void* pointers[] = {&params};
    const CUresult result = cuLaunchKernel(ring, 1, 1, 1, threads, 1, 1, 0, stream, pointers, nullptr);
    params = {0, 0};  // the driver has copied them
    return result;
}

inline unsigned first_word(CUdeviceptr pointer) {
    unsigned word;
    OK(cuMemcpyDtoH_v2(&word, pointer, sizeof word));
    return word;
}

// Cases of capture_test.cpp.
void graphs();
void capture_refusals();
