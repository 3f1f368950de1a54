// A task's text: bytes, split into a training and a held-out part.
//
// The file is cut into stripes of about 20 KB, and the last tenth of each stripe
// is held out. Concatenated files change character along the way (one licence,
// one header, one module after the other); the last tenth of the whole would be
// another distribution, and its loss would mix forgetting with mere difference.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "random.hpp"

namespace trainer {

// Windows of text, and the same windows one byte later. Both [sequences, context].
struct Batch {
  int sequences = 0, context = 0;
  std::vector<std::uint8_t> inputs, targets;

  int tokens() const { return sequences * context; }
};

class Corpus {
 public:
  Corpus(std::string name, const std::string& path, int context)
      : Corpus(std::move(name), path, read(path), context) {}

  // `path` only serves the error message.
  Corpus(std::string name, const std::string& path, std::vector<std::uint8_t> bytes, int context)
      : name_(std::move(name)), bytes_(std::move(bytes)), context_(context) {
    const std::size_t window = static_cast<std::size_t>(context) + 1;
    if (bytes_.size() < held_out_share * window)
      throw std::runtime_error("'" + path + "' has " + std::to_string(bytes_.size()) +
                               " bytes; with a context of " + std::to_string(context) +
                               " a task needs " + std::to_string(held_out_share * window) + ".");
    const std::size_t stripe = held_out_share * std::max<std::size_t>(window, 2048);
    stripes_ = std::max<std::size_t>(1, bytes_.size() / stripe);
    for (std::size_t i = 0; i < stripes_; ++i)
      for (std::size_t at = held_out_begin(i); at + window <= stripe_begin(i + 1); at += context)
        held_out_windows_.push_back(at);
  }

  const std::string& name() const { return name_; }
  std::size_t size() const { return bytes_.size(); }

  // Windows drawn uniformly from the training part.
  Batch training_batch(int sequences, Random random) const {
    std::vector<std::size_t> starts;
    for (int i = 0; i < sequences; ++i) {
      const std::size_t stripe = random.below(stripes_), begin = stripe_begin(stripe);
      starts.push_back(begin + random.below(held_out_begin(stripe) - begin - context_));
    }
    return windows(starts, 0, starts.size());
  }

  // `count` batches of held-out text that does not overlap, evenly spread over the
  // file; fewer where the text is too short. The same ones at every call.
  std::vector<Batch> held_out_batches(int count, int sequences) const {
    const std::size_t available = held_out_windows_.size();
    const std::size_t wanted =
        std::min<std::size_t>(available, static_cast<std::size_t>(count) * sequences);
    std::vector<std::size_t> starts;
    for (std::size_t i = 0; i < wanted; ++i)
      starts.push_back(held_out_windows_[i * available / wanted]);
    std::vector<Batch> batches;
    for (std::size_t i = 0; i < wanted; i += sequences)
      batches.push_back(windows(starts, i, std::min<std::size_t>(wanted, i + sequences)));
    return batches;
  }

 private:
  static constexpr std::size_t held_out_share = 10;  // one byte in so many

  static std::vector<std::uint8_t> read(const std::string& path) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                               std::fclose);
    std::vector<std::uint8_t> bytes;
    std::vector<std::uint8_t> piece(1 << 16);
    if (file)
      while (const std::size_t got = std::fread(piece.data(), 1, piece.size(), file.get()))
        bytes.insert(bytes.end(), piece.begin(), piece.begin() + got);
    if (!file || std::ferror(file.get()))
      throw std::runtime_error("The text '" + path + "' cannot be read.");
    return bytes;
  }

  std::size_t stripe_begin(std::size_t i) const { return bytes_.size() * i / stripes_; }
  std::size_t held_out_begin(std::size_t i) const {
    const std::size_t begin = stripe_begin(i), end = stripe_begin(i + 1);
    return end - std::max<std::size_t>((end - begin) / held_out_share, context_ + 1);
  }

  Batch windows(const std::vector<std::size_t>& starts, std::size_t first,
                std::size_t last) const {
    Batch batch;
    batch.sequences = static_cast<int>(last - first);
    batch.context = context_;
    for (std::size_t i = first; i < last; ++i) {
      const auto text = bytes_.begin() + static_cast<std::ptrdiff_t>(starts[i]);
      batch.inputs.insert(batch.inputs.end(), text, text + context_);
      batch.targets.insert(batch.targets.end(), text + 1, text + 1 + context_);
    }
    return batch;
  }

  std::string name_;
  std::vector<std::uint8_t> bytes_;
  int context_;
  std::size_t stripes_ = 0;
  std::vector<std::size_t> held_out_windows_;
};

}  // namespace trainer
