// Host time of the calls of a step over 1,000 tensors, with one earlier task: what training is held up by.
#pragma once

#include <chrono>

#include "instrument.hpp"

inline void measure_calls(const Machine& machine, Report& report) {
    using Clock = std::chrono::steady_clock;
    const auto microseconds = [](Clock::time_point from, Clock::time_point to) {
        return std::chrono::duration<double, std::micro>(to - from).count();
    };
    const Shape shape{machine.quick ? 50u : 1000u, machine.quick ? 32u : 256u};
    const cuda::Memory<unsigned short> gradients(shape.elements()), parameters(shape.elements());
    machine.fill(gradients.get(), gradients.count(), 1);
    machine.fill(parameters.get(), parameters.count(), 2);
    {
        Instrument instrument(machine, shape, gradients.get(), parameters.get(), 1);
        instrument.pass_a_task(true);
        Samples first, begin, ready, end, whole;
        const int warm_up = 5, runs = machine.quick ? 3 : 50;
        for (int run = -warm_up; run < runs; run++) {
            const auto t0 = Clock::now();
            instrument.step_begin();
            const auto t1 = Clock::now();
            instrument.gradients_ready();
            const auto t2 = Clock::now();
            instrument.step_end();
            const auto t3 = Clock::now();
            instrument.settle();
            if (run == -warm_up) first.values.push_back(microseconds(t0, t3));
            if (run < 0) continue;
            begin.values.push_back(microseconds(t0, t1));
            ready.values.push_back(microseconds(t1, t2));
            end.values.push_back(microseconds(t2, t3));
            whole.values.push_back(microseconds(t0, t3));
        }
        if (instrument.steps_measured() != static_cast<std::uint64_t>(warm_up + runs)) throw std::runtime_error("lost steps");
        report.add("host: first sampled step, 1000 tensors", first, "us");
        report.add("host: fgs_step_begin, sampled, 1000 tensors", begin, "us");
        report.add("host: fgs_gradients_ready, sampled, 1000 tensors", ready, "us");
        report.add("host: fgs_step_end, sampled, 1000 tensors", end, "us");
        report.add("host: sampled step, 1000 tensors", whole, "us");
    }
    Instrument instrument(machine, shape, gradients.get(), parameters.get(), std::uint64_t{1} << 40);
    instrument.begin_task();
    instrument.step_begin();  // number 0 is sampled
    instrument.gradients_ready();
    instrument.step_end();
    instrument.settle();
    Samples unsampled;
    const int steps = machine.quick ? 10 : 10000;
    for (int run = 0; run < 15; run++) {
        const auto start = Clock::now();
        for (int step = 0; step < steps; step++) {
            instrument.step_begin();
            instrument.gradients_ready();
            instrument.step_end();
        }
        unsampled.values.push_back(1e3 * microseconds(start, Clock::now()) / steps);
    }
    report.add("host: step that is not sampled, 1000 tensors", unsampled, "ns");
}
