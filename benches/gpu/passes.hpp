// Device time of the library's passes over 0.1, 1 and 7 billion bf16 parameters, as a share of what a copy reaches.
//
// A pass is counted with the bytes that it cannot do without, for an element: 2 of the tensor, 4 of an exact fp32 reference,
// 2 for each read or write of a copy or snapshot, which are as wide as the parameters.
#pragma once

#include "bandwidth.hpp"
#include "instrument.hpp"

class Passes {
public:
    Passes(const Machine& machine, Report& report, Bandwidth bandwidth)
        : machine_(machine), report_(report), bandwidth_(bandwidth) {}

    void measure(const std::string& size, Shape shape, int runs) const {
        const double n = static_cast<double>(shape.elements());
        // The tensors, what is kept of them, and room for sketches.
        if (fits("gradient pass, " + size, 2 * n, n)) gradient("gradient pass, " + size, shape, runs, false);
        const std::string paired = "gradient pass with an exact reference, " + size;
        if (fits(paired, 6 * n, n)) gradient(paired, shape, runs, true);
        if (fits("parameter passes, " + size, 6 * n, n)) parameters(size, shape, runs);
    }

private:
    bool fits(const std::string& name, double bytes, double elements) const {
        const double needed = 1.02 * bytes + 0.05 * elements + 256e6, available = static_cast<double>(machine_.available());
        if (machine_.quick || needed < available) return true;
        report_.skip(name, "needs " + std::to_string(static_cast<int>(needed / 1e9)) + " GB");
        return false;
    }

    void gradient(const std::string& name, Shape shape, int runs, bool paired) const {
        const cuda::Memory<unsigned short> gradients(shape.elements());
        machine_.fill(gradients.get(), gradients.count(), 1);
        Instrument instrument(machine_, shape, gradients.get(), nullptr, 1);
        paired ? instrument.pass_a_task(true) : instrument.begin_task();
        machine_.fill(gradients.get(), gradients.count(), 2);
        Samples seconds;
        for (int run = -warm_up; run < runs; run++) {
            instrument.step_begin();
            const double time = machine_.seconds([&] { instrument.gradients_ready(); });
            instrument.step_end();
            instrument.settle();
            if (run >= 0) seconds.values.push_back(time);
        }
        confirm(instrument, runs);
        add(name, seconds, (paired ? 6.0 : 2.0) * static_cast<double>(shape.elements()));
    }

    // Before the update: the parameters against their copy, which is replaced. After it: against copy and snapshot.
    void parameters(const std::string& size, Shape shape, int runs) const {
        const cuda::Memory<unsigned short> parameters(shape.elements());
        machine_.fill(parameters.get(), parameters.count(), 1);
        Instrument instrument(machine_, shape, nullptr, parameters.get(), 1);
        instrument.pass_a_task(false);
        Samples before, after;
        for (int run = -warm_up; run < runs; run++) {
            instrument.step_begin();
            const double first = machine_.seconds([&] { instrument.gradients_ready(); });
            machine_.fill(parameters.get(), parameters.count(), static_cast<std::uint64_t>(run + warm_up));  // the update
            const double second = machine_.seconds([&] { instrument.step_end(); });
            instrument.settle();
            if (run < 0) continue;
            before.values.push_back(first);
            after.values.push_back(second);
        }
        confirm(instrument, runs);
        const double bytes = 6.0 * static_cast<double>(shape.elements());
        add("parameter pass before the update, " + size, before, bytes);
        add("parameter pass after the update with a snapshot, " + size, after, bytes);
    }

    void confirm(Instrument& instrument, int runs) const {
        const std::uint64_t steps = instrument.steps_measured(), expected = static_cast<std::uint64_t>(warm_up + runs);
        if (steps != expected) throw std::runtime_error(std::to_string(steps) + " steps measured of " + std::to_string(expected));
    }

    void add(const std::string& name, const Samples& seconds, double bytes) const {
        report_.add(name, seconds.map([](double s) { return 1e3 * s; }), "ms");
        report_.add(name + ": share of the copy", seconds.map([&](double s) { return bytes / s / bandwidth_.copy; }), "");
        report_.add(name + ": share of the read", seconds.map([&](double s) { return bytes / s / bandwidth_.read; }), "");
    }

    // The first step makes the plans and copies, the second compares with them for the first time.
    static constexpr int warm_up = 4;

    const Machine& machine_;
    Report& report_;
    const Bandwidth bandwidth_;
};
