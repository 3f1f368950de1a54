/* A process that forks after fgs_open, as data loaders do. The scope stays the parent's: the child is told so at once,
 * never waits for threads that it does not have, and may open a scope of its own. */

#include "check.h"
#include <sys/wait.h>
#include <unistd.h>

static float gradient[4] = {3.0f, 0.0f, 0.0f, 4.0f};

static void child(fgs_scope *scope, uint32_t id)
{
    fgs_dltensor data = F32(gradient, 4);
    uint32_t other;
    fgs_tensor tensor = FGS_TENSOR_INIT;
    tensor.name = "other";
    tensor.numel = 4;
    REFUSED(fgs_register(scope, &tensor, &other), FGS_ERROR_FORKED, "forked");
    REFUSED(fgs_bind(scope, id, FGS_GRAD, &data), FGS_ERROR_FORKED, "forked");
    REFUSED(fgs_step_begin(scope, 5), FGS_ERROR_FORKED, "forked");
    REFUSED(fgs_gradients_ready(scope, 1.0, 0, NULL), FGS_ERROR_FORKED, "forked");
    REFUSED(fgs_step_end(scope, 1, NULL), FGS_ERROR_FORKED, "forked");
    REFUSED(fgs_record_loss(scope, "task", 1.0), FGS_ERROR_FORKED, "forked");
    REFUSED(fgs_task_end(scope), FGS_ERROR_FORKED, "forked");
    REFUSED(fgs_flush(scope), FGS_ERROR_FORKED, "forked");
    OK(fgs_close(scope));

    fgs_scope *own = open_scope();
    OK(fgs_bind(own, register_plain(own, "weight", 4), FGS_GRAD, &data));
    measure_step(own, 0);
    ring all = ring_of(own);
    CHECK(value(&all, of_model(&all, "gradient", 0), "norm") == 5.0);
    ring_free(&all);
    OK(fgs_close(own));
}

/* Sampled steps of a task after an earlier one, whose analysis needs more than sums. Waits for none of them. */
static void two_tasks(fgs_scope *scope, uint64_t step, uint64_t steps, int begin)
{
    if (begin) {
        OK(fgs_task_begin(scope, "first"));
        for (uint64_t i = 0; i < 4; i++)
            measure_step(scope, step++);
        OK(fgs_task_end(scope));
        OK(fgs_task_begin(scope, "second"));
    }
    for (uint64_t i = 0; i < steps; i++, step++) {
        OK(fgs_step_begin(scope, step));
        OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
        OK(fgs_step_end(scope, 1, NULL));
    }
}

/* Children that are forked at any moment of the parent's analysis can do all of it themselves. */
static void busy_parent(void)
{
    fgs_dltensor data = F32(gradient, 4);
    fgs_scope *scope = open_scope();
    OK(fgs_bind(scope, register_plain(scope, "weight", 4), FGS_GRAD, &data));
    two_tasks(scope, 0, 0, 1);
    for (uint64_t k = 0; k < 20; k++) {
        two_tasks(scope, 4 + 5 * k, 5, 0);
        pid_t pid = fork();
        if (pid == 0) {
            alarm(20); /* ends a child that hangs */
            OK(fgs_close(scope));
            fgs_scope *own = open_scope();
            OK(fgs_bind(own, register_plain(own, "weight", 4), FGS_GRAD, &data));
            two_tasks(own, 0, 3, 1);
            OK(fgs_flush(own));
            OK(fgs_close(own));
            _exit(RESULT());
        }
        int status = -1;
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    OK(fgs_close(scope));
}

int main(void)
{
    fgs_scope *scope = open_scope();
    uint32_t id = register_plain(scope, "weight", 4);
    fgs_dltensor data = F32(gradient, 4);
    OK(fgs_bind(scope, id, FGS_GRAD, &data));
    OK(fgs_task_begin(scope, "task"));
    measure_step(scope, 0);
    /* In the middle of a step, which the child must not end. */
    OK(fgs_step_begin(scope, 1));

    pid_t pid = fork();
    if (pid == 0) {
        child(scope, id);
        _exit(RESULT());
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);

    /* The parent goes on as if nothing had happened. */
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    OK(fgs_step_end(scope, 1, NULL));
    measure_step(scope, 2);
    ring all = ring_of(scope);
    for (uint64_t step = 0; step < 3; step++)
        CHECK(value(&all, of_model(&all, "gradient", step), "norm") == 5.0);
    CHECK(all.end == FGS_EMPTY);
    ring_free(&all);
    OK(fgs_close(scope));

    busy_parent();
    return RESULT();
}
