// Devices, contexts, the stack of current contexts, and what errors are called.
//
//     FGS_FAKE_DEVICES   how many devices there are (2); 0 gives CUDA_ERROR_NO_DEVICE, as a machine with a driver alone
//     FGS_FAKE_SMS       multiprocessors of each (4)
//     FGS_FAKE_DRIVER    version of the driver (12090); decides which PTX it can load

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "crash.h"
#include "driver.h"

namespace {

// Never destroyed, since a program's exit handlers may still call the driver when thread-locals are gone.
std::vector<CUcontext>& stack() {
    static thread_local auto* const own = new std::vector<CUcontext>;
    return *own;
}

struct ErrorText {
    CUresult error;
    const char *name, *text;
};
#define ERROR(name, text) {name, #name, text}
constexpr ErrorText errors[] = {
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_DEINITIALIZED, "driver shutting down"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    ERROR(CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered"),
    ERROR(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    ERROR(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "the provided PTX was compiled with an unsupported toolchain."),
    ERROR(CUDA_ERROR_OPERATING_SYSTEM, "OS call failed or operation not supported on this OS"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    ERROR(CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"),
    ERROR(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped"),
    ERROR(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
          "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef ERROR

const ErrorText* find(CUresult error) {
    const auto found = std::find_if(std::begin(errors), std::end(errors),
                                    [error](const ErrorText& entry) { return entry.error == error; });
    return found == std::end(errors) ? nullptr : found;
}

CUcontext make_context(CUdevice device, bool primary) {
    CUcontext context = new CUctx_st{device, primary};
    context->legacy = make_stream(context, 0);
    context->legacy->legacy = true;
    driver().contexts.insert(context);
    return context;
}

// Waits for the context's work, ends its streams and frees its memory.
void close_context(std::unique_lock<std::mutex>& lock, CUcontext context) {
    wait_for_context(lock, context);
    context->alive = false;
    for (CUstream stream : context->streams) close_stream(stream);
    close_stream(context->legacy);
    free_memory_of(context);
}

bool is_device(CUdevice device) { return device >= 0 && device < device_count(); }

}  // namespace

Driver& driver() {
    static Driver& only = *new Driver;
    return only;
}

int device_count() {
    static const int count = static_cast<int>(setting("FGS_FAKE_DEVICES", 2));
    return count;
}

CUcontext current_context() { return stack().empty() ? nullptr : stack().back(); }

EXPORT CUresult cuGetErrorName(CUresult error, const char** text) {
    const ErrorText* entry = find(error);
    *text = entry == nullptr ? nullptr : entry->name;
    return entry == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char** text) {
    const ErrorText* entry = find(error);
    *text = entry == nullptr ? nullptr : entry->text;
    return entry == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

EXPORT CUresult cuInit(unsigned flags) {
    ENTER(nothing);
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (device_count() == 0) return CUDA_ERROR_NO_DEVICE;
    if (driver().process == getpid()) return CUDA_SUCCESS;
    if (driver().process != 0) return CUDA_ERROR_NOT_INITIALIZED;  // a child of fork
    std::lock_guard<std::mutex> guard(driver().lock);
    emulation::report_crashes();
    driver().primary.resize(static_cast<size_t>(device_count()));
    driver().process = getpid();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int* version) {
    ENTER(nothing);
    if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *version = static_cast<int>(setting("FGS_FAKE_DRIVER", 12090));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int* count) {
    ENTER(initialised);
    if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *count = device_count();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    ENTER(initialised);
    if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    ENTER(initialised);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (name == nullptr || length <= 0) return CUDA_ERROR_INVALID_VALUE;
    snprintf(name, static_cast<size_t>(length), "Emulated GPU");
    return CUDA_SUCCESS;
}

// As an H100's, but with few multiprocessors, so that grids are small.
EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    ENTER(initialised);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (value == nullptr || attribute < 1 || attribute > 200) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: *value = 1024; break;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: *value = 64; break;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *value = 0x7fffffff; break;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: *value = 65535; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 * 1024; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 227 * 1024; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 228 * 1024; break;
        case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: *value = 1024; break;
        case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: *value = 64 * 1024; break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: *value = 65536; break;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 2619000; break;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;
        case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 50 * 1024 * 1024; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = static_cast<int>(setting("FGS_FAKE_SMS", 4)); break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 2048; break;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: *value = 32; break;
        case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: *value = 3; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
        case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
        case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
        case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
        case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
        case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED: *value = 1; break;
        default: *value = 0;  // what the double does not have, memory pools for one
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    ENTER(initialised);
    if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    CUcontext& primary = driver().primary[static_cast<size_t>(device)];
    if (primary == nullptr) primary = make_context(device, true);
    if (!primary->alive) {
        // The handle stays the same; what belonged to it is gone.
        primary->alive = true;
        primary->streams.clear();
        primary->legacy = make_stream(primary, 0);
        primary->legacy->legacy = true;
    }
    primary->uses++;
    *context = primary;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER(initialised);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    CUcontext primary = driver().primary[static_cast<size_t>(device)];
    if (primary == nullptr || primary->uses == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--primary->uses == 0) close_context(call.lock, primary);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    ENTER(initialised);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (flags == nullptr || active == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const CUcontext primary = driver().primary[static_cast<size_t>(device)];
    *flags = 0;
    *active = primary != nullptr && primary->uses > 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxCreate_v2(CUcontext* context, unsigned, CUdevice device) {
    ENTER(initialised);
    if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    RETURN_IF_REFUSED(refuse_if_unsafe());
    *context = make_context(device, false);
    stack().push_back(*context);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxDestroy_v2(CUcontext context) {
    ENTER(initialised);
    if (driver().contexts.count(context) == 0 || context->primary) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context->alive) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    close_context(call.lock, context);
    // Other threads keep it as their current context and are told that it is destroyed.
    if (!stack().empty() && stack().back() == context) stack().pop_back();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
    ENTER(initialised);
    if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *context = current_context();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    ENTER(initialised);
    if (context != nullptr && driver().contexts.count(context) == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (context != nullptr && !context->alive) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (!stack().empty()) stack().pop_back();
    if (context != nullptr) stack().push_back(context);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
    ENTER(initialised);
    if (driver().contexts.count(context) == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context->alive) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    stack().push_back(context);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* context) {
    ENTER(initialised);
    if (stack().empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (context != nullptr) *context = stack().back();
    stack().pop_back();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice* device) {
    ENTER(context);
    if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *device = call.context->device;
    return CUDA_SUCCESS;
}
