// The model's shape and what its kernels are given: read by the host's compiler and by the kernels' (step.cu).
//
// A byte is predicted from the CONTEXT bytes before it: their embeddings, side by side, through one hidden layer. All
// parameters lie in one buffer, gradients and momentum in others of the same layout, so that an update is one launch.
#pragma once

constexpr unsigned BYTES = 256;
constexpr unsigned CONTEXT = 8;
constexpr unsigned WIDTH = 16;
constexpr unsigned INPUT = CONTEXT * WIDTH;
constexpr unsigned HIDDEN = 64;
constexpr unsigned BATCH = 32;

// First element of each tensor in the buffer of parameters.
constexpr unsigned EMBEDDING = 0;                                // [BYTES, WIDTH]
constexpr unsigned INPUT_WEIGHT = EMBEDDING + BYTES * WIDTH;     // [HIDDEN, INPUT]
constexpr unsigned INPUT_BIAS = INPUT_WEIGHT + HIDDEN * INPUT;   // [HIDDEN]
constexpr unsigned OUTPUT_WEIGHT = INPUT_BIAS + HIDDEN;          // [BYTES, HIDDEN]
constexpr unsigned OUTPUT_BIAS = OUTPUT_WEIGHT + BYTES * HIDDEN; // [BYTES]
constexpr unsigned PARAMETERS = OUTPUT_BIAS + BYTES;

// Batches of one text for one purpose (training, reference, evaluation).
struct Batches {
    const unsigned char* text;
    // Beginnings to choose from: the text's bytes, less CONTEXT.
    unsigned long long beginnings;
    unsigned long long seed;
    // How many batches were taken. On the device, so that a graph's replays take one after another.
    unsigned long long* taken;
    // Mean loss of the batch with number n, at n % loss_count.
    float* losses;
    unsigned long long loss_count;
};

struct StepParams {
    Batches batches;
    // [BATCH] first byte of each example's context.
    unsigned long long* beginnings;
    float* parameters;
    float* gradients;
    float* momentum;
    // [BATCH, HIDDEN] after the rectifier; and the loss's gradient before it.
    float* hidden;
    float* hidden_gradient;
    // [BATCH, BYTES] the loss's gradient by the logits.
    float* logit_gradient;
    // [BATCH, INPUT] the loss's gradient by the embeddings.
    float* input_gradient;
    // [BATCH]
    float* example_losses;
    float learning_rate;
    float momentum_factor;
};
