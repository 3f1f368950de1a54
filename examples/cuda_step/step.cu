// One training step of a byte-level network: batch, forward, loss, backward, update. See step.h for its shape.
//
// Written to be read, not to be fast: a thread an output element, sums in a fixed order and no atomics, so that losses are
// the same bits in every run, eager or replayed from a graph. Cost: a step is ten launches of at most 16,384 threads.
#include "kernel.cuh"
#include "step.h"

// SplitMix64: a number's image is as good as random.
__device__ __forceinline__ u64 scramble(u64 x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

__device__ __forceinline__ u32 byte_of(const StepParams& p, u32 example, u32 position)
{
    return p.batches.text[p.beginnings[example] + position];
}

// The example's embedded context as one vector.
__device__ __forceinline__ float input_of(const StepParams& p, u32 example, u32 at)
{
    return p.parameters[EMBEDDING + byte_of(p, example, at / WIDTH) * WIDTH + at % WIDTH];
}

// Launch: 1 block of BATCH threads.
KERNEL(step_choose, BATCH, StepParams)
{
    const u64 number = *p.batches.taken * BATCH + threadIdx.x;
    p.beginnings[threadIdx.x] = scramble(scramble(p.batches.seed) + number) % p.batches.beginnings;
}

// Launch: a thread an element of [BATCH, HIDDEN].
KERNEL(step_hidden, 256, StepParams)
{
    const u32 index = blockIdx.x * 256 + threadIdx.x, example = index / HIDDEN, unit = index % HIDDEN;
    float sum = p.parameters[INPUT_BIAS + unit];
    for (u32 i = 0; i < INPUT; i++) sum = fmaf(p.parameters[INPUT_WEIGHT + unit * INPUT + i], input_of(p, example, i), sum);
    p.hidden[index] = fmaxf(sum, 0.0f);
}

// Logits, softmax, cross-entropy, and its gradient by the logits.
// Launch: a block of BYTES threads an example.
KERNEL(step_loss, BYTES, StepParams)
{
    __shared__ float shared[BYTES];
    const u32 example = blockIdx.x, byte = threadIdx.x;
    float logit = p.parameters[OUTPUT_BIAS + byte];
    for (u32 j = 0; j < HIDDEN; j++) {
        logit = fmaf(p.parameters[OUTPUT_WEIGHT + byte * HIDDEN + j], p.hidden[example * HIDDEN + j], logit);
    }
    shared[byte] = logit;
    __syncthreads();
    for (u32 half = BYTES / 2; half > 0; half /= 2) {
        if (byte < half) shared[byte] = fmaxf(shared[byte], shared[byte + half]);
        __syncthreads();
    }
    const float largest = shared[0];
    __syncthreads();
    const float exponential = expf(logit - largest);
    shared[byte] = exponential;
    __syncthreads();
    for (u32 half = BYTES / 2; half > 0; half /= 2) {
        if (byte < half) shared[byte] += shared[byte + half];
        __syncthreads();
    }
    const bool is_next = byte == byte_of(p, example, CONTEXT);
    p.logit_gradient[example * BYTES + byte] = (exponential / shared[0] - (is_next ? 1.0f : 0.0f)) / BATCH;
    if (is_next) p.example_losses[example] = logf(shared[0]) - (logit - largest);
}

// Notes the batch's mean loss; the next batch is another. Launch: 1 thread.
KERNEL(step_record, 1, StepParams)
{
    float sum = 0.0f;
    for (u32 example = 0; example < BATCH; example++) sum += p.example_losses[example];
    p.batches.losses[*p.batches.taken % p.batches.loss_count] = sum / BATCH;
    *p.batches.taken += 1;
}

// Launch: a thread an element of [BYTES, HIDDEN].
KERNEL(step_output_gradient, 256, StepParams)
{
    const u32 index = blockIdx.x * 256 + threadIdx.x, byte = index / HIDDEN, unit = index % HIDDEN;
    float weight = 0.0f, bias = 0.0f;
    for (u32 example = 0; example < BATCH; example++) {
        const float by_logit = p.logit_gradient[example * BYTES + byte];
        weight = fmaf(by_logit, p.hidden[example * HIDDEN + unit], weight);
        bias += by_logit;
    }
    p.gradients[OUTPUT_WEIGHT + index] = weight;
    if (unit == 0) p.gradients[OUTPUT_BIAS + byte] = bias;
}

// Launch: a thread an element of [BATCH, HIDDEN].
KERNEL(step_hidden_gradient, 256, StepParams)
{
    const u32 index = blockIdx.x * 256 + threadIdx.x, example = index / HIDDEN, unit = index % HIDDEN;
    float sum = 0.0f;
    for (u32 byte = 0; byte < BYTES; byte++) {
        sum = fmaf(p.logit_gradient[example * BYTES + byte], p.parameters[OUTPUT_WEIGHT + byte * HIDDEN + unit], sum);
    }
    p.hidden_gradient[index] = p.hidden[index] > 0.0f ? sum : 0.0f;
}

// Launch: a thread an element of [HIDDEN, INPUT].
KERNEL(step_weight_gradient, 256, StepParams)
{
    const u32 index = blockIdx.x * 256 + threadIdx.x, unit = index / INPUT, at = index % INPUT;
    float weight = 0.0f, bias = 0.0f;
    for (u32 example = 0; example < BATCH; example++) {
        const float by_hidden = p.hidden_gradient[example * HIDDEN + unit];
        weight = fmaf(by_hidden, input_of(p, example, at), weight);
        bias += by_hidden;
    }
    p.gradients[INPUT_WEIGHT + index] = weight;
    if (at == 0) p.gradients[INPUT_BIAS + unit] = bias;
}

// Launch: a thread an element of [BATCH, INPUT].
KERNEL(step_input_gradient, 256, StepParams)
{
    const u32 index = blockIdx.x * 256 + threadIdx.x, example = index / INPUT, at = index % INPUT;
    float sum = 0.0f;
    for (u32 unit = 0; unit < HIDDEN; unit++) {
        sum = fmaf(p.hidden_gradient[example * HIDDEN + unit], p.parameters[INPUT_WEIGHT + unit * INPUT + at], sum);
    }
    p.input_gradient[index] = sum;
}

// Launch: a thread an element of [BYTES, WIDTH].
KERNEL(step_embedding_gradient, 256, StepParams)
{
    const u32 index = blockIdx.x * 256 + threadIdx.x, byte = index / WIDTH, at = index % WIDTH;
    float sum = 0.0f;
    for (u32 example = 0; example < BATCH; example++) {
        for (u32 position = 0; position < CONTEXT; position++) {
            if (byte_of(p, example, position) == byte) sum += p.input_gradient[example * INPUT + position * WIDTH + at];
        }
    }
    p.gradients[EMBEDDING + index] = sum;
}

// Stochastic gradient descent with momentum. Launch: at least PARAMETERS threads.
KERNEL(step_update, 256, StepParams)
{
    const u32 index = blockIdx.x * 256 + threadIdx.x;
    if (index >= PARAMETERS) return;
    p.momentum[index] = fmaf(p.momentum_factor, p.momentum[index], p.gradients[index]);
    p.parameters[index] = fmaf(-p.learning_rate, p.momentum[index], p.parameters[index]);
}
