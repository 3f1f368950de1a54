/* A trainer on the double of NCCL: steps of collectives of which every result is checked. Buffers are device memory under
 * the double of libcuda, which is memory that the program can read.
 *
 * STEPS_KIND: "allreduce" one by one; "group" in nested groups; "scatter" with gathered parameters, as rank 1 of 2;
 * "rebuilt" with other buckets from step 20 on; "fresh" with buffers that are allocated anew. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_nccl.h"

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            return 1;                                                       \
        }                                                                   \
    } while (0)

enum { STEPS = 60, BUCKETS = 3, LARGEST = 3000 };

int body(void);

static float *fill(float *buffer, size_t count, float value) {
    for (size_t i = 0; i < count; ++i) buffer[i] = value;
    return buffer;
}

static int (*allocate)(uint64_t *, size_t), (*wait_for_device)(void);

/* The driver, and a context of its first device. */
static int start_cuda(void) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *context;
    if (!cuda) return fprintf(stderr, "%s\n", dlerror());
    int (*init)(unsigned), (*retain)(void **, int), (*set_current)(void *);
    *(void **)&init = dlsym(cuda, "cuInit");
    *(void **)&retain = dlsym(cuda, "cuDevicePrimaryCtxRetain");
    *(void **)&set_current = dlsym(cuda, "cuCtxSetCurrent");
    *(void **)&allocate = dlsym(cuda, "cuMemAlloc_v2");
    *(void **)&wait_for_device = dlsym(cuda, "cuCtxSynchronize");
    return init(0) || retain(&context, 0) || set_current(context);
}

static float *device_memory(void) {
    uint64_t address = 0;
    return allocate(&address, LARGEST * sizeof(float)) ? NULL : (float *)(uintptr_t)address;
}

int body(void) {
    float *kept[BUCKETS], *parameters[BUCKETS];
    static float norm[1];
    CHECK(start_cuda() == 0);
    const char *kind = getenv("STEPS_KIND");
    const int is_scatter = !strcmp(kind, "scatter"), is_group = !strcmp(kind, "group");
    struct ncclComm comm = {is_scatter, 2};
    size_t sizes[BUCKETS] = {3000, 1500, 1500};
    for (int b = 0; b < BUCKETS; ++b) {
        kept[b] = device_memory(), parameters[b] = device_memory();
        CHECK(kept[b] && parameters[b]);
        fill(parameters[b], LARGEST, 1);
    }
    for (int step = 0; step < STEPS; ++step) {
        if (!strcmp(kind, "rebuilt") && step == 20) sizes[0] = 2000, sizes[1] = 2500;
        /* Whoever reads buffers on a stream has done so before they are written. */
        CHECK(wait_for_device() == 0);
        float *buckets[BUCKETS];
        for (int b = 0; b < BUCKETS; ++b) {
            const int is_fresh = !strcmp(kind, "fresh");
            buckets[b] = fill(is_fresh ? device_memory() : kept[b], sizes[b], (float)(step + b));
        }
        if (is_group) CHECK(ncclGroupStart() == ncclSuccess && ncclGroupStart() == ncclSuccess);
        for (int b = 0; b < BUCKETS; ++b) {
            float *all = buckets[b];
            const size_t part = sizes[b] / 2;
            const ncclResult_t result =
                is_scatter ? ncclReduceScatter(all, all + part, part, ncclFloat32, ncclAvg, &comm, NULL)
                           : ncclAllReduce(all, all, sizes[b], ncclFloat32, ncclSum, &comm, NULL);
            CHECK(result == ncclSuccess);
            if (is_group) {
                /* Not yet reduced: whoever looked now would see something else. */
                CHECK(all[0] == (float)(step + b));
                if (b == 1) CHECK(ncclGroupEnd() == ncclSuccess && all[0] == (float)(step + b));
            }
        }
        if (is_group) CHECK(ncclGroupEnd() == ncclSuccess);
        for (int b = 0; b < BUCKETS; ++b)
            CHECK(buckets[b][sizes[b] - 1] == (float)(step + b) * (is_scatter ? 1.0f : 2.0f));
        CHECK(ncclAllReduce(norm, norm, 1, ncclFloat32, ncclSum, &comm, NULL) == ncclSuccess);
        CHECK(wait_for_device() == 0);
        for (int b = 0; is_scatter && b < BUCKETS; ++b) {
            /* Rank 1 updates the upper half; the double gathers it into both. */
            const size_t part = sizes[b] / 2;
            fill(parameters[b] + part, part, 1 + 0.5f * (float)(step + 1));
            CHECK(ncclAllGather(parameters[b] + part, parameters[b], part, ncclFloat32, &comm, NULL) == ncclSuccess);
        }
        if (!strcmp(kind, "fresh")) {
            /* Kept until all are reduced, and a little longer: no address comes again in the next step. */
            static float *old[STEPS][BUCKETS];
            memcpy(old[step], buckets, sizeof buckets);
        }
    }
    return 0;
}
