// The instrument on the model: raw device pointers and the trainer's stream, and nothing else of CUDA's.
//
// With `Place::host` the same values are copied to pinned host memory and measured there: what a trainer had to do before
// device memory was read where it lies, kept to compare the two. Cost of that: two copies of everything and three waits a
// step.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "forgetscope.h"
#include "model.hpp"

enum class Place { device, host };

class Instrument {
public:
    Instrument(const cuda::Stream& stream, const Model& model, Place place, const std::string& ring)
        : stream_(stream), model_(model), place_(place) {
        fgs_options options = FGS_OPTIONS_INIT;
        options.run = "cuda_step";
        if (!ring.empty()) options.ring_path = ring.c_str();
        say(fgs_open(&options, &scope_));
        if (place == Place::host) copies_ = std::make_unique<Copies>();
        float* parameters = copies_ ? copies_->parameters.get() : model.parameters().get();
        float* gradients = copies_ ? copies_->gradients.get() : model.gradients().get();
        add("embedding", FGS_ROLE_EMBEDDING, EMBEDDING, BYTES, WIDTH, parameters, gradients);
        add("hidden.weight", FGS_ROLE_MLP_IN, INPUT_WEIGHT, HIDDEN, INPUT, parameters, gradients);
        add("hidden.bias", FGS_ROLE_BIAS, INPUT_BIAS, 1, HIDDEN, parameters, gradients);
        add("output.weight", FGS_ROLE_LM_HEAD, OUTPUT_WEIGHT, BYTES, HIDDEN, parameters, gradients);
        add("output.bias", FGS_ROLE_BIAS, OUTPUT_BIAS, 1, BYTES, parameters, gradients);
    }
    Instrument(const Instrument&) = delete;
    Instrument& operator=(const Instrument&) = delete;
    ~Instrument() { say(fgs_close(scope_)); }

    void task_begin(const Task& task) { say(fgs_task_begin(scope_, task.name().c_str())); }

    // The snapshot is asked for by itself because fgs_task_end has no stream.
    void task_end() {
        copy_parameters();
        say(fgs_snapshot(scope_, nullptr, stream()));
        say(fgs_task_end(scope_));
    }

    // These three may be captured into a graph: every replay is then a step.
    void step_begin(std::uint64_t number) { say(fgs_step_begin(scope_, number)); }
    void gradients_ready() {
        copy_gradients();
        copy_parameters();
        say(fgs_gradients_ready(scope_, 1.0, 0, stream()));
    }
    void step_end() {
        copy_parameters();
        say(fgs_step_end(scope_, 1, stream()));
    }

    // The gradients are those of a batch of the task's reference.
    void reference_add(const Task& task) {
        copy_gradients();
        say(fgs_reference_add(scope_, task.name().c_str(), BATCH, 1.0, stream()));
    }

    void probe_begin(const Task& task) {
        fgs_probe probe = FGS_PROBE_INIT;
        probe.task = task.name().c_str();
        say(fgs_probe_begin(scope_, &probe));
    }
    // The hidden layer after the forward pass of one batch of the probe.
    void probe_hidden() {
        std::int64_t shape[] = {BATCH, HIDDEN};
        float* rows = model_.hidden().get();
        if (copies_) {
            stream_.download(copies_->hidden.get(), model_.hidden());
            stream_.wait();
            rows = copies_->hidden.get();
        }
        const fgs_dltensor hidden = tensor(rows, shape);
        say(fgs_probe_batch(scope_, BATCH, 1, nullptr, 0));
        say(fgs_probe_hidden(scope_, 0, &hidden, stream()));
    }
    void probe_end() { say(fgs_probe_end(scope_)); }

    void record_loss(const Task& task, double loss) { say(fgs_record_loss(scope_, task.name().c_str(), loss)); }

    // Everything so far is in the ring.
    void flush() { say(fgs_flush(scope_)); }

private:
    struct Copies {
        cuda::Pinned<float> parameters{PARAMETERS}, gradients{PARAMETERS}, hidden{BATCH * HIDDEN};
    };

    // Training goes on whatever the instrument says.
    static void say(fgs_status status) {
        if (status < 0) std::fprintf(stderr, "forgetscope: %s\n", fgs_last_error());
    }

    fgs_dltensor tensor(float* data, std::int64_t (&shape)[2]) const {
        fgs_dltensor tensor{};
        tensor.data = data;
        tensor.device = {place_ == Place::host ? 3 : 2, 0};  // DLPack: 3 pinned host memory, 2 CUDA
        tensor.ndim = 2;
        tensor.dtype = {2, 32, 1};  // float32
        tensor.shape = shape;
        return tensor;
    }

    void add(const char* name, std::uint32_t role, unsigned first, unsigned rows, unsigned columns, float* parameters,
             float* gradients) {
        fgs_tensor spec = FGS_TENSOR_INIT;
        spec.name = name;
        spec.role = role;
        spec.layer = 0;
        spec.numel = std::uint64_t{rows} * columns;
        std::uint32_t id = 0;
        say(fgs_register(scope_, &spec, &id));
        std::int64_t shape[] = {rows, columns};
        const fgs_dltensor parameter = tensor(parameters + first, shape), gradient = tensor(gradients + first, shape);
        say(fgs_bind(scope_, id, FGS_PARAM, &parameter));
        say(fgs_bind(scope_, id, FGS_GRAD, &gradient));
    }

    void* stream() const { return place_ == Place::host ? nullptr : stream_.handle(); }

    void copy_parameters() const {
        if (!copies_) return;
        stream_.download(copies_->parameters.get(), model_.parameters());
        stream_.wait();
    }
    void copy_gradients() const {
        if (!copies_) return;
        stream_.download(copies_->gradients.get(), model_.gradients());
        stream_.wait();
    }

    const cuda::Stream& stream_;
    const Model& model_;
    const Place place_;
    std::unique_ptr<Copies> copies_;
    fgs_scope* scope_ = nullptr;
};
