// The model: a decoder-only transformer on bytes.
//
//   x = token_embedding[byte] + position_embedding[place]
//   for each block:  x += attention(norm1(x));  x += mlp(norm2(x))
//   logits = lm_head(final_norm(x))
//
// Parameters are a list of named tensors over two arenas, one of values and one
// of gradients; activations of the last forward pass have an arena of their own.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "attention.hpp"
#include "data.hpp"
#include "parallel.hpp"
#include "parameter.hpp"

namespace trainer {

inline constexpr int vocabulary = 256;

struct ModelShape {
  int layers = 4, heads = 4, width = 128;
  int context = 128;   // the longest sequence, and the size of the position table
  int sequences = 16;  // the largest batch; decides the size of the activations
};

struct Score {
  double loss = 0;      // nats per byte
  double accuracy = 0;  // share of bytes that were the model's first choice
};

template <class Scalar>
class Model {
 public:
  // Weights start as in GPT-2: normal with deviation 0.02, smaller by
  // sqrt(2 layers) where a block adds to the residual stream; biases zero.
  Model(const ModelShape& shape, std::uint64_t seed);

  const ModelShape& shape() const { return shape_; }
  const std::vector<Parameter<Scalar>>& parameters() const { return parameters_; }
  std::size_t parameter_count() const;

  void zero_gradients() { gradients_.zero(); }

  // All values of all parameters, to be kept and put back.
  Buffer<Scalar> copy_values() const { return values_; }
  void set_values(const Buffer<Scalar>& values) {
    std::memcpy(values_.data(), values.data(), values_.size() * sizeof(Scalar));
  }
  // Where parameter `p` lies in such a copy.
  const Scalar* in(const Buffer<Scalar>& values, const Parameter<Scalar>& p) const {
    return values.data() + (p.value - values_.data());
  }

  // The average loss over the batch. Keeps what backward() needs.
  Score forward(const Batch& batch);

  // Adds `scale` times the gradient of that average loss. At most once after
  // each forward(), with the same batch: it uses up the activations.
  void backward(const Batch& batch, Scalar scale);

  // What the last forward pass left in a block, until the next pass.
  struct BlockActivations {
    Scalar* out;            // [B, T, C]         residual stream after the block
    Scalar* probabilities;  // [B, heads, T, T]  attention
    Scalar* attended;       // [B, T, C]         heads side by side, before attn_out mixes them
  };
  BlockActivations activations(int block) const {
    const Block& b = blocks_[block];
    return {b.out, b.probabilities, b.attended};
  }

  // Multiply-adds counted as two, of forward and backward, the matrix products only.
  double flops_per_token() const;

 private:
  struct Affine {  // a Linear's weight and bias, or a norm's gain and shift
    Parameter<Scalar>*weight, *bias;
  };
  struct Normed {
    Scalar *out, *mean, *inverse_deviation;
  };
  // One block's parameters, and its activations with their shapes.
  struct Block {
    Affine norm1, qkv, attn_out, norm2, mlp_in, mlp_out;
    Normed normed1, normed2;  // [N, C]
    Scalar* projected;        // [N, 3C]
    Scalar* probabilities;    // [B, heads, T, T]
    Scalar* attended;         // [N, C]
    Scalar* middle;           // [N, C]   residual stream between attention and MLP
    Scalar* hidden;           // [N, 4C]  before GELU
    Scalar* activated;        // [N, 4C]  after GELU
    Scalar* out;              // [N, C]   residual stream after the block
  };

  void list_parameters();
  void place_parameters();
  void initialize(std::uint64_t seed);
  void place_activations();

  void block_forward(const Block& block, const Scalar* x, const AttentionShape& attention);
  void block_backward(const Block& block, const Scalar* x, const AttentionShape& attention);

  ModelShape shape_;
  std::vector<Parameter<Scalar>> parameters_;
  Buffer<Scalar> values_, gradients_, activations_;

  // Into parameters_ and activations_, none of which is resized after construction.
  Parameter<Scalar>*token_embedding_, *position_embedding_, *lm_head_;
  Affine final_norm_;
  std::vector<Block> blocks_;
  Normed final_;
  Scalar* embedded_;      // [N, C]
  Scalar* logits_;        // [N, 256]
  Scalar* d_stream_;      // [N, C]   gradient of the residual stream
  Scalar* d_branch_;      // [N, C]   gradient of a norm's output
  Scalar* d_wide_;        // [N, 4C]  gradient inside a branch
  Scalar* losses_;        // [N]
  std::vector<std::uint8_t> correct_;
};

extern template class Model<float>;
extern template class Model<double>;

}  // namespace trainer
