/* Four ranks in two communicators of two: one reduces gradients, the other activations, as tensor parallelism does. With
 * validation and gathers between the steps that belong to none. Every result is checked. */
#include "check_mpi.h"

#include <stdio.h>
#include <stdlib.h>

enum { STEPS = 30, BUCKETS = 3, LARGEST = 8000 };

int main(int argc, char **argv) {
    static float gradients[BUCKETS][LARGEST], activations[4096];
    static double outputs[4 * 2000];
    const int sizes[BUCKETS] = {8000, 3000, 3000};
    MPI_Init(&argc, &argv);
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    CHECK(size == 4);
    MPI_Comm data, tensor;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &data);
    MPI_Comm_split(MPI_COMM_WORLD, rank / 2, rank, &tensor);
    for (int step = 0; step < STEPS; ++step) {
        /* All four: a communicator of another size than that of the gradients. */
        for (int i = 0; i < 4096; ++i) activations[i] = 1;
        MPI_Allreduce(MPI_IN_PLACE, activations, 4096, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        CHECK(activations[4095] == 4);
        for (int b = 0; b < BUCKETS; ++b) {
            for (int i = 0; i < sizes[b]; ++i) gradients[b][i] = (float)(rank + b);
            MPI_Allreduce(MPI_IN_PLACE, gradients[b], sizes[b], MPI_FLOAT, MPI_SUM, data);
            CHECK(gradients[b][sizes[b] - 1] == (float)(2 * b + 2 + 2 * (rank % 2)));
        }
        /* A norm, a maximum and a count: too small, no sum, no floating-point numbers. */
        double norm = 1;
        MPI_Allreduce(MPI_IN_PLACE, &norm, 1, MPI_DOUBLE, MPI_SUM, tensor);
        MPI_Allreduce(MPI_IN_PLACE, activations, 4096, MPI_FLOAT, MPI_MAX, data);
        MPI_Allreduce(MPI_IN_PLACE, (int *)activations, 2048, MPI_INT, MPI_SUM, data);
        CHECK(norm == 2);
    }
    for (int i = 0; i < 2000; ++i) outputs[2000 * rank + i] = rank;
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, outputs, 2000, MPI_DOUBLE, MPI_COMM_WORLD);
    CHECK(outputs[7999] == 3);
    MPI_Finalize();
    return 0;
}
