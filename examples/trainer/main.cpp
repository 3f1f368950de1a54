// Trains on several texts in sequence. The order of events in a step is that of any
// large trainer; every line that has to do with forgetscope contains "fgs_" or "FGS_".
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "adamw.hpp"
#include "data.hpp"
#include "examine.hpp"
#include "forgetscope.h"
#include "model.hpp"
#include "options.hpp"
#include "report.hpp"

namespace trainer {
namespace {

// Separate streams of random numbers for separate uses of a seed.
enum class Stream : std::uint64_t { weights, training, reference, null };

class Trainer {
 public:
  explicit Trainer(const Options& options)
      : options_(options),
        model_(options.model, Random::keyed(options.seed, Stream::weights).next()),
        optimizer_(model_.parameters(), options.adamw),
        progress_(passes_planned(options)),
        losses_(options.losses) {
    for (const TaskFile& task : options.tasks)
      tasks_.emplace_back(task.name, task.path, options.model.context);
    examiner_ = std::make_unique<Examiner>(model_, tasks_, options_, progress_);
  }

  void run() {
    std::vector<std::string> names;
    for (const Corpus& task : tasks_) names.push_back(task.name());
    ForgettingTable table(names);
    describe();
    if (options_.instrument) open_fgs_scope();

    table.add_row("before training", evaluate(options_.final_eval_batches));
    for (std::size_t t = 0; t < tasks_.size(); ++t) {
      fgs_task_begin(fgs_scope_, names[t].c_str());
      for (int step = 1; step <= options_.steps; ++step) {
        train_step(t, step);
        if (options_.eval_every > 0 && step % options_.eval_every == 0 && step < options_.steps)
          evaluate(options_.eval_batches);
        if (fgs_scope_ && options_.probe_every > 0 && step % options_.probe_every == 0 && step < options_.steps)
          for (std::size_t earlier = 0; earlier < t; ++earlier) examiner_->fgs_pass(fgs_scope_, earlier);
      }
      table.add_row("after " + names[t], evaluate(options_.final_eval_batches));
      if (options_.reference_batches > 0) reference_gradients(t);
      if (fgs_scope_) examine(t);
      fgs_task_end(fgs_scope_);
    }
    fgs_close(fgs_scope_);
    losses_.close();
    table.print();
    finish();
  }

 private:
  // One optimizer step on task t.
  void train_step(std::size_t t, int step) {
    const Corpus& task = tasks_[t];
    const auto& parameters = model_.parameters();
    progress_.begin_step();
    fgs_step_begin(fgs_scope_, total_steps_);

    const double loss = accumulate_gradients(task, [&](int micro) {
      return Random::keyed(options_.seed, Stream::training, t, step, micro);
    });
    const double norm = gradient_norm(parameters);
    if (!std::isfinite(loss) || !std::isfinite(norm))
      throw std::runtime_error("The loss or its gradient is not finite at step " +
                               std::to_string(step) + " of task '" + task.name() +
                               "'; try a lower --learning-rate.");
    const double clip = clip_scale(norm, options_.clip);
    fgs_gradients_ready(fgs_scope_, clip, 0, nullptr);

    scale_gradients(parameters, clip);
    optimizer_.step(parameters, rate(step));
    ++total_steps_;
    fgs_step_end(fgs_scope_, 1, nullptr);

    losses_.train(task.name(), step, loss, norm);
    progress_.end_step(task.name(), step, options_.steps, loss,
                       options_.accumulate * options_.model.sequences * options_.model.context);
  }

  // The average loss over the micro-batches of a step, and its gradient.
  template <class Draw>
  double accumulate_gradients(const Corpus& task, const Draw& draw) {
    model_.zero_gradients();
    double loss = 0;
    for (int micro = 0; micro < options_.accumulate; ++micro) {
      const Batch batch = task.training_batch(options_.model.sequences, draw(micro));
      loss += model_.forward(batch).loss / options_.accumulate;
      model_.backward(batch, 1.0f / static_cast<float>(options_.accumulate));
      progress_.passed(3);
    }
    return loss;
  }

  // All that is looked at when task t is learnt: its probe, which is what later ones are compared with, the probes of
  // all other tasks at the same weights, what change is usual, the loss landscape, and heads put back.
  void examine(std::size_t t) {
    examiner_->keep_weights(t);
    examiner_->fgs_pass(fgs_scope_, t);
    for (std::size_t other = 0; other < tasks_.size(); ++other)
      if (other != t) examiner_->fgs_pass(fgs_scope_, other);
    if (t + 1 < tasks_.size()) continue_training(t);
    for (std::size_t known = 0; known <= t; ++known) examiner_->fgs_landscape(fgs_scope_, known);
    for (std::size_t earlier = 0; earlier < t; ++earlier) examiner_->fgs_put_heads_back(fgs_scope_, earlier);
  }

  // Trains on with the task itself for a while, several times from the same weights, as if it were a new one: what
  // changes then is no forgetting. Weights and moments are as before afterwards.
  void continue_training(std::size_t t) {
    const Buffer<float> values = model_.copy_values();
    const AdamW<float> optimizer = optimizer_;
    for (int run = 0; run < options_.null_runs; ++run) {
      for (int step = 1; step <= options_.null_steps; ++step) {
        accumulate_gradients(tasks_[t], [&](int micro) {
          return Random::keyed(options_.seed, Stream::null, t, run, step, micro);
        });
        const auto& parameters = model_.parameters();
        scale_gradients(parameters, clip_scale(gradient_norm(parameters), options_.clip));
        optimizer_.step(parameters, rate(step));
        if (step * Examiner::null_passes / options_.null_steps > (step - 1) * Examiner::null_passes / options_.null_steps)
          examiner_->fgs_pass(fgs_scope_, t, step, run);
      }
      model_.set_values(values);
      optimizer_ = optimizer;
    }
  }

  // Linear warm-up, then half a cosine down to the final rate. Begins anew with each task, as fine-tuning runs do: AdamW's
  // moments need to get used to the new text, and a task should end near a minimum of its loss.
  double rate(int step) const {
    if (step < options_.warm_up) return static_cast<double>(step) / options_.warm_up;
    const double passed = static_cast<double>(step - options_.warm_up) / (options_.steps - options_.warm_up + 1);
    const double cosine = 0.5 * (1 + std::cos(3.14159265358979323846 * passed));
    return options_.final_rate + (1 - options_.final_rate) * cosine;
  }

  // Held-out loss and accuracy of every task, on the same batches at every call.
  std::vector<Score> evaluate(int batches) {
    std::vector<Score> scores;
    std::string line = "  evaluation at step " + std::to_string(total_steps_) + ":";
    for (const Corpus& task : tasks_) {
      Score score;
      double tokens = 0;
      for (const Batch& batch : task.held_out_batches(batches, options_.model.sequences)) {
        const Score part = model_.forward(batch);
        score.loss += part.loss * batch.tokens();
        score.accuracy += part.accuracy * batch.tokens();
        tokens += batch.tokens();
      }
      progress_.passed(batches);
      score.loss /= tokens;
      score.accuracy /= tokens;
      fgs_record_loss(fgs_scope_, task.name().c_str(), score.loss);
      fgs_record_eval(fgs_scope_, task.name().c_str(), "accuracy", score.accuracy, 1);
      losses_.evaluation(task.name(), total_steps_, score);
      char text[96];
      std::snprintf(text, sizeof text, "  %.4f (%.1f %%)", score.loss, 100 * score.accuracy);
      line += "  " + task.name() + text;
      scores.push_back(score);
    }
    progress_.note(line);
    return scores;
  }

  // Gradients of the task just learnt, a batch at a time, all at the same weights.
  void reference_gradients(std::size_t t) {
    const Corpus& task = tasks_[t];
    for (int i = 0; i < options_.reference_batches; ++i) {
      const Batch batch =
          task.training_batch(options_.model.sequences,
                              Random::keyed(options_.seed, Stream::reference, t, i));
      model_.zero_gradients();
      const double loss = model_.forward(batch).loss;
      model_.backward(batch, 1.0f);
      fgs_reference_add(fgs_scope_, task.name().c_str(), batch.tokens(), 1.0, nullptr);
      losses_.reference(task.name(), i, loss, gradient_norm(model_.parameters()));
      progress_.passed(3);
    }
  }

  // Tells forgetscope of every tensor, and where its values and gradients lie: they stay there.
  void open_fgs_scope() {
    constexpr fgs_role roles[] = {FGS_ROLE_EMBEDDING, FGS_ROLE_POSITION, FGS_ROLE_NORM,    FGS_ROLE_QKV,
                                  FGS_ROLE_OUTPUT,    FGS_ROLE_MLP_IN,   FGS_ROLE_MLP_OUT, FGS_ROLE_LM_HEAD};
    if (fgs_open(nullptr, &fgs_scope_) != FGS_OK)
      progress_.note(std::string("training goes on without forgetscope: ") + fgs_last_error());
    for (const Parameter<float>& p : model_.parameters()) {
      std::uint32_t id = 0;
      std::int64_t shape[] = {p.rows, p.cols};
      const fgs_dltensor gradient = {p.gradient, {1, 0}, 2, {2, 32, 1}, shape, nullptr, 0};
      const fgs_dltensor value = {p.value, {1, 0}, 2, {2, 32, 1}, shape, nullptr, 0};
      fgs_tensor tensor = FGS_TENSOR_INIT;
      tensor.name = p.name.c_str(), tensor.numel = p.size(), tensor.layer = p.layer;
      tensor.role = roles[static_cast<int>(p.role)];
      tensor.head_count = p.role == Role::attn_out && p.is_vector() ? 0 : p.heads;
      fgs_register(fgs_scope_, &tensor, &id);
      fgs_bind(fgs_scope_, id, FGS_GRAD, &gradient), fgs_bind(fgs_scope_, id, FGS_PARAM, &value);
    }
  }

  static double passes_planned(const Options& o) {
    const double tasks = static_cast<double>(o.tasks.size());
    const int evaluations = o.eval_every > 0 ? (o.steps - 1) / o.eval_every : 0;
    const double training = tasks * (3.0 * o.steps * o.accumulate + 3.0 * o.reference_batches +
                                     tasks * evaluations * o.eval_batches) +
                            tasks * (tasks + 1) * o.final_eval_batches;
    return training + (o.instrument ? Examiner::passes_planned(o) : 0.0);
  }

  void describe() {
    char text[160];
    std::snprintf(text, sizeof text,
                  "%zu parameters in %zu tensors, %.1f MFLOP a token, %d threads",
                  model_.parameter_count(), model_.parameters().size(),
                  model_.flops_per_token() * 1e-6, omp_get_max_threads());
    progress_.note(text);
  }

  void finish() {
    char text[160];
    std::snprintf(text, sizeof text, "%.0f s; in training steps %.0f tokens/s, %.1f GFLOP/s",
                  progress_.seconds(), progress_.tokens_per_second(),
                  progress_.tokens_per_second() * model_.flops_per_token() * 1e-9);
    progress_.note(text);
  }

  const Options options_;
  Model<float> model_;
  AdamW<float> optimizer_;
  std::vector<Corpus> tasks_;
  Progress progress_;
  LossFile losses_;
  std::unique_ptr<Examiner> examiner_;
  long total_steps_ = 0;
  fgs_scope* fgs_scope_ = nullptr;  // null: every call is refused and training goes on
};

}  // namespace
}  // namespace trainer

int main(int argc, char** argv) {
  try {
    const trainer::Options options = trainer::parse_options(argc, argv);
    if (options.help)
      trainer::print_help();
    else
      trainer::Trainer(options).run();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "trainer: %s\n", error.what());
    return 1;
  }
}
