/* One form of reduction and, if wanted, one form of gathering, in every step, with numbers that are known: in step s each of
 * n ranks gives (rank + 1) * (s + 1) to every element of two buckets, and parameters are s + 1 after the step. Requests are
 * waited for together. */
#include "check_mpi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 40, BUCKETS = 2, MAX_RANKS = 8 };
static const int sizes[BUCKETS] = {4096, 8192};

static float whole[BUCKETS][8192], part[BUCKETS][8192], parameters[BUCKETS][8192];
static MPI_Request requests[2 * BUCKETS];
static MPI_Status statuses[BUCKETS];
static int rank, size;
/* Of each bucket, for as long as a request goes on. */
static int counts[BUCKETS][MAX_RANKS], displacements[BUCKETS][MAX_RANKS];

/* Returns where the result of this rank is, and in `count` how many elements it has. */
static const float *reduce(const char *name, int b, int *count) {
    const int each = sizes[b] / size;
    *count = each;
#define IS(wanted) (strcmp(name, wanted) == 0)
#define COMMON MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD
    if (IS("Reduce_scatter")) MPI_Reduce_scatter(whole[b], part[b], counts[b], COMMON);
    else if (IS("Reduce_scatter_block")) MPI_Reduce_scatter_block(whole[b], part[b], each, COMMON);
    else if (IS("Ireduce_scatter")) MPI_Ireduce_scatter(whole[b], part[b], counts[b], COMMON, &requests[b]);
    else if (IS("Ireduce_scatter_block")) MPI_Ireduce_scatter_block(whole[b], part[b], each, COMMON, &requests[b]);
#if MPI_VERSION >= 4
    else if (IS("Reduce_scatter_block_c")) MPI_Reduce_scatter_block_c(whole[b], part[b], each, COMMON);
#endif
    else {
        *count = sizes[b];
        if (IS("Allreduce")) MPI_Allreduce(whole[b], part[b], sizes[b], COMMON);
        else if (IS("Iallreduce")) MPI_Iallreduce(whole[b], part[b], sizes[b], COMMON, &requests[b]);
#if MPI_VERSION >= 4
        else if (IS("Allreduce_c")) MPI_Allreduce_c(whole[b], part[b], sizes[b], COMMON);
        else if (IS("Iallreduce_c")) MPI_Iallreduce_c(whole[b], part[b], sizes[b], COMMON, &requests[b]);
#endif
        else CHECK(!"such a reduction");
    }
    return part[b];
}

static void gather(const char *name, int b) {
    const int each = sizes[b] / size;
    MPI_Request *request = &requests[BUCKETS + b];
#define SOURCE MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, parameters[b]
    if (IS("Allgather")) MPI_Allgather(SOURCE, each, MPI_FLOAT, MPI_COMM_WORLD);
    else if (IS("Iallgather")) MPI_Iallgather(SOURCE, each, MPI_FLOAT, MPI_COMM_WORLD, request);
    else if (IS("Allgatherv")) MPI_Allgatherv(SOURCE, counts[b], displacements[b], MPI_FLOAT, MPI_COMM_WORLD);
    else if (IS("Iallgatherv")) MPI_Iallgatherv(SOURCE, counts[b], displacements[b], MPI_FLOAT, MPI_COMM_WORLD, request);
    else if (IS("Bcast")) MPI_Bcast(parameters[b], sizes[b], MPI_FLOAT, 0, MPI_COMM_WORLD);
    else if (IS("Ibcast")) MPI_Ibcast(parameters[b], sizes[b], MPI_FLOAT, 0, MPI_COMM_WORLD, request);
#if MPI_VERSION >= 4
    else if (IS("Allgather_c")) MPI_Allgather_c(SOURCE, each, MPI_FLOAT, MPI_COMM_WORLD);
    else if (IS("Bcast_c")) MPI_Bcast_c(parameters[b], sizes[b], MPI_FLOAT, 0, MPI_COMM_WORLD);
#endif
    else CHECK(!"such a gathering");
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    CHECK(argc == 3 && size <= MAX_RANKS && 4096 % size == 0);
    for (int i = 0; i < 2 * BUCKETS; ++i) requests[i] = MPI_REQUEST_NULL;
    for (int b = 0; b < BUCKETS; ++b)
        for (int r = 0; r < size; ++r) {
            counts[b][r] = sizes[b] / size;
            displacements[b][r] = r * counts[b][r];
        }
    for (int step = 0; step < STEPS; ++step) {
        const float *results[BUCKETS];
        int lengths[BUCKETS];
        for (int b = 0; b < BUCKETS; ++b) {
            for (int i = 0; i < sizes[b]; ++i) whole[b][i] = (float)((rank + 1) * (step + 1));
            results[b] = reduce(argv[1], b, &lengths[b]);
        }
        MPI_Waitall(BUCKETS, requests, statuses);
        const float sum = (float)(size * (size + 1) / 2 * (step + 1));
        for (int b = 0; b < BUCKETS; ++b) CHECK(results[b][0] == sum && results[b][lengths[b] - 1] == sum);
        if (strcmp(argv[2], "none") == 0) continue;
        for (int b = 0; b < BUCKETS; ++b) {
            /* Each rank updates the part that it owns; with a broadcast the first one owns everything. */
            const int is_broadcast = strstr(argv[2], "cast") != NULL, each = sizes[b] / size;
            const int first = is_broadcast ? 0 : rank * each, count = is_broadcast ? (rank == 0) * sizes[b] : each;
            for (int i = first; i < first + count; ++i) parameters[b][i] = (float)(step + 1);
            gather(argv[2], b);
        }
        MPI_Waitall(BUCKETS, requests + BUCKETS, statuses);
        const float expected = (float)(step + 1);
        for (int b = 0; b < BUCKETS; ++b)
            CHECK(parameters[b][0] == expected && parameters[b][sizes[b] - 1] == expected);
    }
    MPI_Finalize();
    return 0;
}
