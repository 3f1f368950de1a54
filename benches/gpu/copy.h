// What the bench's kernels are given: read by the host's compiler and by the kernels' (copy.cu).
#pragma once

struct CopyParams {
    // Both 16-byte aligned; `to` is not read.
    const void* from;
    void* to;
    // Of 16 bytes.
    unsigned long long chunks;
};

struct FillParams {
    unsigned short* values;
    unsigned long long count;
    unsigned long long seed;
};
