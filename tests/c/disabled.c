/* FGS_DISABLE=1: the scope is valid, every call succeeds, and nothing is created: no file, no thread, no record. */

#include "check.h"
#include <dirent.h>

/* Entries of a directory, without "." and "..". */
static int entries(const char *path)
{
    DIR *directory = opendir(path);
    int count = 0;
    while (directory != NULL && readdir(directory) != NULL)
        count++;
    if (directory != NULL)
        closedir(directory);
    return count - 2;
}

int main(void)
{
    setenv("FGS_DISABLE", "1", 1);
    /* Not even looked at. */
    setenv("FGS_EVERY", "often", 1);
    int threads = entries("/proc/self/task");

    fgs_scope *scope = NULL;
    OK(fgs_open(NULL, &scope));
    CHECK(scope != NULL);
    const char *path = NULL;
    OK(fgs_ring_path(scope, &path));
    CHECK(strcmp(path, "") == 0);

    float gradient[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    fgs_dltensor data = F32(gradient, 4), on_gpu = data;
    on_gpu.device.device_type = 2;
    int stream = 0;
    uint32_t id = register_plain(scope, "weight", 4);
    fgs_shard shard = FGS_SHARD_INIT;
    OK(fgs_bind(scope, id, FGS_GRAD, &data));
    OK(fgs_bind(scope, id, FGS_PARAM, &on_gpu));
    OK(fgs_bind_shard(scope, id, FGS_MASTER, &data, &shard));
    OK(fgs_task_begin(scope, "task"));
    OK(fgs_step_begin(scope, 0));
    OK(fgs_gradient_feed(scope, id, &data, NULL, 1.0, NULL));
    /* Neither order nor streams matter. */
    OK(fgs_gradients_ready(scope, 1.0, 0, &stream));
    OK(fgs_gradients_ready(scope, 1.0, 0, &stream));
    OK(fgs_step_end(scope, 1, &stream));
    OK(fgs_reference_feed(scope, "task", id, &data, NULL, 1.0, &stream));
    OK(fgs_reference_add(scope, "task", 1, 1.0, &stream));
    OK(fgs_snapshot(scope, NULL, &stream));
    OK(fgs_record_loss(scope, "task", 1.0));
    OK(fgs_record_eval(scope, "task", "accuracy", 1.0, 1));
    fgs_probe probe = FGS_PROBE_INIT;
    fgs_attention attention = FGS_ATTENTION_INIT;
    OK(fgs_probe_begin(scope, &probe));
    OK(fgs_probe_batch(scope, 1, 4, NULL, 0));
    OK(fgs_probe_hidden(scope, 0, &data, &stream));
    OK(fgs_probe_attention(scope, 0, &attention, &stream));
    OK(fgs_probe_head_output(scope, 0, 2, 0, &data, NULL, &stream));
    OK(fgs_probe_router(scope, 0, &data, 1, &stream));
    OK(fgs_probe_end(scope));
    OK(fgs_probe_abandon(scope));
    OK(fgs_head_effect(scope, "task", 0, 0, 1.0, 1.0, NAN));
    fgs_curvature curvature = FGS_CURVATURE_INIT;
    fgs_curvature_request request = FGS_CURVATURE_REQUEST_INIT;
    request.want = FGS_CURVATURE_GRADIENT;
    OK(fgs_curvature_begin(scope, &curvature));
    /* A trainer's loop ends at once. */
    OK(fgs_curvature_next(scope, &request));
    CHECK(request.want == FGS_CURVATURE_DONE);
    OK(fgs_curvature_submit(scope, 1.0, 1.0, &stream));
    OK(fgs_curvature_end(scope));
    OK(fgs_task_end(scope));
    OK(fgs_task_end(scope));
    OK(fgs_flush(scope));

    CHECK(entries("/proc/self/task") == threads);
    CHECK(entries(getenv("FGS_RING_DIR")) == 0);
    OK(fgs_close(scope));
    return RESULT();
}
