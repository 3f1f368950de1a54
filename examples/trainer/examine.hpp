// What forgetscope is shown besides training steps: probes, the loss landscape, and
// heads with their old weights put back. All of it between steps, at fixed weights, on
// held-out batches that are the same every time; weights are as before afterwards.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "data.hpp"
#include "forgetscope.h"
#include "model.hpp"
#include "options.hpp"
#include "report.hpp"

namespace trainer {

class Examiner {
 public:
  Examiner(Model<float>& model, const std::vector<Corpus>& tasks, const Options& options, Progress& progress)
      : model_(model), tasks_(tasks), options_(options), progress_(progress), kept_(tasks.size()) {}

  // Times that the probe is looked at while a task is trained on.
  static constexpr int null_passes = 3;

  // Forward passes that all of it takes, for the progress line.
  static double passes_planned(const Options& o) {
    const double tasks = static_cast<double>(o.tasks.size()), pairs = tasks * (tasks - 1) / 2;
    const double looks = o.probe_every > 0 ? (o.steps - 1) / o.probe_every : 0;
    const double continued = (tasks - 1) * o.null_runs;
    const double gradients = 103 * (pairs + tasks);  // at most, and the losses of a path
    const double heads = o.patch_batches * (1.0 + o.model.layers * o.model.heads);
    return o.probe_batches * (tasks * tasks + pairs * looks + null_passes * continued) +
           continued * o.null_steps * 3.0 * o.accumulate + pairs * heads + o.curvature_batches * 3.0 * gradients;
  }

  // One forward run over the probe of task t. `continued`: steps that the task itself was trained on since its base, in
  // the `run` of that number.
  void fgs_pass(fgs_scope* scope, std::size_t t, std::uint64_t continued = FGS_UNSET_U64, std::uint32_t run = 0) {
    if (options_.probe_batches == 0) return;
    fgs_probe probe = FGS_PROBE_INIT;
    probe.task = tasks_[t].name().c_str(), probe.continued_updates = continued, probe.run = run;
    check(fgs_probe_begin(scope, &probe));
    const ModelShape& shape = model_.shape();
    const std::int64_t width = shape.width, heads = shape.heads;
    for (const Batch& batch : tasks_[t].held_out_batches(options_.probe_batches, shape.sequences)) {
      model_.forward(batch);
      progress_.passed(1);
      check(fgs_probe_batch(scope, batch.sequences, batch.context, nullptr, 0));
      const std::int64_t sequences = batch.sequences, length = batch.context;
      for (int layer = 0; layer < shape.layers; ++layer) {
        const auto block = model_.activations(layer);
        std::int64_t stream[] = {sequences, length, width}, split[] = {sequences, length, heads, width / heads};
        std::int64_t square[] = {sequences, heads, length, length};
        const fgs_dltensor hidden = tensor(block.out, 3, stream), outputs = tensor(block.attended, 4, split);
        const fgs_dltensor probabilities = tensor(block.probabilities, 4, square);
        fgs_attention attention = FGS_ATTENTION_INIT;
        attention.probabilities = &probabilities, attention.mask = FGS_MASK_CAUSAL;
        check(fgs_probe_hidden(scope, layer, &hidden, nullptr));
        check(fgs_probe_attention(scope, layer, &attention, nullptr));
        // The output projection is bound: forgetscope finds it.
        check(fgs_probe_head_output(scope, layer, heads, 0, &outputs, nullptr, nullptr));
      }
    }
    check(fgs_probe_end(scope));
  }

  // The loss landscape of task t on the same batches every time: forgetscope moves the weights and says what it wants to
  // know there, and puts them back.
  void fgs_landscape(fgs_scope* scope, std::size_t t) {
    if (options_.curvature_batches == 0) return;
    const std::vector<Batch> batches =
        tasks_[t].held_out_batches(options_.curvature_batches, model_.shape().sequences);
    fgs_curvature options = FGS_CURVATURE_INIT;
    fgs_curvature_request request = FGS_CURVATURE_REQUEST_INIT;
    options.task = tasks_[t].name().c_str(), options.path_points = 9;
    check(fgs_curvature_begin(scope, &options));
    while (fgs_curvature_next(scope, &request) == FGS_OK && request.want != FGS_CURVATURE_DONE) {
      const bool gradient = request.want == FGS_CURVATURE_GRADIENT;
      const float share = 1.0f / static_cast<float>(batches.size());
      double loss = 0;
      if (gradient) model_.zero_gradients();
      for (const Batch& batch : batches) {
        loss += model_.forward(batch).loss * share;
        if (gradient) model_.backward(batch, share);
        progress_.passed(gradient ? 3 : 1);
      }
      check(fgs_curvature_submit(scope, loss, 1.0, nullptr));
    }
    check(fgs_curvature_end(scope));
  }

  // Weights at the end of task t: what heads are put back to.
  void keep_weights(std::size_t t) { kept_[t] = model_.copy_values(); }

  // For each head: the loss of an earlier task with that head's weights as they were at the end of it.
  void fgs_put_heads_back(fgs_scope* scope, std::size_t t) {
    if (options_.patch_batches == 0) return;
    const Buffer<float> now = model_.copy_values();
    const std::vector<Batch> batches = tasks_[t].held_out_batches(options_.patch_batches, model_.shape().sequences);
    const std::vector<double> losses = loss_of_each(batches);
    for (int layer = 0; layer < model_.shape().layers; ++layer)
      for (int head = 0; head < model_.shape().heads; ++head) {
        put_back(kept_[t], layer, head);
        const std::vector<double> restored = loss_of_each(batches);
        model_.set_values(now);
        const double n = static_cast<double>(batches.size());
        double mean = 0, mean_restored = 0, squares = 0;
        for (std::size_t i = 0; i < batches.size(); ++i) mean += losses[i] / n, mean_restored += restored[i] / n;
        for (std::size_t i = 0; i < batches.size(); ++i) {
          const double off = losses[i] - restored[i] - (mean - mean_restored);
          squares += off * off;
        }
        const double error = n > 1 ? std::sqrt(squares / (n * (n - 1))) : NAN;
        check(fgs_head_effect(scope, tasks_[t].name().c_str(), layer, head, mean, mean_restored, error));
      }
  }

 private:
  static fgs_dltensor tensor(float* data, int dimensions, std::int64_t* shape) {
    return {data, {1, 0}, dimensions, {2, 32, 1}, shape, nullptr, 0};
  }

  std::vector<double> loss_of_each(const std::vector<Batch>& batches) {
    std::vector<double> losses;
    for (const Batch& batch : batches) losses.push_back(model_.forward(batch).loss);
    progress_.passed(batches.size());
    return losses;
  }

  // Rows of Q, K and V of one head, and its columns of the output projection.
  void put_back(const Buffer<float>& values, int layer, int head) {
    const int width = model_.shape().width, size = width / model_.shape().heads;
    for (const Parameter<float>& p : model_.parameters()) {
      if (p.layer != layer) continue;
      const float* old = model_.in(values, p);
      if (p.role == Role::qkv)
        for (int part = 0; part < 3; ++part) {
          const std::size_t first = static_cast<std::size_t>(part * width + head * size) * p.cols;
          std::copy_n(old + first, static_cast<std::size_t>(size) * p.cols, p.value + first);
        }
      else if (p.role == Role::attn_out && !p.is_vector())
        for (int row = 0; row < p.rows; ++row) {
          const std::size_t first = static_cast<std::size_t>(row) * p.cols + head * size;
          std::copy_n(old + first, size, p.value + first);
        }
    }
  }

  // Whatever forgetscope refuses is said once, and training goes on.
  void check(fgs_status status) {
    if (status == FGS_OK || std::exchange(complained_, true)) return;
    progress_.note(std::string("forgetscope: ") + fgs_last_error());
  }

  Model<float>& model_;
  const std::vector<Corpus>& tasks_;
  const Options& options_;
  Progress& progress_;
  std::vector<Buffer<float>> kept_;  // per task, empty before its end
  bool complained_ = false;
};

}  // namespace trainer
