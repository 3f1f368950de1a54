// The command line. Flags are those of ../trainer where they mean the same.
#pragma once

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "../trainer/options.hpp"

namespace mpi_trainer {

// How gradients are reduced.
enum class Collective {
  allreduce,       // a bucket after the other
  iallreduce,      // all at once, then waited for
  reduce_scatter,  // each rank updates its part of every bucket (ZeRO-1), parameters are gathered
};

// Which function of MPI notices that the buckets of `iallreduce` are there.
enum class Waiting { all, each, any, some, test };

struct Options {
  std::vector<trainer::TaskFile> tasks;
  trainer::ModelShape model;
  trainer::AdamWOptions adamw;
  Collective collective = Collective::allreduce;
  Waiting waiting = Waiting::all;
  int steps = 100;
  int bucket_bytes = 1 << 20;
  int eval_batches = 4;
  int flush = 0;
  std::uint64_t seed = 1;
  std::string losses, layout;
  bool help = false;
};

// A flag that is one of a few words.
template <class Enum>
trainer::Flag choice_flag(std::string name, std::string help, Enum& value, std::vector<std::string> words) {
  std::string list;
  for (const std::string& word : words) list += (list.empty() ? "" : "|") + word;
  const std::string standard = words[static_cast<std::size_t>(value)];
  const auto set = [name, list, words = std::move(words), &value](const std::string& text) {
    const auto word = std::find(words.begin(), words.end(), text);
    if (word == words.end()) throw std::runtime_error(name + " is one of " + list + ", not '" + text + "'.");
    value = static_cast<Enum>(word - words.begin());
  };
  return {name, list, std::move(help), set, standard};
}

// The flags write to `o`, which must outlive them.
inline std::vector<trainer::Flag> all_flags(Options& o) {
  using trainer::detail::number_flag;
  constexpr int many = 1'000'000;
  return {
      {"--task", "NAME=FILE", "a task and its text; repeat for several, trained in this order",
       [&o](const std::string& text) { o.tasks.push_back(trainer::detail::parse_task(text, o.tasks)); }, ""},
      number_flag("--steps", "optimizer steps for each task", o.steps, 1, many),
      number_flag("--batch", "sequences of each rank in a step", o.model.sequences, 1, 4096),
      number_flag("--context", "bytes in a sequence", o.model.context, 1, 4096),
      number_flag("--width", "width of the model", o.model.width, 1, 4096),
      number_flag("--layers", "transformer blocks", o.model.layers, 1, 128),
      number_flag("--heads", "attention heads; divides the width", o.model.heads, 1, 128),
      number_flag("--learning-rate", "of AdamW", o.adamw.learning_rate, 0.0, 1.0),
      number_flag("--eval-batches", "held-out batches of each task, after each task", o.eval_batches, 1, many),
      number_flag("--bucket-bytes", "size of a bucket of gradients", o.bucket_bytes, 1, 1 << 30),
      choice_flag("--collective", "how gradients are reduced", o.collective,
                  {"allreduce", "iallreduce", "reduce_scatter"}),
      choice_flag("--waiting", "how iallreduce is waited for", o.waiting, {"all", "each", "any", "some", "test"}),
      number_flag("--flush", "1: wait until each step's records are written; with forgetscope only", o.flush, 0, 1),
      number_flag("--seed", "of weights and batches", o.seed, std::uint64_t{0}, UINT64_MAX),
      {"--losses", "FILE", "write every loss as exact text (hexadecimal floating point)",
       [&o](const std::string& text) { o.losses = text; }, ""},
      {"--layout", "FILE", "write which tensors lie in which bucket, as JSON",
       [&o](const std::string& text) { o.layout = text; }, ""},
  };
}

inline void print_help() {
  Options options;
  std::printf(
      "Trains a small byte-level GPT on several texts, one after the other, on several ranks.\n\n"
      "  mpirun -n 2 trainer_mpi --task NAME=FILE [--task NAME=FILE ...] [options]\n\n");
  for (const trainer::Flag& flag : all_flags(options)) {
    const std::string standard = flag.standard.empty() ? "" : " [" + flag.standard + "]";
    std::printf("  %s %s\n        %s%s\n", flag.name.c_str(), flag.argument.c_str(), flag.help.c_str(),
                standard.c_str());
  }
}

inline Options parse_options(int argc, char** argv) {
  Options options;
  if (!trainer::detail::take_flags(argc, argv, all_flags(options))) {
    options.help = true;
    return options;
  }
  if (options.tasks.empty()) throw std::runtime_error("Give at least one --task NAME=FILE; see --help.");
  if (options.model.width % options.model.heads != 0)
    throw std::runtime_error("--width must be a multiple of --heads.");
  return options;
}

}  // namespace mpi_trainer
