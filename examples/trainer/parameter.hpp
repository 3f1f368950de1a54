// What the model consists of: a list of named tensors, each with its gradient.
#pragma once

#include <cstddef>
#include <string>

namespace trainer {

enum class Role {
  token_embedding,     // [256, width]
  position_embedding,  // [context, width]
  norm,                // [width], gain or shift of a LayerNorm
  qkv,                 // [3 width, width], rows: all heads of Q, then of K, then of V
  attn_out,            // [width, width], columns grouped by head
  mlp_in,              // [4 width, width]
  mlp_out,             // [width, 4 width]
  lm_head,             // [256, width]
};

template <class Scalar>
struct Parameter {
  std::string name;  // "blocks.0.attn.qkv.weight"
  Role role;
  int rows, cols;           // row-major, as PyTorch's Linear; a vector has cols == 1
  int layer;                // -1 for embeddings, final norm and head
  int heads;                // attention heads for qkv and attn_out, otherwise 0
  Scalar* value = nullptr;  // rows * cols, in the model's arena of values
  Scalar* gradient = nullptr;

  bool is_vector() const { return cols == 1; }
  std::size_t size() const { return static_cast<std::size_t>(rows) * cols; }
};

}  // namespace trainer
