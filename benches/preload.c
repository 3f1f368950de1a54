/* What a collective costs by itself: two buckets in turn, of one rank, so that there is next to nothing to do. Prints
 * nanoseconds per call, the best of several rounds. Run by scripts/overhead-preload. */
#include <mpi.h>
#include <stdio.h>
#include <time.h>

enum { ROUNDS = 20, STEPS = 50000, COUNT = 1024 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e9 * (double)time.tv_sec + (double)time.tv_nsec;
}

int main(int argc, char **argv) {
    static float buckets[2][COUNT];
    double best = 1e18;
    MPI_Init(&argc, &argv);
    for (int round = 0; round < ROUNDS; ++round) {
        const double begun = now();
        for (int step = 0; step < STEPS; ++step)
            for (int b = 0; b < 2; ++b)
                MPI_Allreduce(MPI_IN_PLACE, buckets[b], COUNT, MPI_FLOAT, MPI_SUM, MPI_COMM_SELF);
        const double each = (now() - begun) / (2.0 * STEPS);
        if (each < best) best = each;
    }
    printf("%.0f\n", best);
    MPI_Finalize();
    return 0;
}
