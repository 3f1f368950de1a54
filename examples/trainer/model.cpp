#include "model.hpp"

#include <stdexcept>

#include "layers.hpp"

namespace trainer {

template <class Scalar>
Model<Scalar>::Model(const ModelShape& shape, std::uint64_t seed) : shape_(shape) {
  if (shape.width % shape.heads != 0)
    throw std::runtime_error("The width must be a multiple of the number of heads.");
  list_parameters();
  place_parameters();
  initialize(seed);
  place_activations();
}

// ---- Layout -------------------------------------------------------------------

template <class Scalar>
void Model<Scalar>::list_parameters() {
  const int width = shape_.width;
  const auto add = [&](const std::string& name, Role role, int rows, int cols, int layer) {
    const bool attention = role == Role::qkv || role == Role::attn_out;
    parameters_.push_back({name, role, rows, cols, layer, attention ? shape_.heads : 0});
  };
  const auto add_affine = [&](const std::string& name, Role role, int rows, int cols, int layer) {
    add(name + ".weight", role, rows, cols, layer);
    add(name + ".bias", role, rows, 1, layer);
  };
  add("token_embedding.weight", Role::token_embedding, vocabulary, width, -1);
  add("position_embedding.weight", Role::position_embedding, shape_.context, width, -1);
  for (int i = 0; i < shape_.layers; ++i) {
    const std::string block = "blocks." + std::to_string(i);
    add_affine(block + ".norm1", Role::norm, width, 1, i);
    add_affine(block + ".attn.qkv", Role::qkv, 3 * width, width, i);
    add_affine(block + ".attn.out", Role::attn_out, width, width, i);
    add_affine(block + ".norm2", Role::norm, width, 1, i);
    add_affine(block + ".mlp.in", Role::mlp_in, 4 * width, width, i);
    add_affine(block + ".mlp.out", Role::mlp_out, width, 4 * width, i);
  }
  add_affine("final_norm", Role::norm, width, 1, -1);
  add("lm_head.weight", Role::lm_head, vocabulary, width, -1);
}

template <class Scalar>
void Model<Scalar>::place_parameters() {
  std::size_t total = 0;
  for (const auto& p : parameters_) total += Buffer<Scalar>::padded(p.size());
  values_ = Buffer<Scalar>(total);
  gradients_ = Buffer<Scalar>(total);
  std::size_t offset = 0;
  for (auto& p : parameters_) {
    p.value = values_.data() + offset;
    p.gradient = gradients_.data() + offset;
    offset += Buffer<Scalar>::padded(p.size());
  }

  Parameter<Scalar>* next = parameters_.data();  // in the order of list_parameters()
  const auto take_affine = [&next] { return next += 2, Affine{next - 2, next - 1}; };
  token_embedding_ = next++;
  position_embedding_ = next++;
  blocks_.resize(shape_.layers);
  for (Block& block : blocks_)
    for (Affine* affine : {&block.norm1, &block.qkv, &block.attn_out, &block.norm2, &block.mlp_in,
                           &block.mlp_out})
      *affine = take_affine();
  final_norm_ = take_affine();
  lm_head_ = next++;
}

template <class Scalar>
void Model<Scalar>::initialize(std::uint64_t seed) {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter<Scalar>& p = parameters_[i];
    const bool gain = p.role == Role::norm && p.name.find(".weight") != std::string::npos;
    const bool adds_to_stream = p.role == Role::attn_out || p.role == Role::mlp_out;
    const double deviation = adds_to_stream ? 0.02 / std::sqrt(2.0 * shape_.layers) : 0.02;
    Random random = Random::keyed(seed, i);
    for (std::size_t j = 0; j < p.size(); ++j)
      p.value[j] = p.is_vector() ? Scalar(gain) : Scalar(deviation * random.normal());
  }
}

template <class Scalar>
void Model<Scalar>::place_activations() {
  const std::size_t tokens = static_cast<std::size_t>(shape_.sequences) * shape_.context;
  const std::size_t width = shape_.width;
  // Goes over the layout twice: first to add up sizes, then to give out places.
  std::size_t offset = 0;
  const auto take = [&](std::size_t columns) {
    Scalar* place = activations_.data() ? activations_.data() + offset : nullptr;
    offset += Buffer<Scalar>::padded(tokens * columns);
    return place;
  };
  const auto take_normed = [&] { return Normed{take(width), take(1), take(1)}; };
  const auto lay_out = [&] {
    offset = 0;
    embedded_ = take(width);
    for (Block& block : blocks_) {
      block.normed1 = take_normed();
      block.projected = take(3 * width);
      block.probabilities = take(static_cast<std::size_t>(shape_.heads) * shape_.context);
      block.attended = take(width);
      block.middle = take(width);
      block.normed2 = take_normed();
      block.hidden = take(4 * width);
      block.activated = take(4 * width);
      block.out = take(width);
    }
    final_ = take_normed();
    logits_ = take(vocabulary);
    d_stream_ = take(width);
    d_branch_ = take(width);
    d_wide_ = take(4 * width);
    losses_ = take(1);
  };
  lay_out();
  activations_ = Buffer<Scalar>(offset);
  lay_out();
  correct_.resize(tokens);
}

template <class Scalar>
std::size_t Model<Scalar>::parameter_count() const {
  std::size_t count = 0;
  for (const auto& p : parameters_) count += p.size();
  return count;
}

template <class Scalar>
double Model<Scalar>::flops_per_token() const {
  double weights = 0;
  for (const auto& p : parameters_)
    if (!p.is_vector() && p.role != Role::token_embedding && p.role != Role::position_embedding)
      weights += static_cast<double>(p.size());
  // Each weight is one multiply-add forward and two backward. Attention has two
  // products forward and four backward, of context * width multiply-adds a token.
  return 6.0 * weights + 12.0 * shape_.layers * shape_.context * shape_.width;
}

// ---- Passes -------------------------------------------------------------------

template <class Scalar>
void Model<Scalar>::block_forward(const Block& block, const Scalar* x,
                                  const AttentionShape& attention) {
  const int count = attention.sequences * attention.context;
  norm_forward(block.normed1.out, block.normed1.mean, block.normed1.inverse_deviation, x,
               *block.norm1.weight, *block.norm1.bias, count);
  linear_forward<Scalar>(block.projected, block.normed1.out, *block.qkv.weight, block.qkv.bias,
                         nullptr, count);
  attention_forward(block.attended, block.probabilities, block.projected, attention);
  linear_forward(block.middle, block.attended, *block.attn_out.weight, block.attn_out.bias, x,
                 count);

  norm_forward(block.normed2.out, block.normed2.mean, block.normed2.inverse_deviation,
               block.middle, *block.norm2.weight, *block.norm2.bias, count);
  linear_forward<Scalar>(block.hidden, block.normed2.out, *block.mlp_in.weight, block.mlp_in.bias,
                         nullptr, count);
  gelu_forward(block.activated, block.hidden, count, 4 * shape_.width);
  linear_forward<Scalar>(block.out, block.activated, *block.mlp_out.weight, block.mlp_out.bias,
                         block.middle, count);
}

// d_stream_ holds the gradient of block.out on entry and that of x on return: a
// residual connection hands it on as it is, and each branch adds its own part.
template <class Scalar>
void Model<Scalar>::block_backward(const Block& block, const Scalar* x,
                                   const AttentionShape& attention) {
  const int count = attention.sequences * attention.context;
  linear_backward<Scalar>(d_wide_, d_stream_, block.activated, *block.mlp_out.weight,
                          block.mlp_out.bias, count);
  gelu_backward(d_wide_, block.hidden, count, 4 * shape_.width);
  linear_backward<Scalar>(d_branch_, d_wide_, block.normed2.out, *block.mlp_in.weight,
                          block.mlp_in.bias, count);
  norm_backward_add(d_stream_, d_branch_, block.middle, block.normed2.mean,
                    block.normed2.inverse_deviation, *block.norm2.weight, *block.norm2.bias,
                    count);

  linear_backward<Scalar>(d_branch_, d_stream_, block.attended, *block.attn_out.weight,
                          block.attn_out.bias, count);
  attention_backward(d_wide_, d_branch_, block.probabilities, block.projected, attention);
  linear_backward<Scalar>(d_branch_, d_wide_, block.normed1.out, *block.qkv.weight,
                          block.qkv.bias, count);
  norm_backward_add(d_stream_, d_branch_, x, block.normed1.mean, block.normed1.inverse_deviation,
                    *block.norm1.weight, *block.norm1.bias, count);
}

template <class Scalar>
Score Model<Scalar>::forward(const Batch& batch) {
  if (batch.sequences > shape_.sequences || batch.context > shape_.context)
    throw std::logic_error("The batch is larger than the model was made for.");
  const int count = batch.tokens();
  const AttentionShape attention{batch.sequences, batch.context, shape_.width, shape_.heads};
  embedding_forward(embedded_, batch.inputs.data(), count, batch.context, *token_embedding_,
                    *position_embedding_);
  const Scalar* stream = embedded_;
  for (const Block& block : blocks_) {
    block_forward(block, stream, attention);
    stream = block.out;
  }
  norm_forward(final_.out, final_.mean, final_.inverse_deviation, stream, *final_norm_.weight,
               *final_norm_.bias, count);
  linear_forward<Scalar>(logits_, final_.out, *lm_head_, nullptr, nullptr, count);
  loss_forward(logits_, batch.targets.data(), losses_, correct_.data(), count, vocabulary);

  Score score;
  for (int n = 0; n < count; ++n) {
    score.loss += static_cast<double>(losses_[n]);
    score.accuracy += correct_[n];
  }
  score.loss /= count;
  score.accuracy /= count;
  return score;
}

template <class Scalar>
void Model<Scalar>::backward(const Batch& batch, Scalar scale) {
  const int count = batch.tokens();
  const AttentionShape attention{batch.sequences, batch.context, shape_.width, shape_.heads};
  loss_backward(logits_, batch.targets.data(), scale / count, count, vocabulary);
  linear_backward<Scalar>(d_branch_, logits_, final_.out, *lm_head_, nullptr, count);
  std::memset(d_stream_, 0, sizeof(Scalar) * at(count, shape_.width));
  const auto stream_into = [&](std::size_t i) { return i ? blocks_[i - 1].out : embedded_; };
  norm_backward_add(d_stream_, d_branch_, stream_into(blocks_.size()), final_.mean,
                    final_.inverse_deviation, *final_norm_.weight, *final_norm_.bias, count);
  for (std::size_t i = blocks_.size(); i-- > 0;)
    block_backward(blocks_[i], stream_into(i), attention);
  embedding_backward(d_stream_, batch.inputs.data(), count, batch.context, *token_embedding_,
                     *position_embedding_);
}

template class Model<float>;
template class Model<double>;

}  // namespace trainer
