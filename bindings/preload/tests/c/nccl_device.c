/* A trainer on the double of NCCL whose buffers are device memory, under the double of libcuda: gradients come to be on a
 * stream, are reduced on it, and are overwritten on it right afterwards. Once a step is captured into a graph. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>

#include "nccl.h"

enum { STEPS = 60, BUCKETS = 2, COUNT = 6000, CAPTURED = 50 };

typedef uint64_t device_pointer;

int body(void);

#define CHECK(call)                                                                  \
    do {                                                                             \
        const int status = (call);                                                   \
        if (status != 0) {                                                           \
            fprintf(stderr, "%s:%d: %s: %d\n", __FILE__, __LINE__, #call, status); \
            return 1;                                                                \
        }                                                                            \
    } while (0)

/* Declares a function of the driver and finds it. */
#define DRIVER(name, ...)              \
    int (*name)(__VA_ARGS__) = NULL; \
    *(void **)&name = dlsym(cuda, #name)

int body(void) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!cuda) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    DRIVER(cuInit, unsigned);
    DRIVER(cuDevicePrimaryCtxRetain, void **, int);
    DRIVER(cuCtxSetCurrent, void *);
    DRIVER(cuMemAlloc_v2, device_pointer *, size_t);
    DRIVER(cuMemHostAlloc, void **, size_t, unsigned);
    DRIVER(cuStreamCreate, cudaStream_t *, unsigned);
    DRIVER(cuStreamSynchronize, cudaStream_t);
    DRIVER(cuMemcpyHtoDAsync_v2, device_pointer, const void *, size_t, cudaStream_t);
    DRIVER(cuMemsetD8Async, device_pointer, unsigned char, size_t, cudaStream_t);
    DRIVER(cuStreamBeginCapture_v2, cudaStream_t, int);
    DRIVER(cuStreamEndCapture, cudaStream_t, void **);

    void *context, *graph, *memory;
    cudaStream_t stream;
    device_pointer send[BUCKETS], receive[BUCKETS];
    const size_t bytes = COUNT * sizeof(float);
    CHECK(cuInit(0));
    CHECK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuStreamCreate(&stream, 1));
    CHECK(cuMemHostAlloc(&memory, BUCKETS * bytes, 0));
    float *values = memory;
    for (int b = 0; b < BUCKETS; ++b) {
        CHECK(cuMemAlloc_v2(&send[b], bytes));
        CHECK(cuMemAlloc_v2(&receive[b], bytes));
    }
    for (int step = 0; step < STEPS; ++step) {
        for (int i = 0; i < BUCKETS * COUNT; ++i) values[i] = (float)(step + i / COUNT);
        if (step == CAPTURED) {
            CHECK(cuStreamBeginCapture_v2(stream, 2));
            for (int b = 0; b < BUCKETS; ++b)
                CHECK(ncclAllReduce((void *)send[b], (void *)receive[b], COUNT, ncclFloat32, ncclSum, NULL, stream));
            CHECK(cuStreamEndCapture(stream, &graph));
        }
        for (int b = 0; b < BUCKETS; ++b) {
            CHECK(cuMemcpyHtoDAsync_v2(send[b], values + b * COUNT, bytes, stream));
            CHECK(ncclAllReduce((void *)send[b], (void *)receive[b], COUNT, ncclFloat32, ncclSum, NULL, stream));
            CHECK(cuMemsetD8Async(receive[b], 0xff, bytes, stream));
        }
        CHECK(cuStreamSynchronize(stream));
    }
    return 0;
}
