// The device as the bench uses it: a stream, the bench's kernels, and the time of work between two events.
#pragma once

#include <cstdint>
#include <memory>

#include "../../examples/cuda_step/driver.hpp"
#include "copy.h"
#include "report.hpp"

// PTX of copy.cu, compiled by `make kernels`; the Makefile makes a string of it.
inline const char copy_ptx[] =
#include "copy.ptx.inc"
    ;

class Machine {
public:
    // `is_trial`: everything small, to try the program and not the device.
    explicit Machine(bool is_trial)
        : device(0), quick(is_trial), blocks_(8u * static_cast<unsigned>(device.attribute(cuda::multiprocessors))),
          kernels_(copy_ptx), words_(std::size_t{blocks_} * 256), head_start_(is_trial ? 1 << 16 : 1 << 30) {
        stream.zero(head_start_);
    }

    void copy(const void* from, void* to, std::uint64_t bytes) const {
        stream.launch(copy_, blocks_, 256, CopyParams{from, to, bytes / 16});
    }
    void read(const void* from, std::uint64_t bytes) const {
        stream.launch(read_, blocks_, 256, CopyParams{from, words_.get(), bytes / 16});
    }
    void fill(unsigned short* values, std::uint64_t count, std::uint64_t seed) const {
        stream.launch(fill_, blocks_, 256, FillParams{values, count, seed});
    }

    // Seconds of device time that `work` takes. What is enqueued before the first event keeps the device busy until the
    // host has enqueued all of `work`, so that no time of the host is in between.
    template <typename Work> double seconds(Work work) const {
        for (int i = 0; i < 4; i++) read(head_start_.get(), head_start_.bytes());
        before_.record(stream);
        work();
        after_.record(stream);
        return after_.seconds_since(before_);
    }

    // The same often, after a few that do not count.
    template <typename Work> Samples repeat(int runs, Work work) const {
        for (int i = 0; i < 3; i++) seconds(work);
        Samples samples;
        for (int i = 0; i < runs; i++) samples.values.push_back(seconds(work));
        return samples;
    }

    std::size_t available() const {
        std::size_t available = 0, total = 0;
        CUDA(cuMemGetInfo_v2, &available, &total);
        return available;
    }

    const cuda::Device device;
    const cuda::Stream stream;
    const bool quick;

private:
    const unsigned blocks_;
    const cuda::Kernels kernels_;
    const cuda::Function copy_ = kernels_.find("bench_copy"), read_ = kernels_.find("bench_read"),
                         fill_ = kernels_.find("bench_fill");
    const cuda::Memory<unsigned> words_;
    const cuda::Memory<unsigned char> head_start_;
    const cuda::Event before_, after_;
};
