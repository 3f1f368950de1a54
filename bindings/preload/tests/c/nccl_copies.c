/* What calls NCCL gets the copy that it is linked with, from step to step; groups may answer that they are not done yet. */
#include <stdio.h>

#include "fake_nccl.h"

enum { COUNT = 4000, IN_PROGRESS = 7 };

int body(void);

int body(void) {
    static float sent[COUNT], sums[COUNT];
    struct ncclComm comm = {0, 2};
    int copy = 0;
    ncclGetVersion(&copy);
    for (int step = 0; step < 40; ++step) {
        sent[COUNT - 1] = (float)step;
        ncclGroupStart();
        const ncclResult_t result = ncclAllReduce(sent, sums, COUNT, ncclFloat32, ncclSum, &comm, NULL);
        const ncclResult_t end = ncclGroupEnd();
        if (result != ncclSuccess || (end != ncclSuccess && end != IN_PROGRESS) || sums[COUNT - 1] != (float)(2 * copy * step)) {
            fprintf(stderr, "copy %d, step %d: %d, %d, %f\n", copy, step, result, end, (double)sums[COUNT - 1]);
            return 1;
        }
    }
    return 0;
}
