/* What a communicator is in fake_nccl.c. */
#pragma once

#include "nccl.h"

struct ncclComm {
    int rank, ranks;
};
