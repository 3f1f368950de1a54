// Trains on several texts in sequence, data-parallel over MPI. Built twice: as it is, and with calls to forgetscope
// (instrument.hpp), to compare what is measured from inside and from outside.
#include <mpi.h>

#include <cmath>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "../trainer/data.hpp"
#include "../trainer/model.hpp"
#include "../trainer/random.hpp"
#include "../trainer/report.hpp"
#include "instrument.hpp"
#include "options.hpp"
#include "reduction.hpp"

namespace mpi_trainer {
namespace {

using trainer::Batch;
using trainer::Corpus;
using trainer::Random;

// Separate streams of random numbers for separate uses of a seed.
enum class Stream : std::uint64_t { weights, training };

class Trainer {
 public:
  explicit Trainer(const Options& options)
      : options_(options),
        model_(options.model, Random::keyed(options.seed, Stream::weights).next()),
        reduction_(options_, model_),
        instrument_(reduction_, options.flush != 0),
        // Every rank has the same losses; one of them writes.
        losses_(reduction_.rank() == 0 ? options.losses : "") {
    for (const trainer::TaskFile& task : options.tasks) tasks_.emplace_back(task.name, task.path, options.model.context);
    if (!options.layout.empty() && reduction_.rank() == 0) write_layout(reduction_.buckets(), options.layout);
  }

  void run() {
    for (std::size_t t = 0; t < tasks_.size(); ++t) {
      instrument_.task_begin(tasks_[t].name());
      for (int step = 1; step <= options_.steps; ++step) train_step(t, step);
      evaluate();
      instrument_.task_end();
    }
    losses_.close();
  }

 private:
  // One optimizer step on task t.
  void train_step(std::size_t t, int step) {
    const Corpus& task = tasks_[t];
    instrument_.step_begin(static_cast<std::uint64_t>(total_steps_));
    const Batch batch = task.training_batch(
        options_.model.sequences, Random::keyed(options_.seed, Stream::training, t, step, reduction_.rank()));
    model_.zero_gradients();
    const double own = model_.forward(batch).loss;
    model_.backward(batch, 1.0f);
    reduction_.reduce();
    instrument_.gradients_ready();
    reduction_.update();
    ++total_steps_;
    instrument_.step_end();
    const double loss = reduction_.mean(own);
    if (!std::isfinite(loss)) throw std::runtime_error("The loss is not finite; try a lower --learning-rate.");
    losses_.train(task.name(), step, loss, own);
  }

  // Held-out loss and accuracy of every task; each rank takes its share of the batches.
  void evaluate() {
    for (const Corpus& task : tasks_) {
      trainer::Score score;
      int n = 0;
      double tokens = 0;
      for (const Batch& batch : task.held_out_batches(options_.eval_batches, options_.model.sequences)) {
        if (n++ % reduction_.ranks() != reduction_.rank()) continue;
        const trainer::Score part = model_.forward(batch);
        score.loss += part.loss * batch.tokens();
        score.accuracy += part.accuracy * batch.tokens();
        tokens += batch.tokens();
      }
      tokens = reduction_.mean(tokens);
      score.loss = reduction_.mean(score.loss) / tokens;
      score.accuracy = reduction_.mean(score.accuracy) / tokens;
      losses_.evaluation(task.name(), total_steps_, score);
      if (reduction_.rank() == 0)
        std::printf("step %ld  %s  %.4f nats/byte, %.1f %%\n", total_steps_, task.name().c_str(), score.loss,
                    100 * score.accuracy);
    }
  }

  const Options options_;
  trainer::Model<float> model_;
  Reduction reduction_;
  Instrument instrument_;
  trainer::LossFile losses_;
  std::vector<Corpus> tasks_;
  long total_steps_ = 0;
};

}  // namespace
}  // namespace mpi_trainer

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  try {
    const mpi_trainer::Options options = mpi_trainer::parse_options(argc, argv);
    if (options.help)
      mpi_trainer::print_help();
    else
      mpi_trainer::Trainer(options).run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "trainer_mpi: %s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
