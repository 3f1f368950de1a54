/* A libnccl.so.2 for host memory. One process plays one rank of a communicator; the others hold the same data, so a sum is
 * a multiple. Within a group nothing happens before its last end, as in NCCL. Symbols are as NCCL has them: weak ones, with
 * strong twins.
 *
 * With a stream the memory is a device's, the only rank is alone, and a sum is a copy on the stream. */
#include "fake_nccl.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    const float *send;
    float *receive;
    size_t count;
    float factor;
} work;

static work waiting[64];
static int count_waiting, depth;

static ncclResult_t run(work w) {
    for (size_t i = 0; i < w.count; ++i) w.receive[i] = w.factor * w.send[i];
    return ncclSuccess;
}

static ncclResult_t enqueue(const void *send, void *receive, size_t count, ncclDataType_t datatype, float factor) {
    if (!send || !receive || datatype != ncclFloat32) return ncclInvalidArgument;
    const work w = {send, receive, count, factor};
    if (depth == 0) return run(w);
    if (count_waiting == (int)(sizeof waiting / sizeof *waiting)) abort();
    waiting[count_waiting++] = w;
    return ncclSuccess;
}

/* A copy by the driver that is loaded. */
static ncclResult_t copy_on(cudaStream_t stream, const void *send, void *receive, size_t bytes) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    int (*copy)(uint64_t, uint64_t, size_t, cudaStream_t) = NULL;
    if (cuda) *(void **)&copy = dlsym(cuda, "cuMemcpyDtoDAsync_v2");
    if (!copy) return ncclInvalidArgument;
    return copy((uint64_t)(uintptr_t)receive, (uint64_t)(uintptr_t)send, bytes, stream) ? ncclInvalidArgument : ncclSuccess;
}

/* Which of several copies this is: its sums are so many times what they should be. */
#ifndef COPY
#define COPY 1
#endif
/* What the end of a group answers where communicators do not block. */
#ifndef END_OF_GROUP
#define END_OF_GROUP ncclSuccess
#endif

#define WEAK(name) extern __typeof__(p##name) name __attribute__((weak, alias("p" #name)))

/* Nobody stands before it. */
ncclResult_t ncclGetVersion(int *version) { return *version = COPY, ncclSuccess; }

ncclResult_t pncclCommCount(ncclComm_t comm, int *count) { return *count = comm ? comm->ranks : 1, ncclSuccess; }
WEAK(ncclCommCount);
ncclResult_t pncclCommUserRank(ncclComm_t comm, int *rank) { return *rank = comm ? comm->rank : 0, ncclSuccess; }
WEAK(ncclCommUserRank);

static float factor(ncclRedOp_t op, ncclComm_t comm) { return (float)COPY * (op == ncclSum ? (float)comm->ranks : 1); }

ncclResult_t pncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t datatype, ncclRedOp_t op,
                            ncclComm_t comm, cudaStream_t stream) {
    if (stream) return copy_on(stream, send, receive, count * sizeof(float));
    return comm ? enqueue(send, receive, count, datatype, factor(op, comm)) : ncclInvalidArgument;
}
WEAK(ncclAllReduce);

ncclResult_t pncclReduceScatter(const void *send, void *receive, size_t count, ncclDataType_t datatype, ncclRedOp_t op,
                                ncclComm_t comm, cudaStream_t stream) {
    (void)stream;
    if (!comm) return ncclInvalidArgument;
    return enqueue((const float *)send + count * (size_t)comm->rank, receive, count, datatype, factor(op, comm));
}
WEAK(ncclReduceScatter);

ncclResult_t pncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t datatype, ncclComm_t comm,
                            cudaStream_t stream) {
    (void)stream;
    if (!comm) return ncclInvalidArgument;
    ncclResult_t result = ncclSuccess;
    for (int rank = 0; rank < comm->ranks && result == ncclSuccess; ++rank)
        result = enqueue(send, (float *)receive + count * (size_t)rank, count, datatype, 1);
    return result;
}
WEAK(ncclAllGather);

ncclResult_t pncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t datatype, int root,
                            ncclComm_t comm, cudaStream_t stream) {
    (void)root, (void)stream;
    return comm ? enqueue(send, receive, count, datatype, 1) : ncclInvalidArgument;
}
WEAK(ncclBroadcast);

ncclResult_t pncclBcast(void *buffer, size_t count, ncclDataType_t datatype, int root, ncclComm_t comm, cudaStream_t stream) {
    return pncclBroadcast(buffer, buffer, count, datatype, root, comm, stream);
}
WEAK(ncclBcast);

ncclResult_t pncclGroupStart(void) { return ++depth, ncclSuccess; }
WEAK(ncclGroupStart);

ncclResult_t pncclGroupEnd(void) {
    if (depth == 0) return ncclInvalidArgument;
    if (--depth > 0) return ncclSuccess;
    for (int i = 0; i < count_waiting; ++i) run(waiting[i]);
    count_waiting = 0;
    return END_OF_GROUP;
}
WEAK(ncclGroupEnd);
