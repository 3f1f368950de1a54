// forgetscope: a live instrument for catastrophic forgetting, built into the trainer.
// SPDX-License-Identifier: MIT OR Apache-2.0
//
//     fgs_scope *scope = NULL;
//     fgs_open(NULL, &scope);                              // options from FGS_CONFIG and FGS_* variables
//     for (int i = 0; i < n; i++) {
//         fgs_tensor t = FGS_TENSOR_INIT;
//         t.name = name[i]; t.role = role[i]; t.layer = layer[i]; t.head_count = 12; t.numel = numel[i];
//         fgs_register(scope, &t, &id[i]);
//         fgs_bind(scope, id[i], FGS_GRAD, &grad[i]);      // grad[i]: a DLPack tensor
//         fgs_bind(scope, id[i], FGS_PARAM, &param[i]);
//     }
//     fgs_task_begin(scope, "legal");
//     for (...) {                                          // each optimizer step
//         fgs_step_begin(scope, step);
//         fgs_gradients_ready(scope, clip, 0, NULL);       // gradients final, clip still to be applied
//         fgs_step_end(scope, 1, NULL);                    // parameters updated
//     }
//     fgs_task_end(scope);                                 // keeps a snapshot: drift is measured from here
//     fgs_close(scope);
//
// Errors.    Functions return an fgs_status; negative values are errors. A failed call did nothing and says why in
//            fgs_last_error(). Nothing ever aborts, throws, or changes training.
// Threads.   Functions on one scope may be called from any thread; they are carried out one after another.
// Ownership. Scopes and readers belong to the caller until closed. Strings that are passed in are copied. Strings that
//            come out belong to the library; each function says for how long. Tensors are read, never kept, and never
//            written, but for parameters between fgs_curvature_begin and the end of that run.
// Structs.   Initialise every struct with its FGS_..._INIT macro: fields may be added at the end in later versions.
// Streams.   Arguments called `stream` (a CUstream or cudaStream_t) order device memory; for host memory they are NULL. What
//            is said to be read during a call is, in device memory, read in the order of that stream: when the stream gets
//            there, and before whatever is enqueued after the call. Calls without such an argument (fgs_task_end with its
//            snapshot, the end of a curvature run) use the stream of the latest call that had one: keep it until then.
// Graphs.    fgs_step_begin, fgs_gradients_ready and fgs_step_end may be called once while a stream is captured into a CUDA
//            graph. Every replay is then a step, counted on from the captured one. What is bound and kept at the capture is
//            what replays are measured against: capture again when a task ends. Nothing else can be captured. Destroy
//            graphs before fgs_close, and contexts of your own making after it.


#ifndef FORGETSCOPE_H
#define FORGETSCOPE_H

/* Generated from src/abi by cbindgen: change the documentation there, then `make header`. */

#include <stddef.h>
#include <stdint.h>
/* Version that this header belongs to: major * 10000 + minor * 100 + patch. fgs_version() gives the library's. */
#define FGS_VERSION_MAJOR 0
#define FGS_VERSION_MINOR 1
#define FGS_VERSION_PATCH 0
#define FGS_VERSION (FGS_VERSION_MAJOR * 10000 + FGS_VERSION_MINOR * 100 + FGS_VERSION_PATCH)

/* Second field of every struct: tells an initialised struct from garbage. */
#define FGS_MAGIC 0x31534746u

/* "Not set", in fields of this type. */
#define FGS_UNSET_U32 UINT32_MAX
#define FGS_UNSET_U64 UINT64_MAX

/* A DLPack tensor. If <dlpack/dlpack.h> is included before this header it is DLPack's own type; else it is declared
 * here with the same layout, and a DLTensor* may be cast to fgs_dltensor*. Consumers read it and never free it. */
#ifdef DLPACK_DLPACK_H_
typedef DLTensor fgs_dltensor;
#else
typedef struct fgs_dltensor {
    /* First byte of the allocation. */
    void *data;
    struct {
        /* DLDeviceType: 1 host, 2 CUDA, 3 pinned host, 13 CUDA managed. */
        int32_t device_type;
        int32_t device_id;
    } device;
    int32_t ndim;
    struct {
        /* DLDataTypeCode: 2 float, 4 bfloat, 10 float8_e4m3fn, 12 float8_e5m2. */
        uint8_t code;
        uint8_t bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape;
    /* In elements; NULL: row-major without gaps. */
    int64_t *strides;
    /* From data to the first element. */
    uint64_t byte_offset;
} fgs_dltensor;
#endif


// Outcome of a call.
//
// Zero is success, positive values are answers that are no errors, negative values are errors: the call did nothing,
// `fgs_last_error()` says why, and training may go on as if it had not been made.
enum fgs_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Done.
    FGS_OK = 0,
    // `fgs_reader_next`: nothing new at present.
    FGS_EMPTY = 1,
    // `fgs_reader_next`: the writer has ended and everything was read.
    FGS_CLOSED = 2,
    // A pointer that is needed is NULL.
    FGS_ERROR_NULL = -1,
    // An argument has a value that it may not have.
    FGS_ERROR_INVALID = -2,
    // A struct was not initialised with its FGS_..._INIT macro, or its header is newer than this library.
    FGS_ERROR_STRUCT = -3,
    // There is nothing with this id, name or path.
    FGS_ERROR_NOT_FOUND = -4,
    // The call does not fit here in the life of a step or task.
    FGS_ERROR_PHASE = -5,
    // Legal, but not something that this build measures.
    FGS_ERROR_UNSUPPORTED = -6,
    // A configuration file, environment variable or option cannot be used.
    FGS_ERROR_CONFIG = -7,
    // The ring could not be created or read.
    FGS_ERROR_RING = -8,
    // The system refused threads or memory.
    FGS_ERROR_SYSTEM = -9,
    // A bug in forgetscope was caught at the boundary.
    FGS_ERROR_INTERNAL = -10,
    // The process was forked after `fgs_open`; the scope belongs to the parent.
    FGS_ERROR_FORKED = -11,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_status fgs_status;
#else
typedef int32_t fgs_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a tensor does in the model. Decides the default head map, and sums are taken per role.
enum fgs_role
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Anything else.
    FGS_ROLE_OTHER = 0,
    // Token embedding.
    FGS_ROLE_EMBEDDING = 1,
    // Learned position embedding.
    FGS_ROLE_POSITION = 2,
    // Query projection; heads are bands of rows.
    FGS_ROLE_QUERY = 3,
    // Key projection; heads are bands of rows.
    FGS_ROLE_KEY = 4,
    // Value projection; heads are bands of rows.
    FGS_ROLE_VALUE = 5,
    // Query, key and value in one tensor: see fgs_head_layout.
    FGS_ROLE_QKV = 6,
    // Attention output projection; heads are bands of columns.
    FGS_ROLE_OUTPUT = 7,
    // Attention output gate; heads are bands of rows.
    FGS_ROLE_GATE = 8,
    // First matrix of the MLP.
    FGS_ROLE_MLP_IN = 9,
    // Last matrix of the MLP.
    FGS_ROLE_MLP_OUT = 10,
    // Gate matrix of a gated MLP.
    FGS_ROLE_MLP_GATE = 11,
    // Scale or shift of a normalisation.
    FGS_ROLE_NORM = 12,
    // Router of a mixture of experts.
    FGS_ROLE_ROUTER = 13,
    // Output head.
    FGS_ROLE_LM_HEAD = 14,
    // Bias that is not split into heads.
    FGS_ROLE_BIAS = 15,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_role fgs_role;
#else
typedef uint32_t fgs_role;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How the heads of a tensor lie along its head axis.
enum fgs_head_layout
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // By role, if head_count is set: QKV concatenated; query, key, value, gate and output separate; else none.
    FGS_HEADS_AUTO = 0,
    // The tensor is one slice.
    FGS_HEADS_NONE = 1,
    // One head after another, all of the tensor's own role.
    FGS_HEADS_SEPARATE = 2,
    // All query heads, then all key heads, then all value heads (GPT-2, llm.c).
    FGS_HEADS_CONCATENATED = 3,
    // Per query group: its query heads, its key head, its value head (Megatron's linear_qkv).
    FGS_HEADS_INTERLEAVED = 4,
    // Per query group: its query heads, as many gate heads, its key head, its value head.
    FGS_HEADS_INTERLEAVED_GATED = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_head_layout fgs_head_layout;
#else
typedef uint32_t fgs_head_layout;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Which data of a tensor is meant.
enum fgs_data
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Gradient.
    FGS_GRAD = 0,
    // Parameters as the model uses them.
    FGS_PARAM = 1,
    // fp32 master copy of the parameters; measured instead of FGS_PARAM where bound, since bf16 hides small updates.
    FGS_MASTER = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_data fgs_data;
#else
typedef uint32_t fgs_data;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Bits of fgs_tensor.flags.
enum fgs_tensor_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Other ranks hold the same data; only the copy with `replica` 0 is measured, so that it counts once.
    FGS_TENSOR_REPLICATED = 1,
    // The tensor is another name of `tied_to`; it is not measured, so that the data counts once.
    FGS_TENSOR_TIED = 2,
    // The tensor belongs to one expert of a mixture of experts.
    FGS_TENSOR_EXPERT = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_tensor_flag fgs_tensor_flag;
#else
typedef uint32_t fgs_tensor_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Bits of `flags` of `fgs_gradients_ready`.
enum fgs_gradient_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // The gradients are this rank's own, before the data-parallel reduction. Records are marked, since their sums over
    // ranks are not those of the reduced gradient.
    FGS_GRADIENTS_UNREDUCED = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_gradient_flag fgs_gradient_flag;
#else
typedef uint32_t fgs_gradient_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Bits of `fgs_probe.flags`.
enum fgs_probe_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Later passes are compared with this one, whatever task is being trained.
    FGS_PROBE_BASE = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_probe_flag fgs_probe_flag;
#else
typedef uint32_t fgs_probe_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Which keys a query sees.
enum fgs_mask
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // All keys.
    FGS_MASK_NONE = 0,
    // Keys up to the query's own position.
    FGS_MASK_CAUSAL = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_mask fgs_mask;
#else
typedef uint32_t fgs_mask;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What `fgs_curvature_next` wants.
enum fgs_curvature_want
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Nothing any more: the parameters are as they were, the records are published.
    FGS_CURVATURE_DONE = 0,
    // The gradient of the task's probe batch at the parameters as they are now, in the bound gradients; and the loss.
    FGS_CURVATURE_GRADIENT = 1,
    // The loss of the same batch at the parameters as they are now; gradients are not read.
    FGS_CURVATURE_LOSS = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_curvature_want fgs_curvature_want;
#else
typedef uint32_t fgs_curvature_want;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What `fgs_reader_name` looks up.
enum fgs_name
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Name of a kind of record.
    FGS_NAME_KIND = 0,
    // Name of a value: id = kind << 8 | index.
    FGS_NAME_VALUE = 1,
    // Name of a task.
    FGS_NAME_TASK = 2,
    // Name of a tensor.
    FGS_NAME_TENSOR = 3,
    // Name of a role.
    FGS_NAME_ROLE = 4,
    // Name of a metric.
    FGS_NAME_METRIC = 5,
    // Name of a level.
    FGS_NAME_LEVEL = 6,
    // Name of a flag: id = the bit's value.
    FGS_NAME_FLAG = 7,
    // Name of a fault: id = value 0 of a fault record.
    FGS_NAME_FAULT = 8,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fgs_name fgs_name;
#else
typedef uint32_t fgs_name;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A reader of one ring. Opaque. One thread at a time; any number of readers, in any process.
typedef struct fgs_reader fgs_reader;

// An open instrument. Opaque; one per process or one per model, as the trainer likes.
//
// All functions that take a scope may be called from any thread; calls on one scope are carried out one after another.
typedef struct fgs_scope fgs_scope;

// Options of `fgs_open`. Initialise with `FGS_OPTIONS_INIT`, then set what differs from the defaults.
//
// Unset values are NULL, `FGS_UNSET_U32`, `FGS_UNSET_U64`, or negative. Precedence, lowest first: defaults, this struct,
// the TOML file named by the environment variable `FGS_CONFIG`, variables `FGS_*`.
typedef struct {
    // sizeof(fgs_options); set by FGS_OPTIONS_INIT.
    uint32_t size;
    // FGS_MAGIC; set by FGS_OPTIONS_INIT.
    uint32_t magic;
    // Name of the run, for people. Variable FGS_RUN.
    const char *run;
    // File of the ring, which must not exist. Default: a new file in /dev/shm. Variable FGS_RING.
    const char *ring_path;
    // Regular expression: only tensors whose name contains a match are measured. Variable FGS_INCLUDE.
    const char *include;
    // Regular expression: tensors whose name contains a match are not measured. Variable FGS_EXCLUDE.
    const char *exclude;
    // Records that the ring holds; rounded up to a power of two, 128 bytes each. Default 65536. Variable FGS_RING_SLOTS.
    uint64_t ring_slots;
    // A step is sampled when (step − start_step) is a multiple of this; 0: never. Default 10. Variable FGS_EVERY.
    uint64_t every;
    // First step that may be sampled. Default 0. Variable FGS_START_STEP.
    uint64_t start_step;
    // First step that is not sampled any more. Default: none. Variable FGS_END_STEP.
    uint64_t end_step;
    // Bytes for exact references, snapshots and copies, in each place that holds tensors (host, each device); beyond it
    // sketches are kept. Default: `reference_budget` of the memory of that place. Variable FGS_BUDGET_BYTES.
    uint64_t budget_bytes;
    // Share of the device's memory, 0 to 1. Default 0.02. Variable FGS_REFERENCE_BUDGET.
    double reference_budget;
    // Threads that measure tensors in host memory. Default: processors, at most 4. Variable FGS_THREADS.
    uint32_t threads;
    // Rank of this process. Default: from the launcher's environment, else 0. Variable FGS_RANK.
    uint32_t rank;
    // Number of ranks. Default: from the launcher's environment, else 1. Variable FGS_WORLD_SIZE.
    uint32_t world_size;
    // Buckets of the sketch of a head; a multiple of 256. Default 1024. Variable FGS_SKETCH_HEAD.
    uint32_t sketch_head;
    // Buckets of the sketch of a matrix without heads; a multiple of 256. Default 16384. Variable FGS_SKETCH_MATRIX.
    uint32_t sketch_matrix;
    // Sampled steps whose sketches are kept for noise correction and as trailing reference. Default 64. Variable
    // FGS_WINDOW.
    uint32_t window;
} fgs_options;

// A tensor of the model, as it is without sharding. Initialise with `FGS_TENSOR_INIT`.
//
// Needed: name, numel. Everything else has a default. Names identify tensors across ranks and runs: the seed of a
// tensor's sketch is made of its name, so that sketches of shards add up.
typedef struct {
    // sizeof(fgs_tensor); set by FGS_TENSOR_INIT.
    uint32_t size;
    // FGS_MAGIC; set by FGS_TENSOR_INIT.
    uint32_t magic;
    // Unique name, UTF-8, copied. With layer_count > 1 it must contain "{layer}", which is replaced by the number.
    const char *name;
    // Elements of the unsharded tensor.
    uint64_t numel;
    // Rows and columns of the unsharded tensor, row-major; both 0: taken from the data when it is first bound whole.
    // Needed for heads that are bands of columns if only shards are bound.
    uint64_t rows;
    // See rows.
    uint64_t cols;
    // fgs_role.
    uint32_t role;
    // Number of the layer, or −1.
    int32_t layer;
    // Number of the expert, or −1. Sets FGS_TENSOR_EXPERT.
    int32_t expert;
    // A label of the trainer's choice, such as the optimizer's parameter group.
    uint32_t group;
    // fgs_head_layout.
    uint32_t head_layout;
    // 0: heads are bands of rows; 1: of columns; FGS_UNSET_U32: by role (columns for FGS_ROLE_OUTPUT).
    uint32_t head_axis;
    // Query heads in this tensor; 0: not split.
    uint32_t head_count;
    // Key/value heads in this tensor; 0: as many as head_count. A separate key or value projection has only these.
    uint32_t kv_head_count;
    // Number of the first query head in the whole model: tensor parallelism with a tensor registered per rank.
    uint32_t head_offset;
    // Number of the first key/value head in the whole model.
    uint32_t kv_head_offset;
    // Bits of fgs_tensor_flag.
    uint32_t flags;
    // Which of several equal copies this is, with FGS_TENSOR_REPLICATED.
    uint32_t replica;
    // Id of the tensor that this one is another name of, with FGS_TENSOR_TIED.
    uint32_t tied_to;
    // Layers stacked in one buffer (llm.c): registers as many tensors, with consecutive ids and layers.
    uint32_t layer_count;
} fgs_tensor;

// Which elements of the unsharded tensor the local data is: `run_count` runs of `run_length` elements, the first at
// `offset`, one every `run_step`, all counted in the row-major order of the unsharded tensor. Initialise with
// `FGS_SHARD_INIT`.
//
// A flat range (ZeRO, Megatron's distributed optimizer): offset only. Rows of a matrix: offset = first row · columns.
// Columns of a matrix: offset = first column, run_length = local columns, run_step = columns, run_count = rows.
typedef struct {
    // sizeof(fgs_shard); set by FGS_SHARD_INIT.
    uint32_t size;
    // FGS_MAGIC; set by FGS_SHARD_INIT.
    uint32_t magic;
    // First element.
    uint64_t offset;
    // Elements of a run; 0: all of the local data is one run.
    uint64_t run_length;
    // From the beginning of one run to that of the next; at least run_length. Not read if there is one run.
    uint64_t run_step;
    // Number of runs; 0 counts as 1.
    uint64_t run_count;
} fgs_shard;

// A pass over the probe of a task: the same batches, every time. Initialise with `FGS_PROBE_INIT`.
typedef struct {
    // sizeof(fgs_probe); set by FGS_PROBE_INIT.
    uint32_t size;
    // FGS_MAGIC; set by FGS_PROBE_INIT.
    uint32_t magic;
    // Task whose data the probe is.
    const char *task;
    // FGS_UNSET_U64, or: the weights of this pass are those after so many more updates on the task itself since its base
    // pass. Such passes say what change is usual; without them no head can be called changed. The updates are made outside
    // steps, and the weights put back afterwards.
    uint64_t continued_updates;
    // Bits of fgs_probe_flag.
    uint32_t flags;
    // With continued_updates: which of several runs of such updates the pass belongs to. Passes of one run see the same
    // batches and are not independent; changes are judged by what differs between runs, so there must be two or more.
    uint32_t run;
} fgs_probe;

// Attention of one layer over the batch: either its probabilities, or queries and keys. Initialise with
// `FGS_ATTENTION_INIT`.
//
// Strides may be any, so a tensor in another order is described by its strides. Of each batch up to `attention_rows`
// queries are looked at (FGS_ATTENTION_ROWS, default 64).
typedef struct {
    // sizeof(fgs_attention); set by FGS_ATTENTION_INIT.
    uint32_t size;
    // FGS_MAGIC; set by FGS_ATTENTION_INIT.
    uint32_t magic;
    // [sequences, heads, queries, keys], after the softmax, without dropout. NULL: query and key are given.
    const fgs_dltensor *probabilities;
    // [sequences, positions, heads, width] as it enters the product: rotated, normalised. NULL if probabilities are given.
    const fgs_dltensor *query;
    // [sequences, positions, key heads, width]. Query head h looks at key head h / (heads / key heads).
    const fgs_dltensor *key;
    // Log of the sum of the exponentials of the logits, natural: [sequences, heads, queries], as flash attention keeps it.
    // NULL: with query and key the softmax is taken over the visible keys; with probabilities the largest logit stays
    // unknown.
    const fgs_dltensor *log_sum_exp;
    // Logits are scale · query · key. 0: 1/sqrt(width).
    double scale;
    // Logits are then softcap · tanh(logit / softcap). 0: not capped.
    double softcap;
    // One of fgs_mask.
    uint32_t mask;
    // A query sees only so many of the latest keys. 0: all.
    uint32_t window;
    // Number of the first head in the whole model: above 0 if heads are spread over ranks.
    uint32_t first_head;
    // Zero.
    uint32_t reserved;
} fgs_attention;

// What a curvature run measures. Initialise with `FGS_CURVATURE_INIT`, then set task and what differs from the defaults.
typedef struct {
    // sizeof(fgs_curvature); set by FGS_CURVATURE_INIT.
    uint32_t size;
    // FGS_MAGIC; set by FGS_CURVATURE_INIT.
    uint32_t magic;
    // The task whose loss it is: the trainer answers with gradients of this task's probe batch. Copied.
    const char *task;
    // Lanczos steps per starting vector; two gradients each. Default 32.
    uint32_t lanczos_steps;
    // Samples of the traces (Hutchinson); four gradients each. Default 8.
    uint32_t trace_vectors;
    // Starting vectors that run all Lanczos steps; more of them resolve the spectral density better. Default 1.
    uint32_t density_vectors;
    // Eigenvalues that are published; in the run that later ones are compared with, as many eigenvectors are kept.
    // Default 3.
    uint32_t eigenvectors;
    // Points at which the loss is wanted on the line from the task's snapshot to the weights, both ends included. Default
    // 0: none. Left out where no exact snapshot is kept.
    uint32_t path_points;
    // For tensors in blocks: gradients spent on the trace are six times this (Hutch++). Default 4.
    uint32_t block_vectors;
    // Ids of tensors that are looked at by themselves as well. Copied.
    const uint32_t *blocks;
    // How many they are; with 0 blocks may be NULL.
    uint64_t block_count;
    // How far the weights are moved for a difference of gradients, relative to their norm. Default 0.001.
    double relative_step;
    // Of the random vectors: the same seed gives the same vectors.
    uint64_t seed;
} fgs_curvature;

// A request of a curvature run. Initialise with `FGS_CURVATURE_REQUEST_INIT`.
typedef struct {
    // sizeof(fgs_curvature_request); set by FGS_CURVATURE_REQUEST_INIT.
    uint32_t size;
    // FGS_MAGIC; set by FGS_CURVATURE_REQUEST_INIT.
    uint32_t magic;
    // fgs_curvature_want.
    uint32_t want;
    // Requests before this one.
    uint32_t index;
    // Requests in all, at most: Lanczos may be done early.
    uint32_t total;
} fgs_curvature_request;

// A record of the ring: see docs/statistics for what the values of each kind are. Ids that do not apply are all ones,
// values that do not apply are NaN.
typedef struct {
    // CLOCK_MONOTONIC, nanoseconds.
    uint64_t time_ns;
    // The trainer's step.
    uint64_t step;
    // What the record is; decides the meaning of `values`.
    uint16_t kind;
    // 0 head, 1 tensor, 2 role, 3 layer, 4 model.
    uint8_t level;
    uint8_t reserved;
    uint32_t flags;
    uint32_t rank;
    // The task that was being trained.
    uint16_t task;
    // The earlier task that it was compared with, or that was evaluated.
    uint16_t reference;
    // Id of the tensor.
    uint32_t tensor;
    // Head: role << 16 | number; role; layer: by level.
    uint32_t slice;
    double values[10];
} fgs_record;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Why the latest failed call of this thread failed: one or two sentences that name the argument.
//
// The text belongs to the library and is valid until the next call of a forgetscope function on this thread. It is empty
// if no call failed yet; a successful call leaves it as it is. Never NULL.
const char *fgs_last_error(void);

// Name of a status, for messages: "FGS_ERROR_PHASE". Static text, never NULL, also for numbers that are no status.
const char *fgs_status_name(int32_t status);

// Opens an instrument: creates its ring in shared memory and starts its threads.
//
// `options` may be NULL for the defaults; files and environment variables overrule them either way (see `fgs_options`).
// With FGS_DISABLE=1 in the environment nothing is created: the scope is valid and every call on it does nothing.
// On failure `*out` is NULL, which every other function refuses with FGS_ERROR_NULL, so a trainer that ignores the status
// trains on.
//
// The scope belongs to the caller until `fgs_close`. Errors: FGS_ERROR_NULL, FGS_ERROR_STRUCT, FGS_ERROR_CONFIG,
// FGS_ERROR_RING (the ring cannot be created), FGS_ERROR_SYSTEM.
//
// Requires:
// `options` must be NULL or readable; `out` must be NULL or writable.
fgs_status fgs_open(const fgs_options *options,
                    fgs_scope **out);

// Closes an instrument: publishes what is still waiting, marks the ring closed, ends the threads, frees the scope.
//
// NULL is fine and does nothing. The ring's file stays, for those who read later; `forgetscope ls --prune` removes the
// files of ended runs. No other call on the scope may be going on or follow.
//
// Requires:
// `scope` must be NULL or come from `fgs_open` and not have been closed.
fgs_status fgs_close(fgs_scope *scope);

// Waits until everything handed over so far is in the ring. For tests and for the end of a run; a trainer need not call
// it. Takes as long as the evaluation of at most four sampled steps.
//
// Requires:
// `scope` must be NULL or come from `fgs_open` and not have been closed.
fgs_status fgs_flush(const fgs_scope *scope);

// Path of the ring's file in `*path`. The text belongs to the scope and is valid until `fgs_close`; empty if disabled.
//
// Requires:
// `scope` must be NULL or come from `fgs_open` and not have been closed; `path` must be NULL or writable.
fgs_status fgs_ring_path(const fgs_scope *scope,
                         const char **path);

// Version of the library that is loaded: FGS_VERSION of the header that it was built with. Compare the two to notice a
// header and a library that do not belong together.
uint32_t fgs_version(void);

// Adds a tensor to the catalog. Its id in `*id` is used in all other calls; with layer_count > 1 it is the first of
// layer_count consecutive ids.
//
// May be called at any time, also during training. Nothing is measured before data is bound or fed. Errors:
// FGS_ERROR_NULL, FGS_ERROR_STRUCT, FGS_ERROR_INVALID (the sentence names the field).
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `tensor` must be NULL or readable, with a terminated name;
// `id` must be NULL or writable.
fgs_status fgs_register(fgs_scope *scope,
                        const fgs_tensor *tensor,
                        uint32_t *id);

// Says where all of a tensor's data lies: `what` is FGS_GRAD, FGS_PARAM or FGS_MASTER.
//
// The data is read later, inside `fgs_gradients_ready`, `fgs_step_end`, `fgs_reference_add`, `fgs_snapshot`,
// `fgs_task_end`, `fgs_probe_head_output` and the functions of a curvature run, and never outside them. A curvature run also
// writes to FGS_PARAM. The data must stay readable until it is bound to something else or unbound with `tensor` NULL.
// Binding again costs little when only the address changes, so it may be done in every step; `fgs_rebind` does it for many
// tensors at once.
//
// Accepted: float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, in host memory, row-major or any strides that
// amount to at most two dimensions. With layer_count > 1 at registration, the whole stacked buffer may be bound to the first id: its first
// dimension is the layer (or layer × rows). Unbinding the first id, with `tensor` NULL or without elements, unbinds all
// layers, however they were bound. Errors: FGS_ERROR_NOT_FOUND (id), FGS_ERROR_INVALID (what, shape),
// FGS_ERROR_UNSUPPORTED (device, dtype, strides).
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `tensor` must be NULL or describe readable memory.
fgs_status fgs_bind(fgs_scope *scope,
                    uint32_t id,
                    uint32_t what,
                    const fgs_dltensor *tensor);

// Says where this rank's part of a tensor lies. `shard` tells which elements of the unsharded tensor it is; NULL: all.
//
// Whatever is not covered belongs to other ranks and is never read here. Data that was cut at any place is fine, also in
// the middle of a row or head. With a shard `id` is one tensor, never a stack. Otherwise as `fgs_bind`.
//
// Requires:
// As for `fgs_bind`; `shard` must be NULL or readable.
fgs_status fgs_bind_shard(fgs_scope *scope,
                          uint32_t id,
                          uint32_t what,
                          const fgs_dltensor *tensor,
                          const fgs_shard *shard);

// Says that the data of `count` tensors lies at other addresses: `data[i]` is the first element of tensor `ids[i]` from now
// on. Everything else is as it was bound: shape, strides, dtype, device, shard. A NULL address unbinds the tensor, which
// then needs `fgs_bind` again; an address that is bound already costs nothing.
//
// For trainers that allocate gradients anew in every step (PyTorch's `zero_grad(set_to_none=True)`): one call instead of
// one per tensor, needed only where `fgs_step_sampled` says so. All or nothing. Errors: FGS_ERROR_NULL,
// FGS_ERROR_NOT_FOUND (id), FGS_ERROR_INVALID (what; a tensor that is not bound; alignment), FGS_ERROR_UNSUPPORTED
// (device).
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `ids` and `data` must be readable up to `count`, or count 0;
// addresses must be of readable memory, as for `fgs_bind`.
fgs_status fgs_rebind(fgs_scope *scope,
                      uint32_t what,
                      const uint32_t *ids,
                      void *const *data,
                      uint64_t count);

// Training of a task begins: from now on gradients are this task's, and all other tasks are earlier ones.
//
// A name seen before returns to that task. Errors: FGS_ERROR_PHASE if a task or step has not ended.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `name` must be NULL or a terminated string.
fgs_status fgs_task_begin(fgs_scope *scope, const char *name);

// Training of the current task ends.
//
// If parameters are bound and no snapshot was taken since the last update, one is taken now. If no reference was given,
// the mean over the task's last sampled steps (at most 64) becomes its *trailing* reference. Errors: FGS_ERROR_PHASE if
// no task has begun or a step has not ended.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed.
fgs_status fgs_task_end(fgs_scope *scope);

// The gradients that are bound now are one batch of the reference of `task`: gradients of that task's data.
//
// Call it 32 to 64 times, once per batch, with the weights unchanged; a single batch is mostly noise. Done at the
// task's final weights, before or after `fgs_task_end`, the reference is *frozen*: interference and predicted loss change
// are measured against it. Done later at other weights, with a small replay batch, it is *refreshed*: a new reference
// for interference, and the sum of ⟨g_A(θ_t), Δθ_t⟩ along the path then follows the true loss. The first batch after an
// update begins a new reference.
//
// examples: loss terms (tokens, or sequences) that the batch's loss is a mean over; 0 if unknown. It scales the
// second-order term of the prediction. scale: what the gradient has to be multiplied by to be that of the mean loss.
// stream: NULL for host memory. Errors: FGS_ERROR_INVALID (scale; nothing bound), FGS_ERROR_PHASE (inside a step).
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `task` must be NULL or a terminated string; bound gradients
// must be readable and not written to during the call.
fgs_status fgs_reference_add(fgs_scope *scope,
                             const char *task,
                             uint64_t examples,
                             double scale,
                             void *stream);

// One tensor's gradient of a reference batch, for trainers that never have all gradients at once.
//
// The batch is complete with the next `fgs_reference_add` for the same task, which also takes what is bound and was not
// fed. The data is read during the call. Arguments as for `fgs_gradient_feed` and `fgs_reference_add`.
//
// Requires:
// As for `fgs_gradient_feed`; `task` must be NULL or a terminated string.
fgs_status fgs_reference_feed(fgs_scope *scope,
                              const char *task,
                              uint32_t id,
                              const fgs_dltensor *tensor,
                              const fgs_shard *shard,
                              double scale,
                              void *stream);

// Keeps the parameters that are bound now as the snapshot of `task` (NULL: of the current one): drift is measured from
// it. `fgs_task_end` does this by itself unless it was done since the last update.
//
// stream: NULL for host memory. Without bound parameters nothing is kept. Errors: FGS_ERROR_PHASE.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `task` must be NULL or a terminated string; bound
// parameters must be readable and not written to during the call.
fgs_status fgs_snapshot(fgs_scope *scope,
                        const char *task,
                        void *stream);

// An optimizer step begins. `step` is the trainer's own number; any is legal, so runs may go back or skip.
//
// Costs well under 100 ns if the step is not sampled. A step that was begun and not ended is given up and counted.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed.
fgs_status fgs_step_begin(fgs_scope *scope, uint64_t step);

// Whether the step that has begun is sampled: 1 or 0 in `*sampled`, 0 outside steps. For trainers that have something to do
// only then, such as `fgs_rebind`.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `sampled` must be NULL or writable.
fgs_status fgs_step_sampled(const fgs_scope *scope,
                            int32_t *sampled);

// Steps are sampled when (step − start_step) is a multiple of `every` from now on; 0: never. For a closer look at a part of
// the run. Tensors with a rule of their own in the configuration keep it, and steps in CUDA graphs keep what was captured.
// Errors: FGS_ERROR_PHASE (inside a step).
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed.
fgs_status fgs_set_every(fgs_scope *scope,
                         uint64_t every);

// One tensor's gradient, for trainers that never have all gradients at once (callbacks, fused backward and update).
//
// Between `fgs_step_begin` and `fgs_gradients_ready` or `fgs_step_end`, in any order; shards of one tensor may be fed one
// by one. The data is read during the call and not afterwards. `shard`: NULL for all of the tensor. `scale` must be the
// same for all tensors of a step. stream: NULL for host memory.
//
// Errors: FGS_ERROR_PHASE, FGS_ERROR_NOT_FOUND (id), FGS_ERROR_INVALID, FGS_ERROR_UNSUPPORTED as for `fgs_bind`.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `tensor` must be NULL or describe memory that is readable
// and not written to during the call; `shard` must be NULL or readable.
fgs_status fgs_gradient_feed(fgs_scope *scope,
                             uint32_t id,
                             const fgs_dltensor *tensor,
                             const fgs_shard *shard,
                             double scale,
                             void *stream);

// All gradients of the step are final: after accumulation and reduction, before the update.
//
// Reads every bound gradient that was not fed, and the bound parameters as they are before the update: during the call, or
// in the order of `stream`. `scale`: what the trainer will still multiply the gradient by (1/loss scale, 1/tokens, the
// clip coefficient); a finite number above zero. `flags`: bits of fgs_gradient_flag. stream: NULL for host memory.
// Errors: FGS_ERROR_PHASE, FGS_ERROR_INVALID (scale, flags).
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; bound data must be readable and not written to during the
// call.
fgs_status fgs_gradients_ready(fgs_scope *scope,
                               double scale,
                               uint32_t flags,
                               void *stream);

// The step is over. `applied`: 1 if the update was made, 0 if the trainer skipped it (overflow, say).
//
// Reads the bound parameters as they are after the update: during the call, or in the order of `stream`. stream: NULL for
// host memory. Errors: FGS_ERROR_PHASE if no step has begun.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; bound data must be readable and not written to during the
// call.
fgs_status fgs_step_end(fgs_scope *scope,
                        int32_t applied,
                        void *stream);

// A pass over the probe of a task begins: one forward run of its fixed batches at the weights of now.
//
// Then, for every batch: `fgs_probe_batch`, and for every layer what is to be measured: `fgs_probe_hidden`,
// `fgs_probe_attention`, `fgs_probe_head_output`, `fgs_probe_router`. Then `fgs_probe_end`, or `fgs_probe_abandon` if the
// forward run failed. Between steps only; a step or task that begins in between gives the pass up.
//
// A pass over the task that is being trained becomes the base that later passes of it are compared with, and replaces an
// earlier one; take it just before `fgs_task_end`. The first pass of any other task becomes its base too. Passes of
// several tasks at the same weights also say how alike the tasks are.
//
// Tokens are sampled: up to probe_tokens a batch (FGS_PROBE_TOKENS, 1024), up to probe_tokens_per_sequence a sequence
// (FGS_PROBE_TOKENS_PER_SEQUENCE, 4), always the same. A few batches that give about 1,000 tokens in all are enough.
// What is kept counts against probe_budget (FGS_PROBE_BUDGET, 0.05 of the host's memory); a pass beyond it is left out and
// counted. Errors: FGS_ERROR_NULL, FGS_ERROR_STRUCT, FGS_ERROR_INVALID, FGS_ERROR_PHASE.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `probe` must be NULL or readable, and its string terminated.
fgs_status fgs_probe_begin(fgs_scope *scope,
                           const fgs_probe *probe);

// A batch of the pass begins: `sequences` sequences of `sequence_length` tokens. Batches come in the same order and with
// the same shapes in every pass of a task.
//
// `labels`: a class per sequence or per token (`label_count` says which), negative for none, for the measure of neural
// collapse; NULL and 0 without classes. Errors: FGS_ERROR_PHASE, FGS_ERROR_INVALID.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `labels` must be NULL or point to `label_count` readable
// values.
fgs_status fgs_probe_batch(fgs_scope *scope,
                           uint64_t sequences,
                           uint64_t sequence_length,
                           const int32_t *labels,
                           uint64_t label_count);

// Hidden states of a layer: the residual stream after it. [sequences, tokens, width] or [sequences · tokens, width].
//
// Sampled tokens are copied; the data is read during the call and not afterwards. stream: NULL for host memory. Errors:
// FGS_ERROR_PHASE, FGS_ERROR_INVALID (shape, or the layer twice in a batch), FGS_ERROR_UNSUPPORTED.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `hidden` must be NULL or describe memory that is readable and
// not written to during the call.
fgs_status fgs_probe_hidden(fgs_scope *scope,
                            uint32_t layer,
                            const fgs_dltensor *hidden,
                            void *stream);

// Attention of a layer. Rows that the trainer does not store are computed from queries and keys inside the call.
//
// The data is read during the call and not afterwards. stream: NULL for host memory. Errors: as for `fgs_probe_hidden`,
// and FGS_ERROR_INVALID if the probabilities of a row do not sum to 1: then scale, mask or layout are not the trainer's.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `attention` must be NULL or readable, and its tensors NULL or
// describe memory that is readable and not written to during the call.
fgs_status fgs_probe_attention(fgs_scope *scope,
                               uint32_t layer,
                               const fgs_attention *attention,
                               void *stream);

// What the heads of a layer put out, before the output projection mixes them: [sequences, tokens, heads, width], or with
// sequences and tokens, or heads and width, or both, as one dimension.
//
// `projection`: the output projection as [model width, heads · width]; NULL: the layer's bound parameter of role
// FGS_ROLE_OUTPUT with the same heads. With it, and the hidden states of the layer, the change of a head's contribution to
// the residual stream is measured. `first_head`: number of the first head in the whole model. The data is read during the
// call and not afterwards. stream: NULL for host memory. Errors: as for `fgs_probe_hidden`.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; tensors must be NULL or describe memory that is readable and
// not written to during the call, and so must the bound output projection.
fgs_status fgs_probe_head_output(fgs_scope *scope,
                                 uint32_t layer,
                                 uint32_t head_count,
                                 uint32_t first_head,
                                 const fgs_dltensor *outputs,
                                 const fgs_dltensor *projection,
                                 void *stream);

// What the router of a layer's mixture of experts puts out, before the softmax: [sequences, tokens, experts] or
// [sequences · tokens, experts]. `top_k`: experts that each token goes to.
//
// The data is read during the call and not afterwards. stream: NULL for host memory. Errors: as for `fgs_probe_hidden`.
//
// Requires:
// As for `fgs_probe_hidden`.
fgs_status fgs_probe_router(fgs_scope *scope,
                            uint32_t layer,
                            const fgs_dltensor *logits,
                            uint32_t top_k,
                            void *stream);

// The pass is complete. Only now anything of it is measured, and not on this thread.
//
// Errors: FGS_ERROR_PHASE if none has begun; FGS_ERROR_INVALID if layers or batches are missing, or the batches are not
// those of the task's base pass: then the pass is dropped.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed.
fgs_status fgs_probe_end(fgs_scope *scope);

// The pass is not going on, as when the forward run failed: nothing of it is measured, and an earlier base stays.
//
// It is counted, as one that a step or a task gave up. Errors: FGS_ERROR_PHASE if none has begun.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed.
fgs_status fgs_probe_abandon(fgs_scope *scope);

// What putting back a head's old weights does to a task's loss: the functional effect that a severe disruption must have.
//
// The trainer keeps the weights of the end of the task, measures `loss` with the weights of now, puts the old query, key,
// value and output weights of one head back, measures `loss_restored` on the same batches, and undoes it. `error`: standard
// error of the difference over batches; NaN if it is not known. After the pass over the task's probe at these weights.
// Errors: FGS_ERROR_NOT_FOUND (task), FGS_ERROR_INVALID.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `task` must be NULL or a terminated string.
fgs_status fgs_head_effect(fgs_scope *scope,
                           const char *task,
                           uint32_t layer,
                           uint32_t head,
                           double loss,
                           double loss_restored,
                           double error);

// A curvature run begins: the loss landscape of a task around the weights as they are now. See docs/statistics/landscape.md
// for what is measured. The trainer's part is a loop:
//
// ```c
// fgs_curvature_begin(scope, &options);
// while (fgs_curvature_next(scope, &request) == FGS_OK && request.want != FGS_CURVATURE_DONE) {
//     loss = forward_and_backward(probe_batch);     // the same batch every time, no dropout
//     if (fgs_curvature_submit(scope, loss, 1.0, NULL) != FGS_OK)
//         break;
// }
// fgs_curvature_end(scope);
// ```
//
// From the first request to the end the parameters that are bound with FGS_PARAM are *written to*: the library moves them
// in place. When the run is over they are as they were, to the last bit: after FGS_CURVATURE_DONE, `fgs_curvature_end`,
// `fgs_step_begin`, `fgs_task_end` or `fgs_close`, after other parameters are bound, and after a submission that is not
// finite. What has to stay the same from the first request to the last is the trainer's duty: the batch, and the random
// numbers of dropout if there must be any. Buffers of gradients may move; bind them again.
//
// Every measured tensor that is bound takes part, all of it, in fp32, with its gradient. The gradients are those that one
// rank computes from its own probe batch: nothing is reduced. While the task is trained, or at the weights of its snapshot,
// the run is the *base* that later ones are compared with. Memory: the parameters four times, within the budget; as many
// times more as there are Lanczos steps if the budget allows it, which gives eigenvectors.
//
// Errors: FGS_ERROR_NULL, FGS_ERROR_STRUCT, FGS_ERROR_INVALID (the sentence names the field; a parameter or gradient that
// is not bound), FGS_ERROR_NOT_FOUND (blocks), FGS_ERROR_UNSUPPORTED (parameters that are not fp32; shards; tied copies),
// FGS_ERROR_CONFIG (the budget; the sentence says how many bytes are missing), FGS_ERROR_PHASE (inside a step, a half-fed
// reference batch, or another run).
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `options` must be NULL or readable, with a terminated task
// and block_count readable ids. Until the run is over, what is bound with FGS_PARAM must be writable, and neither read nor
// written during calls.
fgs_status fgs_curvature_begin(fgs_scope *scope,
                               const fgs_curvature *options);

// Moves the parameters to where the next gradient or loss is wanted, and says in `*request` which of the two it is.
//
// FGS_CURVATURE_DONE ends the loop. With the instrument disabled it is the first answer. Errors: FGS_ERROR_NULL,
// FGS_ERROR_STRUCT, FGS_ERROR_PHASE (no run; the last request has not been answered).
//
// Requires:
// As for `fgs_curvature_begin`; `request` must be NULL or writable.
fgs_status fgs_curvature_next(fgs_scope *scope, fgs_curvature_request *request);

// Answers the last request: the loss, and for FGS_CURVATURE_GRADIENT the gradients that are bound now, times `scale`.
//
// All reading is over when the call returns. A loss or gradient that is not finite ends the run with FGS_ERROR_INVALID and
// a fault; the parameters are as they were. After any other error the request still stands. `loss`: the mean that the
// gradient times `scale` is the gradient of. stream: NULL for host memory. Errors: FGS_ERROR_INVALID (loss, scale; a
// gradient that is not bound whole any more), FGS_ERROR_PHASE (nothing was asked for).
//
// Requires:
// As for `fgs_curvature_begin`; bound gradients must be readable and not written to during the call.
fgs_status fgs_curvature_submit(fgs_scope *scope,
                                double loss,
                                double scale,
                                void *stream);

// Ends a run. The parameters are as they were when it began, to the last bit. Legal at any moment, also without a run. A run
// that was not complete publishes a fault and nothing else. Errors: FGS_ERROR_SYSTEM (a device failed, and the parameters
// are not as they were; the other functions of a run say the same when it ends there).
//
// Requires:
// As for `fgs_curvature_begin`.
fgs_status fgs_curvature_end(fgs_scope *scope);

// The loss of a task on held-out data, as the weights are now. Lower is better. Not the training loss of a batch.
//
// Forgetting and backward transfer follow from it. Non-finite values are taken: a diverged loss is an outcome. At any
// time between `fgs_open` and `fgs_close`; it belongs to the step that was begun last.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `task` must be NULL or a terminated string.
fgs_status fgs_record_loss(fgs_scope *scope, const char *task, double value);

// Any other metric of a task on held-out data, such as accuracy. `higher_is_better`: 1 or 0, the same in every call for
// one metric. Otherwise as `fgs_record_loss`.
//
// Requires:
// `scope` must come from `fgs_open` and not have been closed; `task` and `metric` must be NULL or terminated strings.
fgs_status fgs_record_eval(fgs_scope *scope,
                           const char *task,
                           const char *metric,
                           double value,
                           int32_t higher_is_better);

// Opens the ring at `path` for reading, from the oldest record that is still there. It belongs to the caller until
// `fgs_reader_close`.
//
// A file that is no ring, or a damaged or hostile one, gives FGS_ERROR_RING and a sentence; no file gives
// FGS_ERROR_NOT_FOUND.
//
// Requires:
// `path` must be NULL or a terminated string; `out` must be NULL or writable.
fgs_status fgs_reader_open(const char *path, fgs_reader **out);

// The next record in `*record` and FGS_OK; or FGS_EMPTY if there is none at present; or FGS_CLOSED if the writer has
// ended and everything was read.
//
// `*lost` receives how many records were overwritten before they could be read since the last call: exactly, usually 0.
// Never waits. NULL for `lost` if it does not matter.
//
// Requires:
// `reader` must come from `fgs_reader_open` and not have been closed; `record` must be NULL or writable, `lost` NULL or
// writable.
fgs_status fgs_reader_next(fgs_reader *reader,
                           fgs_record *record,
                           uint64_t *lost);

// The name of a task, tensor, kind, … in `*name`: `what` is an fgs_name. The text belongs to the reader and is valid
// until `fgs_reader_close`. Errors: FGS_ERROR_NOT_FOUND if the catalog does not have it (yet), FGS_ERROR_INVALID (what).
//
// Requires:
// `reader` must come from `fgs_reader_open` and not have been closed; `name` must be NULL or writable.
fgs_status fgs_reader_name(fgs_reader *reader,
                           uint32_t what,
                           uint32_t id,
                           const char **name);

// Closes a reader. NULL is fine and does nothing.
//
// Requires:
// `reader` must be NULL or come from `fgs_reader_open` and not have been closed.
fgs_status fgs_reader_close(fgs_reader *reader);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FORGETSCOPE_H */

/* Initialisers: `fgs_options options = FGS_OPTIONS_INIT;`. The order is that of the fields. */
#define FGS_OPTIONS_INIT                                                                                  \
    {                                                                                                     \
        sizeof(fgs_options), FGS_MAGIC, NULL, NULL, NULL, NULL, FGS_UNSET_U64, FGS_UNSET_U64,             \
            FGS_UNSET_U64, FGS_UNSET_U64, FGS_UNSET_U64, -1.0, FGS_UNSET_U32, FGS_UNSET_U32,              \
            FGS_UNSET_U32, FGS_UNSET_U32, FGS_UNSET_U32, FGS_UNSET_U32                                    \
    }

#define FGS_TENSOR_INIT                                                                                   \
    {                                                                                                     \
        sizeof(fgs_tensor), FGS_MAGIC, NULL, 0, 0, 0, FGS_ROLE_OTHER, -1, -1, 0,                          \
            FGS_HEADS_AUTO, FGS_UNSET_U32, 0, 0, 0, 0, 0, 0, FGS_UNSET_U32, 1                             \
    }

#define FGS_SHARD_INIT                                                                                    \
    {                                                                                                     \
        sizeof(fgs_shard), FGS_MAGIC, 0, 0, 0, 0                                                          \
    }

#define FGS_PROBE_INIT                                                                                    \
    {                                                                                                     \
        sizeof(fgs_probe), FGS_MAGIC, NULL, FGS_UNSET_U64, 0, 0                                           \
    }

#define FGS_ATTENTION_INIT                                                                                \
    {                                                                                                     \
        sizeof(fgs_attention), FGS_MAGIC, NULL, NULL, NULL, NULL, 0.0, 0.0, FGS_MASK_NONE, 0, 0, 0        \
    }

#define FGS_CURVATURE_INIT                                                                                \
    {                                                                                                     \
        sizeof(fgs_curvature), FGS_MAGIC, NULL, 32, 8, 1, 3, 0, 4, NULL, 0, 1e-3, 0                       \
    }

#define FGS_CURVATURE_REQUEST_INIT                                                                        \
    {                                                                                                     \
        sizeof(fgs_curvature_request), FGS_MAGIC, FGS_CURVATURE_DONE, 0, 0                                \
    }
