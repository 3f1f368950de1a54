/* Trainers that never have all gradients at once hand them over one by one, whole or in parts, from callbacks. What is
 * measured is the same as with bound tensors. */

#include "check.h"

enum { TENSORS = 3, ROWS = 8, COLUMNS = 12, SIZE = ROWS * COLUMNS, BATCHES = 3, STEPS = 4, PARTS = 3 };

/* Where a tensor is cut when it is fed in parts: in the middle of rows and of heads. */
static const uint64_t CUTS[PARTS + 1] = {0, 17, 55, SIZE};

typedef enum { BOUND, FED_WHOLE, FED_IN_PARTS } style;

typedef struct {
    style how;
    fgs_scope *scope;
    uint32_t ids[TENSORS];
    float gradient[SIZE];                /* one buffer, used again for each tensor when fed */
    float gradients[TENSORS][SIZE], parameters[TENSORS][SIZE];
} trainer;

/* The same gradient in every style. */
static void differentiate(float *gradient, uint32_t moment, int tensor)
{
    fill(gradient, SIZE, 1000 * moment + (uint32_t)tensor);
}

static void open_trainer(trainer *t, style how)
{
    static const char *names[TENSORS] = {"q", "o", "mlp"};
    static const uint32_t roles[TENSORS] = {FGS_ROLE_QUERY, FGS_ROLE_OUTPUT, FGS_ROLE_MLP_OUT};
    t->how = how;
    t->scope = open_scope();
    for (int k = 0; k < TENSORS; k++) {
        fgs_tensor tensor = FGS_TENSOR_INIT;
        tensor.name = names[k];
        tensor.role = roles[k];
        tensor.numel = SIZE;
        tensor.rows = ROWS;
        tensor.cols = COLUMNS;
        tensor.head_count = 4;
        OK(fgs_register(t->scope, &tensor, &t->ids[k]));
        fill(t->parameters[k], SIZE, 77 + (uint32_t)k);
        fgs_dltensor parameters = F32(t->parameters[k], ROWS, COLUMNS), gradients = F32(t->gradients[k], ROWS, COLUMNS);
        OK(fgs_bind(t->scope, t->ids[k], FGS_PARAM, &parameters));
        if (how == BOUND)
            OK(fgs_bind(t->scope, t->ids[k], FGS_GRAD, &gradients));
    }
}

/* Hands one tensor's gradient over: of a step, or of a batch of the reference of `task`. */
static void feed(trainer *t, int k, const char *task)
{
    fgs_dltensor whole = F32(t->gradient, ROWS, COLUMNS);
    if (t->how == FED_WHOLE) {
        if (task)
            OK(fgs_reference_feed(t->scope, task, t->ids[k], &whole, NULL, 0.5, NULL));
        else
            OK(fgs_gradient_feed(t->scope, t->ids[k], &whole, NULL, 0.5, NULL));
        return;
    }
    for (int part = PARTS - 1; part >= 0; part--) {
        fgs_shard shard = FGS_SHARD_INIT;
        shard.offset = CUTS[part];
        fgs_dltensor piece = F32(t->gradient + CUTS[part], (int64_t)(CUTS[part + 1] - CUTS[part]));
        if (task)
            OK(fgs_reference_feed(t->scope, task, t->ids[k], &piece, &shard, 0.5, NULL));
        else
            OK(fgs_gradient_feed(t->scope, t->ids[k], &piece, &shard, 0.5, NULL));
    }
}

static void backward(trainer *t, uint32_t moment, const char *task)
{
    for (int k = 0; k < TENSORS; k++) {
        differentiate(t->gradients[k], moment, k);
        if (t->how == BOUND)
            continue;
        differentiate(t->gradient, moment, k);
        feed(t, k, task);
        memset(t->gradient, 0xff, sizeof t->gradient); /* the buffer is used again: nothing is read after the call */
    }
}

static void train_step(trainer *t, uint32_t step)
{
    OK(fgs_step_begin(t->scope, step));
    backward(t, step, NULL);
    /* Without a moment at which all gradients are there, fgs_gradients_ready is left out. */
    if (t->how == BOUND)
        OK(fgs_gradients_ready(t->scope, 0.5, 0, NULL));
    for (int k = 0; k < TENSORS; k++)
        for (int i = 0; i < SIZE; i++)
            t->parameters[k][i] -= 0.01f * t->gradients[k][i];
    OK(fgs_step_end(t->scope, 1, NULL));
    OK(fgs_flush(t->scope));
}

static ring run(trainer *t)
{
    OK(fgs_task_begin(t->scope, "first"));
    for (uint32_t step = 0; step < STEPS; step++)
        train_step(t, step);
    for (uint32_t batch = 0; batch < BATCHES; batch++) {
        backward(t, 100 + batch, "first");
        OK(fgs_reference_add(t->scope, "first", 16, 0.5, NULL));
    }
    OK(fgs_task_end(t->scope));
    OK(fgs_task_begin(t->scope, "second"));
    for (uint32_t step = STEPS; step < 2 * STEPS; step++)
        train_step(t, step);
    OK(fgs_task_end(t->scope));
    return ring_of(t->scope);
}

/* The same records in the same order, with the same values. */
static void compare(const ring *bound, const ring *fed)
{
    CHECK(bound->count == fed->count);
    for (size_t i = 0; i < bound->count && i < fed->count && failed_checks < 20; i++) {
        const fgs_record *x = &bound->records[i], *y = &fed->records[i];
        CHECK(x->kind == y->kind && x->level == y->level && x->tensor == y->tensor && x->slice == y->slice);
        CHECK(x->step == y->step && x->flags == y->flags && x->task == y->task && x->reference == y->reference);
        for (uint32_t k = 0; k < 10; k++) {
            const char *name = name_of(bound, FGS_NAME_VALUE, (uint32_t)x->kind << 8 | k);
            int is_same = isnan(x->values[k]) ? isnan(y->values[k]) : fabs(x->values[k] - y->values[k]) <= 2e-6 * (1.0 + fabs(x->values[k]));
            if (strcmp(name, "cost_seconds") != 0 && !CHECK(is_same))
                fprintf(stderr, "  %s of %s: bound %.17g, fed %.17g\n", name, name_of(bound, FGS_NAME_KIND, x->kind),
                        x->values[k], y->values[k]);
        }
    }
}

int main(void)
{
    static trainer trainers[3];
    ring rings[3];
    for (int how = BOUND; how <= FED_IN_PARTS; how++) {
        open_trainer(&trainers[how], (style)how);
        rings[how] = run(&trainers[how]);
    }
    CHECK(count_of(&rings[BOUND], "interference", 2 * STEPS - 1) > TENSORS * 4);
    compare(&rings[BOUND], &rings[FED_WHOLE]);
    compare(&rings[BOUND], &rings[FED_IN_PARTS]);

    /* One step has one scale, and is fed before its gradients are ready. */
    trainer *t = &trainers[FED_WHOLE];
    fgs_dltensor tensor = F32(t->gradients[0], ROWS, COLUMNS);
    OK(fgs_step_begin(t->scope, 100));
    OK(fgs_gradient_feed(t->scope, t->ids[0], &tensor, NULL, 0.5, NULL));
    REFUSED(fgs_gradient_feed(t->scope, t->ids[1], &tensor, NULL, 0.25, NULL), FGS_ERROR_INVALID, "scale");
    REFUSED(fgs_gradients_ready(t->scope, 0.25, 0, NULL), FGS_ERROR_INVALID, "scale");
    OK(fgs_gradients_ready(t->scope, 0.5, 0, NULL));
    REFUSED(fgs_gradient_feed(t->scope, t->ids[1], &tensor, NULL, 0.5, NULL), FGS_ERROR_PHASE, "fgs_gradient_feed");
    OK(fgs_step_end(t->scope, 1, NULL));

    for (int how = BOUND; how <= FED_IN_PARTS; how++) {
        ring_free(&rings[how]);
        OK(fgs_close(trainers[how].scope));
    }
    return RESULT();
}
