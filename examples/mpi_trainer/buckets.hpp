// Gradients in buckets, as PyTorch's DistributedDataParallel has them: tensors in reverse order, since backward
// reaches the last ones first, in flat buffers of about one size, each tensor in one of them.
//
// With reduce-scatter each rank owns a part of every bucket: as equal parts as can be, cut anywhere.
#pragma once

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "../trainer/model.hpp"

namespace mpi_trainer {

using trainer::Buffer;
using trainer::Parameter;

// A tensor within a bucket.
struct Placed {
  const Parameter<float>* parameter;
  std::size_t offset;
};

struct Bucket {
  std::vector<Placed> tensors;
  std::size_t size = 0;
  Buffer<float> gradients;  // of all tensors; reduced in place
  Buffer<float> values;     // of all tensors; where parameters are gathered
  Buffer<float> shard;      // this rank's part of the reduced gradient
  std::vector<int> counts, offsets;  // of each rank's part

  // This rank's part: its first element and its end.
  std::size_t begin(int rank) const { return static_cast<std::size_t>(offsets[rank]); }
  std::size_t end(int rank) const { return begin(rank) + static_cast<std::size_t>(counts[rank]); }

  // Between the bucket and the model's own arrays. Gradients are multiplied on their way in.
  void gradients_from_model(float scale) {
    for (const Placed& placed : tensors)
      for (std::size_t i = 0; i < placed.parameter->size(); ++i)
        gradients[placed.offset + i] = placed.parameter->gradient[i] * scale;
  }
  void gradients_to_model() const {
    for (const auto& [p, offset] : tensors) std::copy_n(gradients.data() + offset, p->size(), p->gradient);
  }
  void values_from_model() {
    for (const auto& [p, offset] : tensors) std::copy_n(p->value, p->size(), values.data() + offset);
  }
  void values_to_model() const {
    for (const auto& [p, offset] : tensors) std::copy_n(values.data() + offset, p->size(), p->value);
  }
};

// The buckets of a model, for `ranks` ranks.
inline std::vector<Bucket> make_buckets(const std::vector<Parameter<float>>& parameters, std::size_t bytes, int ranks) {
  std::vector<Bucket> buckets;
  for (auto p = parameters.rbegin(); p != parameters.rend(); ++p) {
    if (buckets.empty() || (buckets.back().size + p->size()) * sizeof(float) > bytes) buckets.emplace_back();
    buckets.back().tensors.push_back({&*p, buckets.back().size});
    buckets.back().size += p->size();
  }
  for (Bucket& bucket : buckets) {
    bucket.gradients = Buffer<float>(bucket.size);
    bucket.values = Buffer<float>(bucket.size);
    for (int rank = 0; rank < ranks; ++rank) {
      const std::size_t first = bucket.size * rank / ranks;
      bucket.offsets.push_back(static_cast<int>(first));
      bucket.counts.push_back(static_cast<int>(bucket.size * (rank + 1) / ranks - first));
    }
    bucket.shard = Buffer<float>(static_cast<std::size_t>(*std::max_element(bucket.counts.begin(), bucket.counts.end())));
  }
  return buckets;
}

// What `rank` updates of a bucket, as tensors: pieces of those that its part touches. A piece of a matrix is a row,
// so that it is still no vector.
inline std::vector<Parameter<float>> pieces(Bucket& bucket, int rank) {
  std::vector<Parameter<float>> list;
  for (const Placed& placed : bucket.tensors) {
    const std::size_t first = std::max(bucket.begin(rank), placed.offset);
    const std::size_t last = std::min(bucket.end(rank), placed.offset + placed.parameter->size());
    if (first >= last) continue;
    Parameter<float> piece = *placed.parameter;
    const int length = static_cast<int>(last - first);
    piece.rows = piece.is_vector() ? length : 1;
    piece.cols = piece.is_vector() ? 1 : length;
    piece.value = bucket.values.data() + first;
    piece.gradient = bucket.shard.data() + (first - bucket.begin(rank));
    list.push_back(piece);
  }
  return list;
}

// The layout file of docs/preload.md.
inline void write_layout(const std::vector<Bucket>& buckets, const std::string& path) {
  using trainer::Role;
  const auto role = [](Role value) {
    switch (value) {
      case Role::token_embedding: return "embedding";
      case Role::position_embedding: return "position";
      case Role::norm: return "norm";
      case Role::qkv: return "qkv";
      case Role::attn_out: return "o";
      case Role::mlp_in: return "mlp_in";
      case Role::mlp_out: return "mlp_out";
      case Role::lm_head: return "lm_head";
    }
    return "other";
  };
  std::FILE* file = std::fopen(path.c_str(), "w");
  if (!file) throw std::runtime_error("The file '" + path + "' cannot be written.");
  std::fputs("{\"version\": 1, \"buckets\": [", file);
  for (const Bucket& bucket : buckets) {
    std::fprintf(file, "%s\n {\"numel\": %zu, \"tensors\": [", &bucket == buckets.data() ? "" : ",", bucket.size);
    for (const Placed& placed : bucket.tensors) {
      const Parameter<float>& p = *placed.parameter;
      std::fprintf(file, "%s\n  {\"name\": \"%s\", \"offset\": %zu, \"numel\": %zu, \"shape\": [%d, %d], \"role\": \"%s\"",
                   &placed == bucket.tensors.data() ? "" : ",", p.name.c_str(), placed.offset, p.size(), p.rows, p.cols,
                   role(p.role));
      if (p.layer >= 0) std::fprintf(file, ", \"layer\": %d", p.layer);
      // The bias of the output projection belongs to no head.
      if (p.heads > 0 && !(p.role == Role::attn_out && p.is_vector())) std::fprintf(file, ", \"heads\": %d", p.heads);
      std::fputs("}", file);
    }
    std::fputs("]}", file);
  }
  std::fputs("]}\n", file);
  if (std::fclose(file) != 0) throw std::runtime_error("The file '" + path + "' could not be written in full.");
}

}  // namespace mpi_trainer
