/* What a trainer may do, one habit for each name, and what an instrument must not stumble over. Results are checked. */
#include "check_mpi.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LARGE = 9000, SMALL = 4000 };

static float a[LARGE], b[LARGE];
static int rank, size;

static float *fill(float *values, int count, float value) {
    for (int i = 0; i < count; ++i) values[i] = value;
    return values;
}

static void *map(void *address, size_t bytes, int access) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (address ? MAP_FIXED : 0);
    void *memory = mmap(address, bytes, access, flags, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static void sum(float *values, int count, MPI_Comm comm) {
    MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_FLOAT, MPI_SUM, comm);
}

/* Buffers in memory of a device that is not CUDA's: only MPI can read it. (One rank's sum in place is not touched.) */
static void reduces_where_nobody_reads(void) {
    float *device = map(NULL, LARGE * sizeof(float), PROT_NONE);
    for (int step = 0; step < 100; ++step) sum(device, LARGE, MPI_COMM_SELF);
}

/* A checkpoint is loaded into parameters that are allocated anew. */
static void moves_parameters(void) {
    const int n = 1 << 20, counts[1] = {n};
    float *gradient = calloc(n, 4), *part = calloc(n, 4), *parameters = map(NULL, n * sizeof(float), PROT_READ | PROT_WRITE);
    for (int step = 0; step < 300; ++step) {
        if (step == 200) {
            void *moved = map(NULL, n * sizeof(float), PROT_READ | PROT_WRITE);
            munmap(parameters, n * sizeof(float));
            parameters = moved;
        }
        MPI_Reduce_scatter(gradient, part, counts, MPI_FLOAT, MPI_SUM, MPI_COMM_SELF);
        MPI_Allgather(MPI_IN_PLACE, 0, MPI_FLOAT, parameters, n, MPI_FLOAT, MPI_COMM_SELF);
    }
}

/* Looks whether a request has completed, takes the buffer away, and frees the request afterwards. */
static void looks_at_requests(void) {
    void *place = map(NULL, LARGE * sizeof(float), PROT_NONE);
    for (int step = 0; step < 60; ++step) {
        float *result = map(place, LARGE * sizeof(float), PROT_READ | PROT_WRITE);
        MPI_Request request;
        MPI_Iallreduce(fill(a, LARGE, 1), result, LARGE, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &request);
        for (int flag = 0; !flag;) MPI_Request_get_status(request, &flag, MPI_STATUS_IGNORE);
        CHECK(result[LARGE - 1] == size);
        map(place, LARGE * sizeof(float), PROT_NONE);
        MPI_Wait(&request, MPI_STATUS_IGNORE);
    }
}

/* Waits where nobody sees it. */
static void waits_unseen(void) {
    for (int step = 0; step < 60; ++step) {
        MPI_Request request;
        MPI_Iallreduce(a, b, LARGE, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &request);
        PMPI_Wait(&request, MPI_STATUS_IGNORE);
    }
}

/* Gathers between two groups: arrays have an element for each rank of the other one, and end at a page that is not there. */
static void talks_to_another_group(void) {
    MPI_Comm local, inter;
    MPI_Comm_split(MPI_COMM_WORLD, rank == 0, rank, &local);
    MPI_Intercomm_create(local, 0, MPI_COMM_WORLD, rank == 0 ? 1 : 0, 1, &inter);
    int remote;
    MPI_Comm_remote_size(inter, &remote);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = map(NULL, 4 * page, PROT_READ | PROT_WRITE);
    map(memory + page, page, PROT_NONE);
    map(memory + 3 * page, page, PROT_NONE);
    int *counts = (int *)(memory + page) - remote, *displacements = (int *)(memory + 3 * page) - remote;
    for (int r = 0; r < remote; ++r) counts[r] = 1024, displacements[r] = r * 1024;
    for (int step = 0; step < 40; ++step)
        MPI_Allgatherv(a, 1024, MPI_FLOAT, b, counts, displacements, MPI_FLOAT, inter);
    MPI_Comm_free(&inter);
}

/* Some parameters are everywhere and others in parts: an all-reduce, then a reduce-scatter. */
static void mixes_reductions(void) {
    for (int step = 0; step < 60; ++step) {
        sum(fill(a, 2048, 1), 2048, MPI_COMM_WORLD);
        MPI_Reduce_scatter_block(fill(a + 2048, 4096, 1), b, 4096 / size, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    }
}

/* Of three buckets: in step 10 it starts over after two, with other numbers, and waits for all of them at the end. */
static void starts_over(void) {
    static float given[5][4096], reduced[5][4096];
    for (int step = 0; step < 20; ++step) {
        MPI_Request requests[5];
        MPI_Status statuses[5];
        int n = 0;
        for (int again = step == 10 ? 0 : 1; again < 2; ++again)
            for (int bucket = 0; bucket < 2 + again; ++bucket, ++n) {
                const int count = 4096 - 1000 * bucket;
                MPI_Iallreduce(fill(given[n], count, again ? 1 : 100), reduced[n], count, MPI_FLOAT, MPI_SUM,
                               MPI_COMM_WORLD, &requests[n]);
            }
        MPI_Waitall(n, requests, statuses);
    }
}

/* A communicator for each epoch, in another order of ranks. */
static void frees_communicators(void) {
    for (int epoch = 0; epoch < 4; ++epoch) {
        MPI_Comm comm;
        MPI_Comm_split(MPI_COMM_WORLD, 0, epoch % 2 ? -rank : rank, &comm);
        for (int step = 0; step < 50; ++step) {
            sum(fill(a, LARGE, 1), LARGE, comm);
            sum(fill(b, SMALL, 1), SMALL, comm);
        }
        MPI_Comm_free(&comm);
    }
}

/* A flat buffer of another size in every phase. */
static void changes_sizes(void) {
    for (int phase = 0; phase < 100; ++phase)
        for (int step = 0; step < 40; ++step) sum(a, 5000 + phase, MPI_COMM_SELF);
}

static void *thread(void *given) {
    MPI_Comm comm = *(MPI_Comm *)given;
    float *first = calloc(LARGE, sizeof(float)), *second = calloc(SMALL, sizeof(float));
    for (int step = 0; step < 300; ++step) {
        MPI_Request requests[2];
        MPI_Status statuses[2];
        fill(first, LARGE, (float)step), fill(second, SMALL, (float)-step);
        MPI_Iallreduce(MPI_IN_PLACE, first, LARGE, MPI_FLOAT, MPI_SUM, comm, &requests[0]);
        MPI_Iallreduce(MPI_IN_PLACE, second, SMALL, MPI_FLOAT, MPI_SUM, comm, &requests[1]);
        if (step % 2 == 0) MPI_Waitall(2, requests, statuses);
        for (int done = 0, some = 0, indices[2]; step % 2 == 1 && done < 2; done += some)
            MPI_Testsome(2, requests, &some, indices, statuses);
        CHECK(first[LARGE - 1] == (float)(size * step) && second[0] == (float)(-size * step));
    }
    return NULL;
}

/* Three models in three threads, each with a communicator of its own. */
static void trains_in_threads(void) {
    MPI_Comm comms[3];
    pthread_t threads[3];
    for (int i = 0; i < 3; ++i) MPI_Comm_dup(MPI_COMM_WORLD, &comms[i]);
    for (int i = 0; i < 3; ++i) CHECK(pthread_create(&threads[i], NULL, thread, &comms[i]) == 0);
    for (int i = 0; i < 3; ++i) pthread_join(threads[i], NULL);
}

/* Nothing but steps. */
static void trains(void) {
    for (int step = 0; step < 100; ++step) sum(fill(a, LARGE, 1), LARGE, MPI_COMM_WORLD);
}

/* Two buckets, as tests/python/layout.py describes them. */
static void reduces_buckets(void) {
    for (int step = 0; step < 30; ++step) {
        sum(fill(a, 4096, 1), 4096, MPI_COMM_WORLD);
        sum(fill(b, 2048, 1), 2048, MPI_COMM_WORLD);
    }
}

/* Looks for a function of MPI 4, as mpi4py does, and calls what it finds. */
static void counts_in_64_bits(void) {
    int (*reduce)(const void *, void *, int64_t, MPI_Datatype, MPI_Op, MPI_Comm) = NULL;
    *(void **)&reduce = dlsym(RTLD_DEFAULT, "MPI_Allreduce_c");
    CHECK(reduce);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    for (int step = 0; step < 40; ++step) {
        CHECK(reduce(MPI_IN_PLACE, fill(a, LARGE, 1), LARGE, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD) == MPI_SUCCESS);
        CHECK(a[0] == size && a[LARGE - 1] == size);
    }
    /* More than a library of MPI 3 can count. */
    if (MPI_VERSION < 4)
        CHECK(reduce(MPI_IN_PLACE, a, (int64_t)1 << 40, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD) == MPI_ERR_COUNT);
}

/* Losses alone. */
static void reduces_little(void) {
    for (int step = 0; step < 10; ++step) sum(a, 1, MPI_COMM_WORLD);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } habits[] = {
        {"unreadable", reduces_where_nobody_reads},
        {"moved", moves_parameters},
        {"looks", looks_at_requests},
        {"unseen", waits_unseen},
        {"groups", talks_to_another_group},
        {"mixed", mixes_reductions},
        {"over", starts_over},
        {"communicators", frees_communicators},
        {"sizes", changes_sizes},
        {"threads", trains_in_threads},
        {"trains", trains},
        {"buckets", reduces_buckets},
        {"64 bits", counts_in_64_bits},
        {"little", reduces_little},
    };
    int provided;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    size_t habit = 0;
    for (; habit < sizeof habits / sizeof *habits; ++habit)
        if (argc == 2 && strcmp(habits[habit].name, argv[1]) == 0) break;
    CHECK(habit < sizeof habits / sizeof *habits);
    habits[habit].run();
    MPI_Finalize();
    return 0;
}
