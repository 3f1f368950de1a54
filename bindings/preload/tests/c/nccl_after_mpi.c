/* MPI hands something out, and ends before the steps of NCCL begin or in the middle of the program's end. */
#include <mpi.h>
#include <string.h>

int body(void);

int main(int argc, char **argv) {
    int id = 7;
    MPI_Init(&argc, &argv);
    MPI_Bcast(&id, 1, MPI_INT, 0, MPI_COMM_WORLD);
    const int is_before = argc == 2 && strcmp(argv[1], "before") == 0;
    if (is_before) MPI_Finalize();
    const int status = body();
    if (!is_before) MPI_Finalize();
    return status;
}
