/* Calls whose outcome is known without a GPU: what the library answers is printed, to be compared with and without the
 * preload. */
#include <stdio.h>

#include "nccl.h"

int body(void);

int body(void) {
    static float buffer[4096];
    int version = 0;
    ncclResult_t result = ncclGetVersion(&version);
    printf("version %d %d\n", result, version);
    for (int grouped = 0; grouped < 2; ++grouped) {
        if (grouped) printf("start %d %d\n", ncclGroupStart(), ncclGroupStart());
        printf("all-reduce %d\n", ncclAllReduce(buffer, buffer, 4096, ncclFloat32, ncclSum, NULL, NULL));
        printf("reduce-scatter %d\n", ncclReduceScatter(buffer, buffer, 4096, ncclFloat32, ncclSum, NULL, NULL));
        printf("all-gather %d\n", ncclAllGather(buffer, buffer, 4096, ncclFloat32, NULL, NULL));
        printf("broadcast %d\n", ncclBroadcast(buffer, buffer, 4096, ncclFloat32, 0, NULL, NULL));
        printf("bcast %d\n", ncclBcast(buffer, 4096, ncclFloat32, 0, NULL, NULL));
        if (grouped) {
            const ncclResult_t first = ncclGroupEnd(), second = ncclGroupEnd();
            printf("end %d %d\n", first, second);
        }
    }
    /* One more end than beginnings. */
    printf("end %d\n", ncclGroupEnd());
    return 0;
}
