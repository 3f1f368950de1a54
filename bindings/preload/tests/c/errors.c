/* Calls that fail return what the real function returns, and the same with and without the library. Nothing of them is
 * measured. Then a child: it forks in the middle of training and goes on with its own affairs. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static float gradients[4096], shard[4096];
    const int counts[1] = {4096};
    MPI_Init(&argc, &argv);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    MPI_Request request = MPI_REQUEST_NULL;
    int flag = -1, class = 0;
    for (int step = 0; step < 24; ++step) {
        const int codes[] = {
            MPI_Allreduce(MPI_IN_PLACE, gradients, 4096, MPI_FLOAT, MPI_SUM, MPI_COMM_SELF),
            MPI_Allreduce(MPI_IN_PLACE, gradients, -1, MPI_FLOAT, MPI_SUM, MPI_COMM_SELF),
            MPI_Allreduce(MPI_IN_PLACE, gradients, 4096, MPI_DATATYPE_NULL, MPI_SUM, MPI_COMM_SELF),
            MPI_Iallreduce(MPI_IN_PLACE, gradients, -1, MPI_FLOAT, MPI_SUM, MPI_COMM_SELF, &request),
            MPI_Wait(&request, MPI_STATUS_IGNORE),
            MPI_Test(&request, &flag, MPI_STATUS_IGNORE),
            MPI_Reduce_scatter(gradients, shard, counts, MPI_FLOAT, MPI_OP_NULL, MPI_COMM_SELF),
            MPI_Reduce_scatter_block(gradients, shard, 4096, MPI_FLOAT, MPI_SUM, MPI_COMM_SELF),
            MPI_Allgather(gradients, 4096, MPI_FLOAT, shard, -1, MPI_FLOAT, MPI_COMM_SELF),
            MPI_Bcast(gradients, 4096, MPI_FLOAT, 7, MPI_COMM_SELF),
        };
        for (size_t i = 0; step == 23 && i < sizeof codes / sizeof *codes; ++i) {
            MPI_Error_class(codes[i], &class);
            printf("call %zu: class %d\n", i, class);
        }
        if (step == 20) {
            fflush(stdout);
            const pid_t child = fork();
            if (child == 0) {
                /* At exit it must not end what belongs to its parent. */
                exit(7);
            }
            int status = 0;
            if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7)
                MPI_Abort(MPI_COMM_WORLD, 1);
        }
    }
    printf("flag %d\n", flag);
    MPI_Finalize();
    return 0;
}
