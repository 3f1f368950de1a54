// What measuring in device memory costs, through the C ABI, as ratios to what the device's memory gives in the same run.
//
//     bench [--quick] [--out FILE.json]
//
// Device times are by CUDA events, medians of repeated runs after a warm-up, with the range that holds eight of ten.
// --quick makes everything small: it tries the program, under the double of libcuda too, and its figures mean nothing.
#include <exception>
#include <string>

#include "bandwidth.hpp"
#include "calls.hpp"
#include "passes.hpp"

int main(int count, char** arguments) {
    try {
        bool quick = false;
        std::string out;
        for (int i = 1; i < count; i++) {
            const std::string argument = arguments[i];
            if (argument == "--quick") quick = true;
            else if (argument == "--out" && i + 1 < count) out = arguments[++i];
            else throw std::runtime_error("cannot use " + argument);
        }
        const Machine machine(quick);
        int driver = 0;
        CUDA(cuDriverGetVersion, &driver);
        std::printf("%s, driver for CUDA %d.%d%s\n", machine.device.name().c_str(), driver / 1000, driver % 1000 / 10,
                    quick ? ": a trial, its figures mean nothing" : "");
        Report report;
        const Bandwidth bandwidth = measure_bandwidth(machine, report);
        measure_calls(machine, report);
        const Passes passes(machine, report, bandwidth);
        if (quick) {
            passes.measure("0.00001 B parameters", {7, 128}, 2);
        } else {
            passes.measure("0.1 B parameters", {24, 2048}, 15);
            passes.measure("1 B parameters", {60, 4096}, 9);
            passes.measure("7 B parameters", {418, 4096}, 5);
        }
        if (!out.empty()) report.write(out, machine.device.name(), driver, quick);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "bench: %s\n", error.what());
        return 1;
    }
}
