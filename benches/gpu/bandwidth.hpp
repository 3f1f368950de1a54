// What the device's memory gives: the yardstick of everything else in the same run.
#pragma once

#include "machine.hpp"

// Bytes a second, medians.
struct Bandwidth {
    double copy, read;
};

inline Bandwidth measure_bandwidth(const Machine& machine, Report& report) {
    // Far beyond any cache.
    const std::size_t bytes = machine.quick ? 1 << 20 : std::size_t{1} << 31;
    const cuda::Memory<unsigned char> from(bytes), to(bytes);
    machine.fill(reinterpret_cast<unsigned short*>(from.get()), bytes / 2, 1);
    const auto rate = [](double moved) { return [moved](double seconds) { return 1e-9 * moved / seconds; }; };
    const double both = 2.0 * static_cast<double>(bytes);  // read and written

    const Samples driver = machine.repeat(15, [&] {
        CUDA(cuMemcpyDtoDAsync_v2, to.address(), from.address(), bytes, machine.stream.handle());
    }).map(rate(both));
    report.add("copy by the driver, read plus written", driver, "GB/s");
    const Samples copy = machine.repeat(15, [&] { machine.copy(from.get(), to.get(), bytes); }).map(rate(both));
    report.add("copy by a kernel, read plus written", copy, "GB/s");
    const Samples read = machine.repeat(15, [&] { machine.read(from.get(), bytes); }).map(rate(both / 2));
    report.add("read by a kernel", read, "GB/s");
    return {1e9 * std::max(driver.median(), copy.median()), 1e9 * read.median()};
}
