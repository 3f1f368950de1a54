/* A check in a program on several ranks: the first that fails ends all of them. */
#ifndef CHECK_MPI_H
#define CHECK_MPI_H

#include <mpi.h>
#include <stdio.h>

#define CHECK(condition)                                                           \
    do {                                                                           \
        if (!(condition)) {                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);        \
            MPI_Abort(MPI_COMM_WORLD, 1);                                          \
        }                                                                          \
    } while (0)

#endif
