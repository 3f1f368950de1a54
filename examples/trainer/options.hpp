// The command line: one table holds every flag, its text for --help, and its range.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "adamw.hpp"
#include "model.hpp"

namespace trainer {

struct TaskFile {
  std::string name, path;
};

struct Options {
  std::vector<TaskFile> tasks;
  ModelShape model;
  AdamWOptions adamw;
  int steps = 500;             // optimizer steps for each task
  int accumulate = 1;          // micro-batches for each optimizer step
  int warm_up = 50;            // steps, at the start of each task
  double final_rate = 0.05;    // share of the learning rate that is left at the end of a task
  double clip = 1.0;           // limit of the gradient norm; 0: none
  int eval_every = 50;         // steps; 0: only before training and after each task
  int eval_batches = 4;        // for each task, while training
  int final_eval_batches = 16; // for each task, before training and after each task
  int reference_batches = 64;  // gradients at fixed weights after each task; 0: none
  // What is looked at besides steps, all with forgetscope only.
  int probe_every = 50;        // steps between looks at earlier tasks' probes; 0: only at ends of tasks
  int probe_batches = 8;       // held-out batches of a probe; 0: no probes
  int null_runs = 2;           // times that a task is trained on for a while, to see what change is usual
  int null_steps = 150;        // steps of each; beyond them the usual change is extrapolated
  int curvature_batches = 1;   // held-out batches whose loss landscape is looked at; 0: none
  int patch_batches = 4;       // held-out batches for putting heads back; 0: they are not
  std::uint64_t seed = 1;
  int instrument = 1;          // 0: forgetscope is not opened
  std::string losses;          // where to write all losses; empty: nowhere
  bool help = false;
};

struct Flag {
  std::string name, argument, help;
  std::function<void(const std::string&)> set;
  std::string standard;  // the default, as text; empty: has none
};

namespace detail {

template <class Number>
Number parse_number(const std::string& flag, const std::string& text, Number least, Number most) {
  Number value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || !(value >= least && value <= most)) {
    std::ostringstream message;
    message << flag << " needs a number from " << least << " to " << most << ", not '" << text
            << "'.";
    throw std::runtime_error(message.str());
  }
  return value;
}

template <class Number>
Flag number_flag(std::string name, std::string help, Number& value, Number least, Number most) {
  std::ostringstream standard;
  standard << value;
  return {name, "N", std::move(help),
          [name, &value, least, most](const std::string& text) {
            value = parse_number(name, text, least, most);
          },
          standard.str()};
}

inline TaskFile parse_task(const std::string& text, const std::vector<TaskFile>& others) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
    throw std::runtime_error("--task needs NAME=FILE, not '" + text + "'.");
  const TaskFile task{text.substr(0, equals), text.substr(equals + 1)};
  if (task.name.find_first_of(" \t\n") != std::string::npos)
    throw std::runtime_error("The task name '" + task.name + "' contains a space.");
  for (const TaskFile& other : others)
    if (other.name == task.name)
      throw std::runtime_error("There are two tasks named '" + task.name + "'.");
  return task;
}

// Sets what the command line says; false if it asks for help.
inline bool take_flags(int argc, char** argv, const std::vector<Flag>& flags) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help" || name == "-h") return false;
    const auto flag =
        std::find_if(flags.begin(), flags.end(), [&](const Flag& f) { return f.name == name; });
    if (flag == flags.end())
      throw std::runtime_error("There is no flag '" + name + "'; see --help.");
    if (i + 1 == argc) throw std::runtime_error(name + " needs a value; see --help.");
    flag->set(argv[++i]);
  }
  return true;
}

}  // namespace detail

// The flags write to `o`, which must outlive them.
inline std::vector<Flag> all_flags(Options& o) {
  using detail::number_flag;
  constexpr int many = 1'000'000;
  return {
      {"--task", "NAME=FILE", "a task and its text; repeat for several, trained in this order",
       [&o](const std::string& text) { o.tasks.push_back(detail::parse_task(text, o.tasks)); }, ""},
      number_flag("--steps", "optimizer steps for each task", o.steps, 1, many),
      number_flag("--batch", "sequences in a micro-batch", o.model.sequences, 1, 4096),
      number_flag("--accumulate", "micro-batches for each step", o.accumulate, 1, 4096),
      number_flag("--context", "bytes in a sequence", o.model.context, 1, 4096),
      number_flag("--width", "width of the model", o.model.width, 1, 4096),
      number_flag("--layers", "transformer blocks", o.model.layers, 1, 128),
      number_flag("--heads", "attention heads; divides the width", o.model.heads, 1, 128),
      number_flag("--learning-rate", "of AdamW", o.adamw.learning_rate, 0.0, 1.0),
      number_flag("--beta1", "of AdamW", o.adamw.beta1, 0.0, 0.9999999),
      number_flag("--beta2", "of AdamW", o.adamw.beta2, 0.0, 0.9999999),
      number_flag("--epsilon", "of AdamW", o.adamw.epsilon, 0.0, 1.0),
      number_flag("--weight-decay", "decoupled, of matrices only", o.adamw.weight_decay, 0.0, 1.0),
      number_flag("--clip", "limit of the gradient norm; 0: none", o.clip, 0.0, 1e9),
      number_flag("--warmup", "steps of linear warm-up, in each task", o.warm_up, 0, many),
      number_flag("--final-rate", "share of the learning rate at the end of each task; 1: no decay",
                  o.final_rate, 0.0, 1.0),
      number_flag("--eval-every", "steps between evaluations; 0: none within a task",
                  o.eval_every, 0, many),
      number_flag("--eval-batches", "held-out batches of each task, within a task",
                  o.eval_batches, 1, many),
      number_flag("--final-eval-batches", "the same, before training and after each task",
                  o.final_eval_batches, 1, many),
      number_flag("--reference-batches", "gradients at fixed weights after each task; 0: none",
                  o.reference_batches, 0, many),
      number_flag("--probe-every", "steps between looks at the probes of earlier tasks; 0: only at ends of tasks",
                  o.probe_every, 0, many),
      number_flag("--probe-batches", "held-out batches of a probe; 0: no probes", o.probe_batches, 0, many),
      number_flag("--null-runs", "times that a finished task is trained on, to see what change is usual",
                  o.null_runs, 0, many),
      number_flag("--null-steps", "steps of each of them", o.null_steps, 2, many),
      number_flag("--curvature-batches", "held-out batches whose loss landscape is looked at; 0: none",
                  o.curvature_batches, 0, many),
      number_flag("--patch-batches", "held-out batches for putting back heads; 0: none are put back",
                  o.patch_batches, 0, many),
      number_flag("--seed", "of weights and batches", o.seed, std::uint64_t{0}, UINT64_MAX),
      number_flag("--instrument", "1: measure with forgetscope; 0: do not", o.instrument, 0, 1),
      {"--losses", "FILE", "write every loss as exact text (hexadecimal floating point)",
       [&o](const std::string& text) { o.losses = text; }, ""},
  };
}

inline void print_help() {
  Options options;
  std::printf(
      "Trains a small byte-level GPT on several texts, one after the other, and shows how\n"
      "much of the earlier ones it forgets. A tenth of each text is held out to measure it.\n\n"
      "  trainer --task NAME=FILE [--task NAME=FILE ...] [options]\n\n");
  for (const Flag& flag : all_flags(options)) {
    const std::string standard = flag.standard.empty() ? "" : " [" + flag.standard + "]";
    std::printf("  %-24s %s%s\n", (flag.name + " " + flag.argument).c_str(), flag.help.c_str(),
                standard.c_str());
  }
  std::printf("  %-24s %s\n", "--help", "this text");
  std::printf("\nOMP_NUM_THREADS sets the number of threads; results do not depend on it.\n");
}

inline Options parse_options(int argc, char** argv) {
  Options options;
  if (!detail::take_flags(argc, argv, all_flags(options))) {
    options.help = true;
    return options;
  }
  if (options.tasks.empty())
    throw std::runtime_error("Give at least one --task NAME=FILE; see --help.");
  if (options.model.width % options.model.heads != 0)
    throw std::runtime_error("--width must be a multiple of --heads.");
  return options;
}

}  // namespace trainer
