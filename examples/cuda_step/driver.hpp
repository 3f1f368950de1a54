// The part of CUDA's driver interface that a small trainer needs, found in libcuda.so.1 when the program starts.
//
// So the program builds with a C++17 compiler alone, on machines without CUDA, and the same binary runs on a GPU and under
// the tests' double of libcuda (docs/emulation.md). A failed call throws. Cost: a pointer per call.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace cuda {

using Address = unsigned long long;
using Context = struct CUctx_st*;
using Module = struct CUmod_st*;
using Function = struct CUfunc_st*;
using StreamHandle = struct CUstream_st*;
using EventHandle = struct CUevent_st*;
using GraphHandle = struct CUgraph_st*;
using RunnableHandle = struct CUgraphExec_st*;

// Values of NVIDIA's cuda.h.
constexpr int multiprocessors = 16;     // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
constexpr unsigned non_blocking = 1;    // CU_STREAM_NON_BLOCKING
constexpr unsigned pinned_default = 0;  // flags of cuMemHostAlloc
constexpr int capture_thread_local = 1; // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL

// Every function: its symbol and its parameters.
#define CUDA_FUNCTIONS(F)                                                                                              \
    F(cuGetErrorName, int, const char**)                                                                               \
    F(cuInit, unsigned)                                                                                                \
    F(cuDriverGetVersion, int*)                                                                                        \
    F(cuDeviceGet, int*, int)                                                                                          \
    F(cuDeviceGetName, char*, int, int)                                                                                \
    F(cuDeviceGetAttribute, int*, int, int)                                                                            \
    F(cuDevicePrimaryCtxRetain, Context*, int)                                                                         \
    F(cuDevicePrimaryCtxRelease_v2, int)                                                                               \
    F(cuCtxSetCurrent, Context)                                                                                        \
    F(cuMemGetInfo_v2, size_t*, size_t*)                                                                               \
    F(cuMemAlloc_v2, Address*, size_t)                                                                                 \
    F(cuMemFree_v2, Address)                                                                                           \
    F(cuMemHostAlloc, void**, size_t, unsigned)                                                                        \
    F(cuMemFreeHost, void*)                                                                                            \
    F(cuMemsetD8Async, Address, unsigned char, size_t, StreamHandle)                                                   \
    F(cuMemcpyHtoDAsync_v2, Address, const void*, size_t, StreamHandle)                                                \
    F(cuMemcpyDtoHAsync_v2, void*, Address, size_t, StreamHandle)                                                      \
    F(cuMemcpyDtoDAsync_v2, Address, Address, size_t, StreamHandle)                                                    \
    F(cuStreamCreate, StreamHandle*, unsigned)                                                                         \
    F(cuStreamDestroy_v2, StreamHandle)                                                                                \
    F(cuStreamSynchronize, StreamHandle)                                                                               \
    F(cuStreamBeginCapture_v2, StreamHandle, int)                                                                      \
    F(cuStreamEndCapture, StreamHandle, GraphHandle*)                                                                  \
    F(cuGraphInstantiateWithFlags, RunnableHandle*, GraphHandle, unsigned long long)                                   \
    F(cuGraphLaunch, RunnableHandle, StreamHandle)                                                                     \
    F(cuGraphDestroy, GraphHandle)                                                                                     \
    F(cuGraphExecDestroy, RunnableHandle)                                                                              \
    F(cuEventCreate, EventHandle*, unsigned)                                                                           \
    F(cuEventDestroy_v2, EventHandle)                                                                                  \
    F(cuEventRecord, EventHandle, StreamHandle)                                                                        \
    F(cuEventSynchronize, EventHandle)                                                                                 \
    F(cuEventElapsedTime, float*, EventHandle, EventHandle)                                                            \
    F(cuModuleLoadData, Module*, const void*)                                                                          \
    F(cuModuleUnload, Module)                                                                                          \
    F(cuModuleGetFunction, Function*, Module, const char*)                                                             \
    F(cuLaunchKernel, Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, StreamHandle,    \
      void**, void**)

struct Driver {
#define CUDA_DECLARE(name, ...) int (*name)(__VA_ARGS__) = nullptr;
    CUDA_FUNCTIONS(CUDA_DECLARE)
#undef CUDA_DECLARE

    Driver() {
        void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
        if (!library) throw std::runtime_error(std::string("no CUDA driver: ") + dlerror());
#define CUDA_FIND(name, ...) find(library, #name, name);
        CUDA_FUNCTIONS(CUDA_FIND)
#undef CUDA_FIND
    }

    void check(int status, const char* function) const {
        if (status == 0) return;
        const char* name = nullptr;
        cuGetErrorName(status, &name);
        throw std::runtime_error(std::string(function) + ": " + (name ? name : std::to_string(status).c_str()));
    }

private:
    template <typename F> static void find(void* library, const char* name, F& function) {
        void* symbol = dlsym(library, name);
        if (!symbol) throw std::runtime_error(std::string("the CUDA driver has no ") + name);
        // POSIX promises that a data pointer of dlsym holds a function pointer; C++ has no cast that says so.
        static_assert(sizeof symbol == sizeof function, "pointers of one size");
        __builtin_memcpy(&function, &symbol, sizeof symbol);
    }
};

inline const Driver& driver() {
    static const Driver loaded;
    return loaded;
}

// A call of the driver that throws if it fails.
#define CUDA(name, ...) ::cuda::driver().check(::cuda::driver().name(__VA_ARGS__), #name)

// The device's primary context, current on this thread: the one that PyTorch and the runtime interface use too.
class Device {
public:
    explicit Device(int ordinal) {
        CUDA(cuInit, 0);
        CUDA(cuDeviceGet, &device_, ordinal);
        Context context = nullptr;
        CUDA(cuDevicePrimaryCtxRetain, &context, device_);
        CUDA(cuCtxSetCurrent, context);
    }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    ~Device() { driver().cuDevicePrimaryCtxRelease_v2(device_); }

    std::string name() const {
        char text[256] = "";
        CUDA(cuDeviceGetName, text, sizeof text, device_);
        return text;
    }
    int attribute(int which) const {
        int value = 0;
        CUDA(cuDeviceGetAttribute, &value, which, device_);
        return value;
    }

private:
    int device_ = 0;
};

// `count` elements of device memory.
template <typename T> class Memory {
public:
    explicit Memory(size_t count) : count_(count) { CUDA(cuMemAlloc_v2, &address_, bytes()); }
    Memory(Memory&& other) noexcept : address_(std::exchange(other.address_, 0)), count_(other.count_) {}
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
        if (address_) driver().cuMemFree_v2(address_);
    }

    // As kernels and DLPack tensors want it; the host must not follow it.
    T* get() const { return reinterpret_cast<T*>(address_); }
    Address address() const { return address_; }
    size_t count() const { return count_; }
    size_t bytes() const { return count_ * sizeof(T); }

private:
    Address address_ = 0;
    size_t count_;
};

// `count` elements of pinned host memory, which copies read and write while the host goes on.
template <typename T> class Pinned {
public:
    explicit Pinned(size_t count) : count_(count) {
        void* memory = nullptr;
        CUDA(cuMemHostAlloc, &memory, count * sizeof(T), pinned_default);
        memory_ = static_cast<T*>(memory);
    }
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;
    ~Pinned() { driver().cuMemFreeHost(memory_); }

    T* get() const { return memory_; }
    T& operator[](size_t index) { return memory_[index]; }
    size_t count() const { return count_; }
    size_t bytes() const { return count_ * sizeof(T); }

private:
    T* memory_ = nullptr;
    size_t count_;
};

// Launches recorded once, run as often as wanted.
class Graph {
public:
    Graph(GraphHandle recorded, StreamHandle stream) : stream_(stream) {
        const int status = driver().cuGraphInstantiateWithFlags(&runnable_, recorded, 0);
        driver().cuGraphDestroy(recorded);
        driver().check(status, "cuGraphInstantiateWithFlags");
    }
    Graph(Graph&& other) noexcept : stream_(other.stream_), runnable_(std::exchange(other.runnable_, nullptr)) {}
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    ~Graph() {
        if (runnable_) driver().cuGraphExecDestroy(runnable_);
    }

    void launch() const { CUDA(cuGraphLaunch, runnable_, stream_); }

private:
    StreamHandle stream_;
    RunnableHandle runnable_ = nullptr;
};

// A stream that does not wait for the legacy default stream.
class Stream {
public:
    Stream() { CUDA(cuStreamCreate, &handle_, non_blocking); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { driver().cuStreamDestroy_v2(handle_); }

    StreamHandle handle() const { return handle_; }
    void wait() const { CUDA(cuStreamSynchronize, handle_); }

    template <typename T> void zero(const Memory<T>& memory) const {
        CUDA(cuMemsetD8Async, memory.address(), 0, memory.bytes(), handle_);
    }
    template <typename T> void upload(const Memory<T>& to, const T* from) const {
        CUDA(cuMemcpyHtoDAsync_v2, to.address(), from, to.bytes(), handle_);
    }
    template <typename T> void download(T* to, const Memory<T>& from) const {
        CUDA(cuMemcpyDtoHAsync_v2, to, from.address(), from.bytes(), handle_);
    }
    template <typename Params> void launch(Function kernel, unsigned blocks, unsigned threads, Params params) const {
        void* pointers[] = {&params};  // copied inside the call
        CUDA(cuLaunchKernel, kernel, blocks, 1, 1, threads, 1, 1, 0, handle_, pointers, nullptr);
    }
    // Records what `work` puts on this stream; it runs when the graph is launched.
    template <typename Work> Graph capture(Work work) const {
        CUDA(cuStreamBeginCapture_v2, handle_, capture_thread_local);
        work();
        GraphHandle recorded = nullptr;
        CUDA(cuStreamEndCapture, handle_, &recorded);
        return Graph(recorded, handle_);
    }

private:
    StreamHandle handle_ = nullptr;
};

// A moment on a stream, by the device's clock.
class Event {
public:
    Event() { CUDA(cuEventCreate, &handle_, 0); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    ~Event() { driver().cuEventDestroy_v2(handle_); }

    void record(const Stream& stream) const { CUDA(cuEventRecord, handle_, stream.handle()); }
    // Waits for both.
    double seconds_since(const Event& earlier) const {
        float milliseconds = 0;
        CUDA(cuEventSynchronize, handle_);
        CUDA(cuEventElapsedTime, &milliseconds, earlier.handle_, handle_);
        return 1e-3 * milliseconds;
    }

private:
    EventHandle handle_ = nullptr;
};

// Kernels of a PTX text, which the driver compiles for its device.
class Kernels {
public:
    explicit Kernels(const char* ptx) { CUDA(cuModuleLoadData, &module_, ptx); }
    Kernels(const Kernels&) = delete;
    Kernels& operator=(const Kernels&) = delete;
    ~Kernels() { driver().cuModuleUnload(module_); }

    Function find(const char* name) const {
        Function function = nullptr;
        CUDA(cuModuleGetFunction, &function, module_, name);
        return function;
    }

private:
    Module module_ = nullptr;
};

}  // namespace cuda
