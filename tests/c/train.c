/* Two tasks in sequence, trained by SGD on quadratic losses. Everything that the library reports of the second one is
 * computed again here, in double precision and straight from the definitions. */

#include "check.h"

enum { WEIGHTS = 30, BIASES = 7, SIZE = WEIGHTS + BIASES, BATCHES = 4, EXAMPLES = 8, STEPS = 10 };

static const double SCALE = 0.5;          /* what is still multiplied onto the gradient, such as a clip coefficient */
static const float LEARNING_RATE = 0.05f;

/* The loss ½ Σ curvature (θ − optimum)². */
typedef struct {
    const char *name;
    float curvature[SIZE], optimum[SIZE];
} task;

static task new_task(const char *name, uint32_t seed)
{
    task made;
    made.name = name;
    fill(made.optimum, SIZE, seed);
    fill(made.curvature, SIZE, seed + 1);
    for (int i = 0; i < SIZE; i++)
        made.curvature[i] = 1.5f + made.curvature[i];
    return made;
}

static double loss(const task *of, const float *theta)
{
    double sum = 0.0;
    for (int i = 0; i < SIZE; i++) {
        double distance = (double)theta[i] - (double)of->optimum[i];
        sum += 0.5 * (double)of->curvature[i] * distance * distance;
    }
    return sum;
}

static void differentiate(const task *of, const float *theta, float *gradient)
{
    for (int i = 0; i < SIZE; i++)
        gradient[i] = of->curvature[i] * (theta[i] - of->optimum[i]);
}

static void descend(float *theta, const float *gradient)
{
    for (int i = 0; i < SIZE; i++)
        theta[i] -= LEARNING_RATE * (float)SCALE * gradient[i];
}

/* The model: one buffer of parameters and one of gradients, with two tensors in each. */
static float theta[SIZE], gradient[SIZE];
static uint32_t weight_id, bias_id;

static void describe(fgs_scope *scope)
{
    fgs_tensor weight = FGS_TENSOR_INIT;
    weight.name = "mlp.weight";
    weight.role = FGS_ROLE_MLP_IN;
    weight.layer = 0;
    weight.numel = WEIGHTS;
    OK(fgs_register(scope, &weight, &weight_id));
    fgs_tensor bias = FGS_TENSOR_INIT;
    bias.name = "mlp.bias";
    bias.role = FGS_ROLE_BIAS;
    bias.layer = 0;
    bias.numel = BIASES;
    OK(fgs_register(scope, &bias, &bias_id));

    fgs_dltensor weight_gradient = F32(gradient, 6, 5), bias_gradient = F32(gradient + WEIGHTS, BIASES);
    fgs_dltensor weight_values = F32(theta, 6, 5), bias_values = F32(theta + WEIGHTS, BIASES);
    OK(fgs_bind(scope, weight_id, FGS_GRAD, &weight_gradient));
    OK(fgs_bind(scope, bias_id, FGS_GRAD, &bias_gradient));
    OK(fgs_bind(scope, weight_id, FGS_PARAM, &weight_values));
    OK(fgs_bind(scope, bias_id, FGS_PARAM, &bias_values));
}

static void train_step(fgs_scope *scope, const task *of, uint64_t step)
{
    OK(fgs_step_begin(scope, step));
    differentiate(of, theta, gradient);
    OK(fgs_gradients_ready(scope, SCALE, 0, NULL));
    descend(theta, gradient);
    OK(fgs_step_end(scope, 1, NULL));
    OK(fgs_flush(scope));
}

/* What the first task leaves behind. */
static float batches[BATCHES][SIZE];
static double reference[SIZE];
static float snapshot[SIZE];

/* Gradients of the first task's batches at its final weights: what its data pull at, each with noise of its own. */
static void keep_reference(fgs_scope *scope, const task *of)
{
    for (int batch = 0; batch < BATCHES; batch++) {
        float own[SIZE];
        fill(own, SIZE, 100 + (uint32_t)batch);
        differentiate(of, theta, gradient);
        for (int i = 0; i < SIZE; i++) {
            gradient[i] += 0.3f * own[i];
            batches[batch][i] = gradient[i];
            reference[i] += (double)gradient[i] / BATCHES;
        }
        OK(fgs_reference_add(scope, of->name, EXAMPLES, 1.0, NULL));
    }
    memcpy(snapshot, theta, sizeof snapshot);
}

/* One step of the second task over a range of parameters, as sums of products of doubles. */
typedef struct {
    double gradients, references, dot, opposing, conflicts;                 /* gradient g against reference r */
    double updates, weights, update_dot, largest;                           /* update Δ, parameters θ, Δ·r */
    double drift, drift_dot_snapshot, snapshots, first_order, last_first_order;
    double projections[BATCHES];
} sums;

static sums measure(const float *before, int from, int to)
{
    sums s;
    memset(&s, 0, sizeof s);
    for (int i = from; i < to; i++) {
        double g = SCALE * (double)gradient[i], r = reference[i], now = (double)theta[i], old = (double)snapshot[i];
        double update = now - (double)before[i], drift = now - old;
        s.gradients += g * g;
        s.references += r * r;
        s.dot += g * r;
        s.opposing += g * r < 0 ? -g * r : 0.0;
        s.conflicts += g * r < 0;
        s.updates += update * update;
        s.weights += now * now;
        s.update_dot += update * r;
        s.largest = fmax(s.largest, fabs(update));
        s.drift += drift * drift;
        s.drift_dot_snapshot += drift * old;
        s.snapshots += old * old;
        s.first_order += r * drift;
        s.last_first_order += r * ((double)before[i] - old);
        for (int batch = 0; batch < BATCHES; batch++)
            s.projections[batch] += (double)batches[batch][i] * drift;
    }
    return s;
}

static void check_part(const ring *all, uint64_t step, uint8_t level, uint32_t tensor, double elements, const sums *s)
{
    const fgs_record *record = find(all, "gradient", step, level, tensor, NONE);
    CHECK_NEAR(value(all, record, "squares"), s->gradients);
    CHECK_NEAR(value(all, record, "norm"), sqrt(s->gradients));
    CHECK(value(all, record, "elements") == elements);

    double norms = sqrt(s->gradients * s->references);
    record = find(all, "interference", step, level, tensor, NONE);
    CHECK(record->task == 1 && record->reference == 0);
    CHECK(has_flag(all, record, "exact") && has_flag(all, record, "frozen"));
    CHECK_WITHIN(value(all, record, "cosine"), s->dot / norms, 1e-6);
    CHECK_WITHIN(value(all, record, "dot"), s->dot, 1e-6 * norms);
    CHECK_WITHIN(value(all, record, "dot_sketched"), s->dot, 1e-6 * norms);
    CHECK_NEAR(value(all, record, "squares"), s->gradients);
    CHECK_NEAR(value(all, record, "reference_squares"), s->references);
    CHECK_NEAR(value(all, record, "opposing"), s->opposing);
    CHECK(value(all, record, "conflicts") == s->conflicts);
    CHECK(value(all, record, "active") == elements);
    CHECK_NEAR(value(all, record, "conflict_fraction"), s->conflicts / elements);

    record = find(all, "update", step, level, tensor, NONE);
    CHECK_NEAR(value(all, record, "updates"), s->updates);
    CHECK_NEAR(value(all, record, "weights"), s->weights);
    CHECK_NEAR(value(all, record, "relative_step"), sqrt(s->updates / s->weights));
    CHECK_NEAR(value(all, record, "peak"), s->largest);

    record = find(all, "alignment", step, level, tensor, NONE);
    CHECK_WITHIN(value(all, record, "dot"), s->update_dot, 1e-6 * sqrt(s->updates * s->references));
    CHECK_WITHIN(value(all, record, "cosine"), s->update_dot / sqrt(s->updates * s->references), 1e-6);

    record = find(all, "drift", step, level, tensor, NONE);
    double drift_norm = sqrt(s->drift);
    CHECK_NEAR(value(all, record, "drift"), s->drift);
    CHECK_NEAR(value(all, record, "snapshot"), s->snapshots);
    CHECK_NEAR(value(all, record, "relative"), sqrt(s->drift / s->snapshots));
    CHECK_WITHIN(value(all, record, "drift_dot_snapshot"), s->drift_dot_snapshot, 1e-6 * drift_norm * sqrt(s->snapshots));
    double now = sqrt(s->snapshots + 2.0 * s->drift_dot_snapshot + s->drift);
    double cosine = (s->snapshots + s->drift_dot_snapshot) / (now * sqrt(s->snapshots));
    CHECK_WITHIN(value(all, record, "angle"), acos(cosine), 1e-5);
    CHECK_WITHIN(value(all, record, "first_order"), s->first_order, 1e-6 * drift_norm * sqrt(s->references));
}

/* The predicted change of the first task's loss: ⟨g, D⟩ + ½ Dᵀ F D, with F from the spread of the batches. */
static void check_prediction(const ring *all, uint64_t step, const sums *s)
{
    double mean = 0.0, variance = 0.0;
    for (int batch = 0; batch < BATCHES; batch++)
        mean += s->projections[batch] / BATCHES;
    for (int batch = 0; batch < BATCHES; batch++)
        variance += (s->projections[batch] - mean) * (s->projections[batch] - mean) / (BATCHES - 1);
    double quadratic = 0.5 * EXAMPLES * variance, size = sqrt(s->drift * s->references);
    const fgs_record *record = of_model(all, "prediction", step);
    CHECK_WITHIN(value(all, record, "first_order"), s->first_order, 1e-6 * size);
    CHECK_WITHIN(value(all, record, "quadratic"), quadratic, 1e-5 * quadratic);
    CHECK_WITHIN(value(all, record, "predicted"), s->first_order + quadratic, 1e-5 * (size + quadratic));
    CHECK_WITHIN(value(all, record, "first_order_error"), sqrt(variance / BATCHES), 1e-5 * sqrt(variance));
    CHECK(value(all, record, "batches") == BATCHES && value(all, record, "examples") == EXAMPLES);
    /* With a frozen reference the path adds up to ⟨g, D⟩ as of the beginning of the step. */
    CHECK_WITHIN(value(all, record, "path"), s->last_first_order, 2e-6 * size);
}

int main(void)
{
    const task first = new_task("first", 1), second = new_task("second", 2);
    fgs_scope *scope = open_scope();
    describe(scope);

    OK(fgs_task_begin(scope, first.name));
    for (uint64_t step = 0; step < STEPS; step++)
        train_step(scope, &first, step);
    double own = loss(&first, theta);
    OK(fgs_record_loss(scope, first.name, own));
    OK(fgs_record_eval(scope, first.name, "accuracy", 0.75, 1));
    keep_reference(scope, &first);
    OK(fgs_task_end(scope));

    sums whole[STEPS], weight[STEPS], bias[STEPS];
    OK(fgs_task_begin(scope, second.name));
    for (int k = 0; k < STEPS; k++) {
        float before[SIZE];
        memcpy(before, theta, sizeof before);
        train_step(scope, &second, (uint64_t)(STEPS + k));
        whole[k] = measure(before, 0, SIZE);
        weight[k] = measure(before, 0, WEIGHTS);
        bias[k] = measure(before, WEIGHTS, SIZE);
    }
    double now = loss(&first, theta);
    OK(fgs_record_loss(scope, first.name, now));
    OK(fgs_record_eval(scope, first.name, "accuracy", 0.5, 1));
    OK(fgs_task_end(scope));

    ring all = ring_of(scope);
    for (int k = 0; k < STEPS; k++) {
        uint64_t step = (uint64_t)(STEPS + k);
        check_part(&all, step, LEVEL_MODEL, NONE, SIZE, &whole[k]);
        check_part(&all, step, LEVEL_TENSOR, weight_id, WEIGHTS, &weight[k]);
        check_part(&all, step, LEVEL_TENSOR, bias_id, BIASES, &bias[k]);
        check_prediction(&all, step, &whole[k]);
        const fgs_record *record = of_model(&all, "step", step);
        CHECK_NEAR(value(&all, record, "gradient_norm"), sqrt(whole[k].gradients));
        CHECK(value(&all, record, "scale") == SCALE);
        CHECK(value(&all, record, "tensors") == 2.0 && value(&all, record, "elements") == SIZE);
        CHECK(value(&all, record, "applied") == 1.0);
        CHECK(!has_flag(&all, record, "partial"));
    }
    /* No earlier task, nothing to compare with. */
    CHECK(count_of(&all, "interference", 0) == 0 && count_of(&all, "drift", 0) == 0);

    /* What was forgotten, by what the trainer evaluated itself: positive means worse than it was. */
    CHECK(now > own);
    for (size_t i = 0; i < all.count; i++) {
        const fgs_record *record = &all.records[i];
        if (!is_kind(&all, record, "evaluation") || record->step != 2 * STEPS - 1)
            continue;
        const char *metric = name_of(&all, FGS_NAME_METRIC, (uint32_t)value(&all, record, "metric"));
        int is_loss = strcmp(metric, "loss") == 0;
        CHECK(is_loss || strcmp(metric, "accuracy") == 0);
        CHECK(record->reference == 0 && record->task == 1);
        CHECK_NEAR(value(&all, record, "value"), is_loss ? now : 0.5);
        CHECK_NEAR(value(&all, record, "own"), is_loss ? own : 0.75);
        CHECK_NEAR(value(&all, record, "forgetting_since_own"), is_loss ? now - own : 0.25);
        CHECK_NEAR(value(&all, record, "forgetting_maximum"), is_loss ? now - own : 0.25);
    }
    CHECK(count_of(&all, "evaluation", 2 * STEPS - 1) == 2 && count_of(&all, "transfer", 2 * STEPS - 1) == 2);

    ring_free(&all);
    OK(fgs_close(scope));
    return RESULT();
}
