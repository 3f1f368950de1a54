/* Threads: any thread may call, calls on one scope are carried out one after another, scopes know nothing of each other,
 * and every thread has its own last error. */

#include "check.h"
#include <pthread.h>

enum { FEEDERS = 4, SIZE = 1000, STEPS = 20, SCOPES = 3, REPETITIONS = 200 };

/* ---- several threads hand over the gradients of one step ---- */

typedef struct {
    fgs_scope *scope;
    uint32_t id;
    float gradient[SIZE];
    fgs_status status;
} feeder;

static void *feed(void *argument)
{
    feeder *f = (feeder *)argument;
    fgs_dltensor data = F32(f->gradient, SIZE);
    f->status = fgs_gradient_feed(f->scope, f->id, &data, NULL, 1.0, NULL);
    return NULL;
}

static void feed_one_scope_from_many_threads(void)
{
    static feeder feeders[FEEDERS];
    fgs_scope *scope = open_scope();
    double squares = 0.0;
    for (uint32_t k = 0; k < FEEDERS; k++) {
        char name[16];
        snprintf(name, sizeof name, "weight%u", k);
        feeders[k].scope = scope;
        feeders[k].id = register_plain(scope, name, SIZE);
        fill(feeders[k].gradient, SIZE, k);
        squares += dot(feeders[k].gradient, feeders[k].gradient, SIZE);
    }
    for (uint64_t step = 0; step < STEPS; step++) {
        OK(fgs_step_begin(scope, step));
        pthread_t threads[FEEDERS];
        for (int k = 0; k < FEEDERS; k++)
            pthread_create(&threads[k], NULL, feed, &feeders[k]);
        for (int k = 0; k < FEEDERS; k++) {
            pthread_join(threads[k], NULL);
            OK(feeders[k].status);
        }
        OK(fgs_step_end(scope, 1, NULL));
        OK(fgs_flush(scope));
    }
    ring all = ring_of(scope);
    for (uint64_t step = 0; step < STEPS; step++) {
        CHECK_NEAR(value(&all, of_model(&all, "gradient", step), "squares"), squares);
        CHECK(value(&all, of_model(&all, "step", step), "tensors") == FEEDERS);
    }
    ring_free(&all);
    OK(fgs_close(scope));
}

/* ---- one scope per thread ---- */

static void *train_alone(void *argument)
{
    int number = *(int *)argument;
    float gradient[4] = {(float)number, 0.0f, 0.0f, 0.0f};
    fgs_scope *scope = open_scope();
    fgs_dltensor data = F32(gradient, 4);
    OK(fgs_bind(scope, register_plain(scope, "weight", 4), FGS_GRAD, &data));
    for (uint64_t step = 0; step < STEPS; step++)
        measure_step(scope, step);
    ring all = ring_of(scope);
    for (uint64_t step = 0; step < STEPS; step++)
        if (of_model(&all, "gradient", step)->values[0] != number)
            *(int *)argument = -1;
    ring_free(&all);
    OK(fgs_close(scope));
    return NULL;
}

static void train_many_scopes(void)
{
    pthread_t threads[SCOPES];
    int numbers[SCOPES];
    for (int k = 0; k < SCOPES; k++) {
        numbers[k] = k + 1;
        pthread_create(&threads[k], NULL, train_alone, &numbers[k]);
    }
    for (int k = 0; k < SCOPES; k++) {
        pthread_join(threads[k], NULL);
        CHECK(numbers[k] == k + 1);
    }
}

/* ---- other threads register, evaluate, flush and read while one trains ---- */

static fgs_scope *shared;
static const char *shared_path;
static volatile int mishaps; /* only ever raised */

static void *evaluate(void *unused)
{
    (void)unused;
    for (int i = 0; i < REPETITIONS; i++) {
        if (fgs_record_eval(shared, "task", "accuracy", 0.5, 1) != FGS_OK)
            mishaps = 1;
        if (i % 20 == 0 && fgs_flush(shared) != FGS_OK)
            mishaps = 1;
    }
    return NULL;
}

static void *register_more(void *unused)
{
    (void)unused;
    static float gradient[8] = {1.0f};
    for (int i = 0; i < REPETITIONS; i++) {
        char name[32];
        snprintf(name, sizeof name, "more%d", i);
        fgs_tensor tensor = FGS_TENSOR_INIT;
        tensor.name = name;
        tensor.numel = 8;
        uint32_t id;
        fgs_dltensor data = F32(gradient, 8);
        if (fgs_register(shared, &tensor, &id) != FGS_OK || fgs_bind(shared, id, FGS_GRAD, &data) != FGS_OK)
            mishaps = 1;
    }
    return NULL;
}

/* Every record once and in order: what is lost is counted, and here nothing is. */
static void *watch(void *unused)
{
    (void)unused;
    fgs_reader *reader = NULL;
    if (fgs_reader_open(shared_path, &reader) != FGS_OK)
        mishaps = 1;
    fgs_record record;
    uint64_t lost = 0, last_step = 0;
    fgs_status status;
    while (mishaps == 0 && (status = fgs_reader_next(reader, &record, &lost)) != FGS_CLOSED) {
        const char *name;
        if (status == FGS_OK && (lost > 0 || record.step < last_step ||
                                 fgs_reader_name(reader, FGS_NAME_KIND, record.kind, &name) != FGS_OK))
            mishaps = 1;
        last_step = status == FGS_OK ? record.step : last_step;
    }
    fgs_reader_close(reader);
    return NULL;
}

static void share_one_scope(void)
{
    shared = open_scope();
    OK(fgs_ring_path(shared, &shared_path));
    char path[4096];
    snprintf(path, sizeof path, "%s", shared_path);
    shared_path = path;
    static float gradient[SIZE];
    fgs_dltensor data = F32(gradient, SIZE);
    OK(fgs_bind(shared, register_plain(shared, "weight", SIZE), FGS_GRAD, &data));
    pthread_t evaluator, registrar, watcher;
    pthread_create(&evaluator, NULL, evaluate, NULL);
    pthread_create(&registrar, NULL, register_more, NULL);
    pthread_create(&watcher, NULL, watch, NULL);
    OK(fgs_task_begin(shared, "training"));
    for (uint64_t step = 0; step < STEPS; step++)
        measure_step(shared, step);
    pthread_join(evaluator, NULL);
    pthread_join(registrar, NULL);
    OK(fgs_task_end(shared));
    /* No call may be going on when the scope is closed; readers go on by themselves. */
    OK(fgs_close(shared));
    pthread_join(watcher, NULL);
    CHECK(mishaps == 0);
}

/* ---- errors belong to the thread that met them ---- */

static void *fail_otherwise(void *argument)
{
    int *is_own = (int *)argument;
    *is_own = strcmp(fgs_last_error(), "") == 0;
    fgs_step_begin(NULL, 0);
    *is_own &= strstr(fgs_last_error(), "scope") != NULL;
    return NULL;
}

static void keep_errors_apart(void)
{
    REFUSED(fgs_open(NULL, NULL), FGS_ERROR_NULL, "out");
    int is_own = 0;
    pthread_t thread;
    pthread_create(&thread, NULL, fail_otherwise, &is_own);
    pthread_join(thread, NULL);
    CHECK(is_own);
    CHECK(strstr(fgs_last_error(), "out") != NULL);
}

int main(void)
{
    feed_one_scope_from_many_threads();
    train_many_scopes();
    share_one_scope();
    keep_errors_apart();
    return RESULT();
}
