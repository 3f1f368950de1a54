// A scope over bf16 tensors in device memory, for the bench. A refused call ends the bench: its figures would be wrong.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "forgetscope.h"
#include "machine.hpp"

// What is in a model of `tensors` square matrices, as far as the library sees it.
struct Shape {
    std::uint64_t tensors, width;
    std::uint64_t elements() const { return tensors * width * width; }
};

class Instrument {
public:
    // `gradients` and `parameters`: the matrices one after another, or null. `every`: as in fgs_options. Of each seven
    // matrices three are attention projections of rows of heads, 128 rows each, and one of columns.
    Instrument(const Machine& machine, Shape shape, unsigned short* gradients, unsigned short* parameters,
               std::uint64_t every)
        : machine_(machine), ring_("/dev/shm/fgs-bench-" + std::to_string(getpid())) {
        unlink(ring_.c_str());
        fgs_options options = FGS_OPTIONS_INIT;
        options.run = "bench";
        options.ring_path = ring_.c_str();
        options.every = every;
        options.budget_bytes = 64 * shape.elements() + (1 << 20);  // everything exact
        check(fgs_open(&options, &scope_), "fgs_open");
        const std::uint32_t roles[] = {FGS_ROLE_QUERY,  FGS_ROLE_KEY,      FGS_ROLE_VALUE,  FGS_ROLE_OUTPUT,
                                       FGS_ROLE_MLP_IN, FGS_ROLE_MLP_GATE, FGS_ROLE_MLP_OUT};
        for (std::uint64_t i = 0; i < shape.tensors; i++) {
            const std::string name = "layers." + std::to_string(i / 7) + "." + std::to_string(i % 7);
            fgs_tensor spec = FGS_TENSOR_INIT;
            spec.name = name.c_str();
            spec.numel = shape.width * shape.width;
            spec.role = roles[i % 7];
            spec.layer = static_cast<std::int32_t>(i / 7);
            spec.head_count = i % 7 < 4 && shape.width % 128 == 0 ? static_cast<std::uint32_t>(shape.width / 128) : 0;
            std::uint32_t id = 0;
            check(fgs_register(scope_, &spec, &id), "fgs_register");
            std::int64_t extents[] = {static_cast<std::int64_t>(shape.width), static_cast<std::int64_t>(shape.width)};
            fgs_dltensor tensor{};
            tensor.device = {2, 0};      // CUDA
            tensor.dtype = {4, 16, 1};   // bfloat16
            tensor.ndim = 2;
            tensor.shape = extents;
            tensor.byte_offset = 2 * i * spec.numel;
            if ((tensor.data = gradients)) check(fgs_bind(scope_, id, FGS_GRAD, &tensor), "fgs_bind");
            if ((tensor.data = parameters)) check(fgs_bind(scope_, id, FGS_PARAM, &tensor), "fgs_bind");
        }
    }
    Instrument(const Instrument&) = delete;
    Instrument& operator=(const Instrument&) = delete;
    ~Instrument() {
        fgs_close(scope_);
        unlink(ring_.c_str());
    }

    // A task is over, with a reference of one batch if gradients are bound, and a snapshot if parameters are; another
    // has begun.
    void pass_a_task(bool with_reference) {
        check(fgs_task_begin(scope_, "earlier"), "fgs_task_begin");
        if (with_reference) check(fgs_reference_add(scope_, "earlier", 1, 1.0, stream()), "fgs_reference_add");
        check(fgs_snapshot(scope_, nullptr, stream()), "fgs_snapshot");
        check(fgs_task_end(scope_), "fgs_task_end");
        begin_task();
    }
    void begin_task() { check(fgs_task_begin(scope_, "now"), "fgs_task_begin"); }

    void step_begin() { check(fgs_step_begin(scope_, number_++), "fgs_step_begin"); }
    void gradients_ready() { check(fgs_gradients_ready(scope_, 1.0, 0, stream()), "fgs_gradients_ready"); }
    void step_end() { check(fgs_step_end(scope_, 1, stream()), "fgs_step_end"); }
    // Waits for the evaluation, so that no sampled step is left out.
    void settle() {
        machine_.stream.wait();
        check(fgs_flush(scope_), "fgs_flush");
    }

    // Records of steps so far: a pass that was lost must not look fast.
    std::uint64_t steps_measured() {
        settle();
        fgs_reader* reader = nullptr;
        check(fgs_reader_open(ring_.c_str(), &reader), "fgs_reader_open");
        std::uint64_t steps = 0, lost = 0;
        for (fgs_record record; fgs_reader_next(reader, &record, &lost) == FGS_OK;) {
            const char* kind = "";
            fgs_reader_name(reader, FGS_NAME_KIND, record.kind, &kind);
            steps += std::string(kind) == "step";
            if (std::string(kind) == "fault") throw std::runtime_error("the instrument could not measure a step");
        }
        fgs_reader_close(reader);
        return steps;
    }

private:
    static void check(fgs_status status, const char* call) {
        if (status < 0) throw std::runtime_error(std::string(call) + ": " + fgs_last_error());
    }
    void* stream() const { return machine_.stream.handle(); }

    const Machine& machine_;
    const std::string ring_;
    fgs_scope* scope_ = nullptr;
    std::uint64_t number_ = 0;
};
