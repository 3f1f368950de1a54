// The network on the device: its memory, and the launches of a step in the order of one stream.
//
// Nothing here knows of forgetscope. Cost: 28,992 parameters, gradients and momenta; ten launches a step.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "driver.hpp"
#include "step.h"
#include "task.hpp"

// PTX of step.cu, compiled by `make kernels`; the Makefile makes a string of it.
inline const char step_ptx[] =
#include "step.ptx.inc"
    ;

class Model {
public:
    Model(const cuda::Stream& stream, std::uint64_t seed, float learning_rate)
        : stream_(stream), kernels_(step_ptx), learning_rate_(learning_rate) {
        auto draw = [generator = std::mt19937_64(seed)](float scale) mutable {
            // A mantissa's worth of bits: the same numbers with every standard library.
            return scale * (static_cast<float>(generator() >> 40) * 0x1p-23f - 1.0f);
        };
        std::vector<float> values(PARAMETERS, 0.0f);  // biases stay zero
        for (unsigned i = EMBEDDING; i < INPUT_WEIGHT; i++) values[i] = draw(1.0f);
        for (unsigned i = INPUT_WEIGHT; i < INPUT_BIAS; i++) values[i] = draw(std::sqrt(6.0f / INPUT));
        for (unsigned i = OUTPUT_WEIGHT; i < OUTPUT_BIAS; i++) values[i] = draw(std::sqrt(1.0f / HIDDEN));
        stream.upload(parameters_, values.data());
        stream.zero(momentum_);
        stream.zero(gradients_);
        stream.wait();
    }

    const cuda::Memory<float>& parameters() const { return parameters_; }
    const cuda::Memory<float>& gradients() const { return gradients_; }
    // [BATCH, HIDDEN], of the last forward pass.
    const cuda::Memory<float>& hidden() const { return hidden_; }

    // The next batch of the sampler, up to its loss.
    void forward(const Sampler& sampler) const {
        const StepParams p = params(sampler);
        stream_.launch(choose_, 1, BATCH, p);
        stream_.launch(forward_hidden_, BATCH * HIDDEN / 256, 256, p);
        stream_.launch(loss_, BATCH, BYTES, p);
        stream_.launch(record_, 1, 1, p);
    }

    // Gradients of the batch that went forward.
    void backward(const Sampler& sampler) const {
        const StepParams p = params(sampler);
        stream_.launch(output_gradient_, BYTES * HIDDEN / 256, 256, p);
        stream_.launch(hidden_gradient_of_, BATCH * HIDDEN / 256, 256, p);
        stream_.launch(weight_gradient_, HIDDEN * INPUT / 256, 256, p);
        stream_.launch(input_gradient_of_, BATCH * INPUT / 256, 256, p);
        stream_.launch(embedding_gradient_, BYTES * WIDTH / 256, 256, p);
    }

    void update(const Sampler& sampler) const { stream_.launch(update_, (PARAMETERS + 255) / 256, 256, params(sampler)); }

private:
    StepParams params(const Sampler& sampler) const {
        return {sampler.batches(),       beginnings_.get(),     parameters_.get(),     gradients_.get(),
                momentum_.get(),         hidden_.get(),         hidden_gradient_.get(), logit_gradient_.get(),
                input_gradient_.get(),   example_losses_.get(), learning_rate_,         0.9f};
    }

    const cuda::Stream& stream_;
    cuda::Kernels kernels_;
    const float learning_rate_;

    cuda::Memory<float> parameters_{PARAMETERS}, gradients_{PARAMETERS}, momentum_{PARAMETERS};
    cuda::Memory<unsigned long long> beginnings_{BATCH};
    cuda::Memory<float> hidden_{BATCH * HIDDEN}, hidden_gradient_{BATCH * HIDDEN}, logit_gradient_{BATCH * BYTES};
    cuda::Memory<float> input_gradient_{BATCH * INPUT}, example_losses_{BATCH};

    const cuda::Function choose_ = kernels_.find("step_choose"), forward_hidden_ = kernels_.find("step_hidden"),
                         loss_ = kernels_.find("step_loss"), record_ = kernels_.find("step_record"),
                         output_gradient_ = kernels_.find("step_output_gradient"),
                         hidden_gradient_of_ = kernels_.find("step_hidden_gradient"),
                         weight_gradient_ = kernels_.find("step_weight_gradient"),
                         input_gradient_of_ = kernels_.find("step_input_gradient"),
                         embedding_gradient_ = kernels_.find("step_embedding_gradient"),
                         update_ = kernels_.find("step_update");
};
