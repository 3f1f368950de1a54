/* The loss landscape: the library moves the parameters and says what it wants, the trainer answers with gradients. */

#include "check.h"

enum { WEIGHTS = 48, BIASES = 16, SIZE = WEIGHTS + BIASES, POINTS = 3 };

static float theta[SIZE], gradient[SIZE];
static uint32_t weight_id, bias_id;

/* ½ Σ h θ² with curvatures 1, 2, …, SIZE: the eigenvalues are known, the eigenvectors are the axes. */
static double curvature_of(int i)
{
    return 1.0 + i;
}

static double loss(void)
{
    double sum = 0.0;
    for (int i = 0; i < SIZE; i++)
        sum += 0.5 * curvature_of(i) * (double)theta[i] * (double)theta[i];
    return sum;
}

static double differentiate(void)
{
    for (int i = 0; i < SIZE; i++)
        gradient[i] = (float)(curvature_of(i) * (double)theta[i]);
    return loss();
}

static void describe(fgs_scope *scope)
{
    weight_id = register_plain(scope, "weight", WEIGHTS);
    bias_id = register_plain(scope, "bias", BIASES);
    fgs_dltensor weight = F32(theta, WEIGHTS), bias = F32(theta + WEIGHTS, BIASES);
    fgs_dltensor weight_gradient = F32(gradient, WEIGHTS), bias_gradient = F32(gradient + WEIGHTS, BIASES);
    OK(fgs_bind(scope, weight_id, FGS_PARAM, &weight));
    OK(fgs_bind(scope, weight_id, FGS_GRAD, &weight_gradient));
    OK(fgs_bind(scope, bias_id, FGS_PARAM, &bias));
    OK(fgs_bind(scope, bias_id, FGS_GRAD, &bias_gradient));
}

/* The trainer's part of a run. */
static uint32_t measure(fgs_scope *scope, const fgs_curvature *options)
{
    uint32_t gradients = 0;
    fgs_curvature_request request = FGS_CURVATURE_REQUEST_INIT;
    OK(fgs_curvature_begin(scope, options));
    for (;;) {
        OK(fgs_curvature_next(scope, &request));
        if (request.want == FGS_CURVATURE_DONE)
            break;
        CHECK(request.index < request.total);
        gradients += request.want == FGS_CURVATURE_GRADIENT;
        double found = request.want == FGS_CURVATURE_GRADIENT ? differentiate() : loss();
        OK(fgs_curvature_submit(scope, found, 1.0, NULL));
    }
    OK(fgs_curvature_end(scope));
    return gradients;
}

int main(void)
{
    float before[SIZE];
    fill(theta, SIZE, 7);
    fgs_scope *scope = open_scope();
    describe(scope);

    fgs_curvature options = FGS_CURVATURE_INIT;
    options.task = "first";
    options.lanczos_steps = SIZE;
    options.blocks = &bias_id;
    options.block_count = 1;
    options.path_points = POINTS;
    OK(fgs_task_begin(scope, "first"));
    memcpy(before, theta, sizeof theta);
    uint32_t gradients = measure(scope, &options);
    CHECK(memcmp(theta, before, sizeof theta) == 0);
    /* Each vector takes two gradients: Lanczos here and in the bias, 7 + 8 samples, 3 · 4 for the trace of the bias; one is
     * taken where the weights are. Lanczos may be done early. */
    CHECK(gradients <= 1 + 2 * (SIZE + BIASES + 7 + 8 + 12));
    OK(fgs_task_end(scope));

    /* The weights move away from the snapshot, by 1 % of each. */
    OK(fgs_task_begin(scope, "second"));
    OK(fgs_step_begin(scope, 1));
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    for (int i = 0; i < SIZE; i++)
        theta[i] *= 1.01f;
    OK(fgs_step_end(scope, 1, NULL));
    memcpy(before, theta, sizeof theta);
    measure(scope, &options);
    CHECK(memcmp(theta, before, sizeof theta) == 0);

    /* A run may be left at any moment. */
    fgs_curvature_request request = FGS_CURVATURE_REQUEST_INIT;
    OK(fgs_curvature_begin(scope, &options));
    OK(fgs_curvature_next(scope, &request));
    OK(fgs_curvature_submit(scope, differentiate(), 1.0, NULL));
    OK(fgs_curvature_next(scope, &request));
    CHECK(memcmp(theta, before, sizeof theta) != 0);
    OK(fgs_step_begin(scope, 2));
    CHECK(memcmp(theta, before, sizeof theta) == 0);
    OK(fgs_step_end(scope, 0, NULL));

    ring all = ring_of(scope);
    const fgs_record *base = of_model(&all, "curvature", 0), *now = of_model(&all, "curvature", 1);
    CHECK(has_flag(&all, base, "base") && !has_flag(&all, now, "base"));
    double trace = SIZE * (SIZE + 1) / 2.0;
    /* Signs along the axes of the Hessian give its trace without any spread; what is left is rounding of products,
     * 2⁻²⁴/10⁻³ of each, and of largest eigenvalues likewise. */
    CHECK_WITHIN(value(&all, base, "largest"), (double)SIZE, 1e-3 * SIZE);
    CHECK_WITHIN(value(&all, base, "trace"), trace, 1e-3 * trace);
    double relative = 0.0, drift = 0.0, along = 0.0;
    for (int i = 0; i < SIZE; i++) {
        double t = (double)before[i], d = t * (0.01 / 1.01);
        relative += curvature_of(i) * t * t;
        along += curvature_of(i) * d * d;
        drift += d * d;
    }
    CHECK_WITHIN(value(&all, now, "relative_trace"), relative, 1e-3 * relative);
    CHECK_WITHIN(value(&all, now, "along_drift"), along / drift, 1e-3 * along / drift);
    CHECK_WITHIN(value(&all, now, "loss"), 0.5 * relative, 1e-12 * relative);
    CHECK_WITHIN(value(&all, now, "along_old"), SIZE - 1.0, 1e-3 * SIZE);
    const fgs_record *bias = of_tensor(&all, "curvature", 0, bias_id);
    CHECK(has_flag(&all, bias, "block"));
    CHECK_WITHIN(value(&all, bias, "largest"), (double)SIZE, 1e-3 * SIZE);
    double own = 0.0;
    for (int i = WEIGHTS; i < SIZE; i++)
        own += curvature_of(i);
    CHECK_WITHIN(value(&all, bias, "trace"), own, 1e-3 * own + 4.0 * value(&all, bias, "trace_error"));
    const fgs_record *flattening = of_model(&all, "flattening", 1);
    CHECK_WITHIN(value(&all, flattening, "largest_ratio"), 1.0, 2e-3);
    CHECK_WITHIN(value(&all, flattening, "trace_ratio"), 1.0, 2e-3);
    CHECK(count_of(&all, "loss_path", 1) == POINTS && count_of(&all, "loss_path", 0) == 0);
    CHECK(count_of(&all, "eigenvalue", 0) == 3 && count_of(&all, "density", 0) > 3);
    const fgs_record *fault = of_model(&all, "fault", 1);
    CHECK(strstr(name_of(&all, FGS_NAME_FAULT, (uint32_t)value(&all, fault, "code")), "curvature") != NULL);
    ring_free(&all);
    OK(fgs_close(scope));
    return RESULT();
}
