// A task of the example: a text on the device, and what is drawn from it for training, references and evaluation.
//
// Which batch comes next is counted on the device, so that a graph's replays take one batch after another and give the
// same losses as eager steps. Cost: the text once, in device memory.
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "driver.hpp"
#include "step.h"

// Batches for one purpose: the counter and the losses are on the device.
class Sampler {
public:
    // `loss_count`: batches whose losses are kept.
    Sampler(const cuda::Stream& stream, const unsigned char* text, std::uint64_t length, std::uint64_t seed,
            std::size_t loss_count)
        : stream_(stream), text_(text), beginnings_(length - CONTEXT), seed_(seed), taken_(1), losses_(loss_count),
          host_(loss_count) {
        restart();
    }

    // The same batches again.
    void restart() const { stream_.zero(taken_); }

    Batches batches() const { return {text_, beginnings_, seed_, taken_.get(), losses_.get(), losses_.count()}; }

    // Losses of the first `loss_count` batches since the restart. Waits for the stream.
    std::vector<float> losses() const {
        stream_.download(host_.get(), losses_);
        stream_.wait();
        return {host_.get(), host_.get() + host_.count()};
    }

private:
    const cuda::Stream& stream_;
    const unsigned char* text_;
    std::uint64_t beginnings_, seed_;
    cuda::Memory<unsigned long long> taken_;
    cuda::Memory<float> losses_;
    cuda::Pinned<float> host_;
};

class Task {
public:
    struct Counts {
        std::size_t steps, reference_batches, evaluation_batches;
    };

    Task(const cuda::Stream& stream, std::string name, const std::string& path, std::uint64_t seed, Counts counts)
        : Task(stream, std::move(name), read(path), seed, counts) {}

    const std::string& name() const { return name_; }
    const Sampler& training() const { return training_; }
    const Sampler& reference() const { return reference_; }
    // Of bytes that are not trained on: the last tenth.
    const Sampler& evaluation() const { return evaluation_; }

private:
    Task(const cuda::Stream& stream, std::string name, const std::vector<unsigned char>& bytes, std::uint64_t seed,
         Counts counts)
        : name_(std::move(name)), text_(bytes.size()), trained_(bytes.size() / 10 * 9),
          training_(stream, text_.get(), trained_, 3 * seed, counts.steps),
          reference_(stream, text_.get(), trained_, 3 * seed + 1, counts.reference_batches),
          evaluation_(stream, text_.get() + trained_, bytes.size() - trained_, 3 * seed + 2, counts.evaluation_batches) {
        stream.upload(text_, bytes.data());
        stream.wait();  // the bytes are the caller's
    }

    static std::vector<unsigned char> read(const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        std::vector<unsigned char> bytes{std::istreambuf_iterator<char>(file), {}};
        if (bytes.size() < 100 * CONTEXT) throw std::runtime_error(path + ": cannot be read, or is too short");
        return bytes;
    }

    std::string name_;
    cuda::Memory<unsigned char> text_;
    std::uint64_t trained_;
    Sampler training_, reference_, evaluation_;
};
