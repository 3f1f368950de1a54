// The double of libcuda, tested by itself through the functions that it exports: that it behaves as the driver does
// where a program can rely on it, and refuses what the driver refuses.
//
//     driver_test NAME       runs a case: see `cases` at the end. Cases named crash_... have to end the process.

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "driver_test.h"

extern "C" {
void fgs_fake_fail(const char* function, int nth, int error);
void fgs_fake_fail_sticky(const char* function, int nth, int error);
void fgs_fake_reset(void);
unsigned long long fgs_fake_count(const char* function);
void fgs_fake_trace_begin(void);
size_t fgs_fake_trace_end(char* out, size_t bytes);
}

namespace {

// Holds a stream until it is opened.
struct Gate {
    std::atomic<bool> open{false};
    void close(CUstream stream) { OK(cuLaunchHostFunc(stream, &wait, this)); }
    static void wait(void* gate) {
        while (!static_cast<Gate*>(gate)->open) std::this_thread::yield();
    }
};

void contexts() {
    CUcontext context, current;
    int value;
    GIVES(cuDeviceGetCount(&value), CUDA_ERROR_NOT_INITIALIZED);
    OK(cuDriverGetVersion(&value));
    EXPECT(value == 12090);
    OK(cuInit(0));
    OK(cuDeviceGetCount(&value));
    EXPECT(value == 2);
    CUdevice device;
    GIVES(cuDeviceGet(&device, 2), CUDA_ERROR_INVALID_DEVICE);
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0));
    EXPECT(value == 4);

    CUdeviceptr pointer;
    OK(cuCtxGetCurrent(&current));
    EXPECT(current == nullptr);
    GIVES(cuMemAlloc_v2(&pointer, 16), CUDA_ERROR_INVALID_CONTEXT);
    GIVES(cuCtxGetDevice(&device), CUDA_ERROR_INVALID_CONTEXT);
    GIVES(cuCtxPopCurrent_v2(&current), CUDA_ERROR_INVALID_CONTEXT);
    GIVES(cuDevicePrimaryCtxRelease_v2(0), CUDA_ERROR_INVALID_CONTEXT);

    CUcontext first = primary(0);
    OK(cuCtxCreate_v2(&context, 0, 1));
    OK(cuCtxGetCurrent(&current));
    EXPECT(current == context && context != first);
    OK(cuCtxGetDevice(&device));
    EXPECT(device == 1);
    std::thread([context, first] {
        CUcontext other;
        OK(cuCtxGetCurrent(&other));
        EXPECT(other == nullptr);  // the stack is the thread's own
        OK(cuCtxPushCurrent_v2(first));
        OK(cuCtxPushCurrent_v2(context));
        OK(cuCtxPopCurrent_v2(&other));
        EXPECT(other == context);
        OK(cuCtxGetCurrent(&other));
        EXPECT(other == first);
    }).join();
    OK(cuCtxDestroy_v2(context));
    OK(cuCtxGetCurrent(&current));
    EXPECT(current == first);
    GIVES(cuCtxSetCurrent(context), CUDA_ERROR_CONTEXT_IS_DESTROYED);

    // A primary context lives while it is retained. Its handle stays the same.
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    EXPECT(context == first);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    allocate(16);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    GIVES(cuMemAlloc_v2(&pointer, 16), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    EXPECT(context == first);
    allocate(16);

    const char* text;
    OK(cuGetErrorName(CUDA_ERROR_ILLEGAL_ADDRESS, &text));
    EXPECT(strcmp(text, "CUDA_ERROR_ILLEGAL_ADDRESS") == 0);
    GIVES(cuGetErrorString(static_cast<CUresult>(12345), &text), CUDA_ERROR_INVALID_VALUE);

    const pid_t child = fork();
    if (child == 0) _exit(cuCtxSynchronize() == CUDA_ERROR_NOT_INITIALIZED && cuInit(0) != CUDA_SUCCESS ? 0 : 1);
    int status;
    waitpid(child, &status, 0);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void memory() {
    CUcontext context = primary();
    CUdeviceptr pointer = allocate(1000);
    EXPECT(pointer % 256 == 0);
    EXPECT(first_word(pointer) == 0xa5a5a5a5u);
    std::vector<char> host(1000, 'x'), back(1000);
    OK(cuMemcpyHtoD_v2(pointer, host.data(), 1000));
    OK(cuMemcpyDtoH_v2(back.data(), pointer, 1000));
    EXPECT(host == back);
    GIVES(cuMemcpyHtoD_v2(pointer + 1, host.data(), 1000), CUDA_ERROR_INVALID_VALUE);
    GIVES(cuMemcpyDtoH_v2(back.data(), reinterpret_cast<CUdeviceptr>(host.data()), 1000), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemsetD8_v2(pointer + 4, 7, 4));
    EXPECT(first_word(pointer + 4) == 0x07070707u);

    // Pointers: device, inside, pinned, registered, unknown.
    unsigned type = 9;
    int ordinal = 9;
    CUcontext owner = nullptr;
    CUdeviceptr start = 0;
    size_t bytes = 0;
    CUpointer_attribute attributes[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                                        CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
                                        CU_POINTER_ATTRIBUTE_RANGE_SIZE};
    void* data[] = {&type, &ordinal, &owner, &start, &bytes};
    OK(cuPointerGetAttributes(5, attributes, data, pointer + 999));
    EXPECT(type == CU_MEMORYTYPE_DEVICE && ordinal == 0 && owner == context && start == pointer && bytes == 1000);
    OK(cuPointerGetAttributes(5, attributes, data, reinterpret_cast<CUdeviceptr>(host.data())));
    EXPECT(type == 0 && owner == nullptr && start == 0 && bytes == 0);
    GIVES(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, reinterpret_cast<CUdeviceptr>(host.data())),
          CUDA_ERROR_INVALID_VALUE);
    void* pinned;
    OK(cuMemHostAlloc(&pinned, 100, 2));
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, reinterpret_cast<CUdeviceptr>(pinned)));
    EXPECT(type == CU_MEMORYTYPE_HOST);
    CUdeviceptr mapped;
    OK(cuMemHostGetDevicePointer_v2(&mapped, pinned, 0));
    GIVES(cuMemHostGetDevicePointer_v2(&mapped, host.data(), 0), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemHostRegister_v2(host.data(), host.size(), 0));
    GIVES(cuMemHostRegister_v2(host.data() + 10, 10, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    OK(cuMemHostUnregister(host.data()));
    GIVES(cuMemHostUnregister(host.data()), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    GIVES(cuMemFreeHost(host.data()), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFreeHost(pinned));

    // The limit of the device (this case runs with FGS_FAKE_MEMORY=1048576).
    CUdeviceptr large, more;
    size_t available, total;
    OK(cuMemAlloc_v2(&large, 1 << 19));
    GIVES(cuMemAlloc_v2(&more, 1 << 19), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemGetInfo_v2(&available, &total));
    EXPECT(total == 1 << 20 && available == (1 << 19) - 1024);
    primary(1);
    OK(cuMemAlloc_v2(&more, 1 << 19));  // another device
    OK(cuMemFree_v2(more));
    OK(cuMemFree_v2(large));
    OK(cuMemFree_v2(pointer));
    GIVES(cuMemFree_v2(pointer), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFree_v2(0));
}

void streams() {
    CUcontext context = primary();
    CUfunction ring = function("test_ring");
    CUdeviceptr out = allocate(64 * 4);
    CUstream first = new_stream(), second = new_stream();
    CUevent event = new_event();
    OK(cuEventQuery(event));  // never recorded: has happened
    Gate gate;
    gate.close(first);
    OK(launch_ring(ring, first, out, 3));
    OK(cuEventRecord(event, first));
    OK(cuStreamWaitEvent(second, event, 0));
    OK(launch_ring(ring, second, out, 5));
    GIVES(cuStreamQuery(first), CUDA_ERROR_NOT_READY);
    GIVES(cuStreamQuery(second), CUDA_ERROR_NOT_READY);
    GIVES(cuEventQuery(event), CUDA_ERROR_NOT_READY);
    gate.open = true;
    OK(cuEventSynchronize(event));
    OK(cuStreamSynchronize(second));
    OK(cuStreamQuery(second));
    EXPECT(first_word(out) == 64 - 5);

    // A copy from pageable memory has been read when the call returns, one from pinned memory has not.
    unsigned pageable = 11, *pinned;
    void* host;
    OK(cuMemHostAlloc(&host, 4, 0));
    pinned = static_cast<unsigned*>(host);
    *pinned = 21;
    Gate other;
    other.close(first);
    OK(cuMemcpyHtoDAsync_v2(out, &pageable, 4, first));
    OK(cuMemcpyHtoDAsync_v2(out + 4, pinned, 4, first));
    pageable = 12;
    *pinned = 22;
    other.open = true;
    OK(cuStreamSynchronize(first));
    EXPECT(first_word(out) == 11 && first_word(out + 4) == 22);
    EXPECT(fgs_fake_count("pageable") == 1);

    // The legacy stream waits for blocking streams and they for it; a non-blocking stream does neither.
    CUstream blocking = new_stream(0);
    Gate third;
    third.close(blocking);
    OK(cuMemsetD8Async(out, 1, 4, nullptr));
    GIVES(cuStreamQuery(nullptr), CUDA_ERROR_NOT_READY);
    OK(cuMemsetD8Async(out + 4, 1, 4, first));
    OK(cuStreamSynchronize(first));
    GIVES(cuStreamQuery(nullptr), CUDA_ERROR_NOT_READY);
    third.open = true;
    OK(cuStreamSynchronize(nullptr));
    OK(cuStreamQuery(blocking));

    // Contexts do not share streams.
    CUcontext created;
    OK(cuCtxCreate_v2(&created, 0, 1));
    GIVES(launch_ring(ring, first, out, 1), CUDA_ERROR_INVALID_HANDLE);
    GIVES(launch_ring(ring, nullptr, out, 1), CUDA_ERROR_INVALID_HANDLE);
    CUevent foreign = new_event();
    GIVES(cuEventRecord(foreign, first), CUDA_ERROR_INVALID_HANDLE);
    CUcontext owner;
    OK(cuStreamGetCtx(first, &owner));
    EXPECT(owner == context);
    OK(cuCtxDestroy_v2(created));
    OK(cuStreamDestroy_v2(first));
    GIVES(cuStreamQuery(first), CUDA_ERROR_INVALID_HANDLE);
    OK(cuCtxSynchronize());
}

void modules() {
    primary();
    CUmodule module;
    CUfunction ring, found;
    GIVES(cuModuleLoadData(&module, "no PTX"), CUDA_ERROR_INVALID_IMAGE);
    GIVES(cuModuleLoadData(&module, ".version 9.0\n.target sm_80\n"), CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    GIVES(cuModuleLoadData(&module, ".version 8.0\n.target sm_100\n"), CUDA_ERROR_NO_BINARY_FOR_GPU);
    OK(cuModuleLoadDataEx(&module, ptx, 0, nullptr, nullptr));
    GIVES(cuModuleGetFunction(&found, module, "test"), CUDA_ERROR_NOT_FOUND);
    GIVES(cuModuleGetFunction(&found, module, "not_compiled"), CUDA_ERROR_NOT_FOUND);
    GIVES(cuModuleGetFunction(&found, module, "test_warp"), CUDA_ERROR_NOT_FOUND);  // 12 bytes here, 8 in the source
    OK(cuModuleGetFunction(&ring, module, "test_ring"));
    OK(cuModuleGetFunction(&found, module, "test_histogram"));
    int value;
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, found));
    EXPECT(value == 128);
    CUdeviceptr out = allocate(64 * 4);
    GIVES(launch_ring(ring, nullptr, out, 1, 0), CUDA_ERROR_INVALID_VALUE);
    GIVES(launch_ring(ring, nullptr, out, 1, 1025), CUDA_ERROR_INVALID_VALUE);
    GIVES(launch_ring(found, nullptr, out, 1, 129), CUDA_ERROR_INVALID_VALUE);
    RingParams params{out, 1};
    void* pointers[] = {&params};
    GIVES(cuLaunchKernel(ring, 1, 65536, 1, 64, 1, 1, 0, nullptr, pointers, nullptr), CUDA_ERROR_INVALID_VALUE);
    const unsigned large = 100 * 1024;
    GIVES(cuLaunchKernel(ring, 1, 1, 1, 64, 1, 1, large, nullptr, pointers, nullptr), CUDA_ERROR_INVALID_VALUE);
    GIVES(cuFuncSetAttribute(ring, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 228 * 1024), CUDA_ERROR_INVALID_VALUE);
    OK(cuFuncSetAttribute(ring, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, large));
    OK(cuLaunchKernel(ring, 1, 1, 1, 64, 1, 1, large, nullptr, pointers, nullptr));
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, ring, 256, 0));
    EXPECT(value == 8);
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, ring, 64, large));
    EXPECT(value == 2);
    EXPECT(first_word(out) == 63);
    OK(cuModuleUnload(module));
    GIVES(launch_ring(ring, nullptr, out, 1), CUDA_ERROR_INVALID_HANDLE);
}

void faults() {
    primary();
    CUdeviceptr pointer;
    fgs_fake_reset();
    fgs_fake_fail("cuMemAlloc", 2, CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&pointer, 16));
    GIVES(cuMemAlloc_v2(&pointer, 16), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&pointer, 16));
    EXPECT(fgs_fake_count("cuMemAlloc_v2") == 3 && fgs_fake_count("*") == 3);

    fgs_fake_trace_begin();
    OK(cuMemsetD8Async(pointer, 0, 16, nullptr));
    unsigned word = 0;
    OK(cuMemcpyHtoDAsync_v2(pointer, &word, 4, nullptr));
    char trace[256], expected[256];
    const size_t bytes = fgs_fake_trace_end(trace, sizeof trace);
    const int thread = static_cast<int>(getpid());  // the first thread has the process's number
    snprintf(expected, sizeof expected, "cuMemsetD8Async %d\ncuMemcpyHtoDAsync %d\npageable %d\n", thread, thread, thread);
    EXPECT(strcmp(trace, expected) == 0 && bytes == strlen(expected) + 1);

    fgs_fake_fail_sticky("*", 1, CUDA_ERROR_ILLEGAL_ADDRESS);
    GIVES(cuStreamQuery(nullptr), CUDA_ERROR_ILLEGAL_ADDRESS);
    GIVES(cuMemFree_v2(pointer), CUDA_ERROR_ILLEGAL_ADDRESS);
    CUcontext context;
    OK(cuCtxGetCurrent(&context));
    fgs_fake_reset();
    OK(cuMemFree_v2(pointer));
}

// Runs with FGS_FAKE_FAIL=cuMemAlloc:2:2,cuStreamCreate:1:700:sticky.
void faults_from_outside() {
    primary();
    CUdeviceptr pointer;
    CUstream stream;
    OK(cuMemAlloc_v2(&pointer, 16));
    GIVES(cuMemAlloc_v2(&pointer, 16), CUDA_ERROR_OUT_OF_MEMORY);
    GIVES(cuStreamCreate(&stream, 0), CUDA_ERROR_ILLEGAL_ADDRESS);
    GIVES(cuMemFree_v2(pointer), CUDA_ERROR_ILLEGAL_ADDRESS);
}

// Runs with FGS_FAKE_DEVICES=0.
void no_device() { GIVES(cuInit(0), CUDA_ERROR_NO_DEVICE); }

void crash_overrun() {
    primary();
    CUdeviceptr pointer = allocate(63 * 4);
    OK(launch_ring(function("test_ring"), nullptr, pointer, 1));
    cuMemFree_v2(pointer);
}

void crash_overrun_at_exit() {
    primary();
    OK(launch_ring(function("test_ring"), nullptr, allocate(63 * 4), 1));
    OK(cuCtxSynchronize());
}

void crash_after_free() {
    primary();
    CUdeviceptr pointer = allocate(64 * 4);
    OK(cuMemFree_v2(pointer));
    OK(launch_ring(function("test_ring"), nullptr, pointer, 1));
    cuCtxSynchronize();
}

void crash_foreign_memory() {
    primary(1);
    CUdeviceptr pointer = allocate(64 * 4);
    primary(0);
    launch_ring(function("test_ring"), nullptr, pointer, 1);
}

struct Case {
    const char* name;
    void (*run)();
};
constexpr Case cases[] = {
    {"contexts", contexts},
    {"memory", memory},
    {"streams", streams},
    {"modules", modules},
    {"graphs", graphs},
    {"capture_refusals", capture_refusals},
    {"faults", faults},
    {"faults_from_outside", faults_from_outside},
    {"no_device", no_device},
    {"crash_overrun", crash_overrun},
    {"crash_overrun_at_exit", crash_overrun_at_exit},
    {"crash_after_free", crash_after_free},
    {"crash_foreign_memory", crash_foreign_memory},
};

}  // namespace

int main(int count, char** arguments) {
    for (const Case& one : cases) {
        if (count != 2 || strcmp(arguments[1], one.name) != 0) continue;
        one.run();
        puts("done");
        return 0;
    }
    fputs("driver_test NAME\n", stderr);
    return 2;
}
