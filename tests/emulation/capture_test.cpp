// Capture and graphs: what they record and replay, and everything that a capture forbids. See driver_test.cpp.

#include <thread>

#include "driver_test.h"

void graphs() {
    primary();
    CUfunction ring = function("test_ring");
    CUdeviceptr out = allocate(64 * 4), copy = allocate(64 * 4);
    CUstream stream = new_stream(), side = new_stream();
    CUevent fork = new_event(), join = new_event();
    CUstreamCaptureStatus status;
    CUgraph graph;
    CUgraphExec exec;
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(cuMemsetD8Async(copy, 0, 256, stream));
    OK(launch_ring(ring, stream, out, 4));
    OK(cuEventRecord(fork, stream));
    OK(cuStreamWaitEvent(side, fork, 0));
    OK(cuStreamIsCapturing(side, &status));
    EXPECT(status == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(cuMemcpyDtoDAsync_v2(copy, out, 256, side));
    OK(cuEventRecord(join, side));
    OK(cuStreamWaitEvent(stream, join, 0));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuStreamIsCapturing(side, &status));
    EXPECT(status == CU_STREAM_CAPTURE_STATUS_NONE);
    EXPECT(first_word(copy) == 0xa5a5a5a5u);  // nothing has run
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    for (int i = 0; i < 3; i++) {
        OK(cuMemsetD8_v2(copy, 0xff, 256));
        OK(cuCtxSynchronize());
        OK(cuGraphLaunch(exec, stream));
        OK(cuStreamSynchronize(stream));
        EXPECT(first_word(copy) == 60);
    }
    OK(cuGraphLaunch(exec, stream));
    OK(cuGraphExecDestroy(exec));
    OK(cuStreamSynchronize(stream));
    GIVES(cuGraphLaunch(exec, stream), CUDA_ERROR_INVALID_VALUE);
}

// Every refusal, each in a capture of its own that it has to invalidate.
void capture_refusals() {
    primary();
    CUstream stream = new_stream(0), other = new_stream();
    CUevent outside = new_event(), inside = new_event();
    CUdeviceptr out = allocate(64), pointer;
    void* host;
    CUgraph graph;
    CUfunction ring = function("test_ring");
    CUmodule module;
    OK(cuEventRecord(outside, other));
    OK(cuCtxSynchronize());
    const auto refused = [&](const char* what, CUresult error, CUstreamCaptureMode mode, auto&& use) {
        OK(cuStreamBeginCapture_v2(stream, mode));
        OK(cuEventRecord(inside, stream));
        expect(use(), error, what, __FILE__, __LINE__);
        GIVES(launch_ring(ring, stream, out, 1, 16), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        GIVES(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        EXPECT(graph == nullptr);
    };
#define REFUSED(mode, error, call) \
    refused(#call, CUDA_ERROR_##error, CU_STREAM_CAPTURE_MODE_##mode, [&] { return call; })
    REFUSED(RELAXED, STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(stream));
    REFUSED(RELAXED, STREAM_CAPTURE_UNSUPPORTED, cuStreamQuery(stream));
    REFUSED(RELAXED, STREAM_CAPTURE_UNSUPPORTED, cuCtxSynchronize());
    REFUSED(RELAXED, CAPTURED_EVENT, cuEventQuery(inside));
    REFUSED(RELAXED, CAPTURED_EVENT, cuEventSynchronize(inside));
    REFUSED(RELAXED, STREAM_CAPTURE_ISOLATION, cuStreamWaitEvent(stream, outside, 0));
    REFUSED(RELAXED, STREAM_CAPTURE_IMPLICIT, cuMemsetD8Async(out, 0, 4, nullptr));
    REFUSED(RELAXED, STREAM_CAPTURE_IMPLICIT, cuStreamWaitEvent(nullptr, inside, 0));
    REFUSED(GLOBAL, STREAM_CAPTURE_IMPLICIT, cuMemcpyHtoD_v2(out, &out, 4));
    REFUSED(GLOBAL, STREAM_CAPTURE_UNSUPPORTED, cuMemAlloc_v2(&pointer, 4));
    REFUSED(GLOBAL, STREAM_CAPTURE_UNSUPPORTED, cuMemHostAlloc(&host, 4, 0));
    REFUSED(GLOBAL, STREAM_CAPTURE_UNSUPPORTED, cuMemFree_v2(out));
    REFUSED(GLOBAL, STREAM_CAPTURE_UNSUPPORTED, cuModuleLoadData(&module, ptx));
    REFUSED(GLOBAL, STREAM_CAPTURE_UNSUPPORTED, cuEventQuery(outside));
    REFUSED(GLOBAL, STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(other));
    REFUSED(THREAD_LOCAL, STREAM_CAPTURE_UNSUPPORTED, cuMemAlloc_v2(&pointer, 4));

    // Another thread: only a global capture forbids it to allocate, and not if it has said that it means it.
    CUcontext context;
    OK(cuCtxGetCurrent(&context));
    const auto elsewhere = [context](CUstreamCaptureMode mode) {
        CUresult result = CUDA_ERROR_UNKNOWN;
        std::thread([context, mode, &result] {
            CUdeviceptr allocated;
            CUstreamCaptureMode exchanged = mode;
            OK(cuCtxSetCurrent(context));
            OK(cuThreadExchangeStreamCaptureMode(&exchanged));
            EXPECT(exchanged == CU_STREAM_CAPTURE_MODE_GLOBAL);
            result = cuMemAlloc_v2(&allocated, 4);
        }).join();
        return result;
    };
    REFUSED(GLOBAL, STREAM_CAPTURE_UNSUPPORTED, elsewhere(CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(elsewhere(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(elsewhere(CU_STREAM_CAPTURE_MODE_RELAXED));
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    OK(cuMemAlloc_v2(&pointer, 4));
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    CUstreamCaptureStatus status;
    GIVES(cuStreamIsCapturing(nullptr, &status), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    std::thread([stream, context] {
        CUgraph none;
        OK(cuCtxSetCurrent(context));
        GIVES(cuStreamEndCapture(stream, &none), CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    }).join();
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphDestroy(graph));

    // A side stream whose work does not come back.
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuEventRecord(inside, stream));
    OK(cuStreamWaitEvent(other, inside, 0));
    OK(launch_ring(ring, other, out, 1, 16));
    GIVES(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    GIVES(cuStreamBeginCapture_v2(nullptr, CU_STREAM_CAPTURE_MODE_RELAXED), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    GIVES(cuStreamEndCapture(stream, &graph), CUDA_ERROR_INVALID_VALUE);
}
