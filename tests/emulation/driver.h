// The double's inside: what its files share. Each file has the functions of the driver for one of these, and its page
// of docs/emulation.md says what is checked.
//
//     calls.cpp      what every call begins with; injected faults; counts and traces of calls
//     contexts.cpp   devices, contexts and the stack of current contexts
//     memory.cpp     device and host memory, red zones, pointers and copies
//     streams.cpp    streams with a worker each, events
//     graphs.cpp     capture and graphs
//     modules.cpp    modules, functions, launches
//
// One lock guards all state; workers run kernels and copies without it. Handles are never freed, so that one that was
// destroyed can be told from one that never was.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "driver_api.h"
#include "grid.h"

struct Capture;

// The work that had been given to a stream at some time.
struct Ticket {
    CUstream stream = nullptr;
    uint64_t number = 0;
};

struct Operation {
    std::function<void()> run;
    std::vector<Ticket> after;
};

struct CUctx_st {
    CUdevice device;
    bool primary;
    bool alive = true;
    unsigned uses = 0;  // of a primary context: retained so many times
    CUstream legacy = nullptr;
    std::vector<CUstream> streams{};  // without the legacy stream
};

struct CUstream_st {
    CUcontext context;
    unsigned flags;
    bool legacy = false, alive = true;
    std::deque<Operation> queue{};
    uint64_t submitted = 0, completed = 0;
    std::shared_ptr<Capture> capture{};  // while it is being captured
    std::vector<size_t> tips{};          // nodes of the graph that its next node comes after

    bool blocking() const { return !legacy && (flags & CU_STREAM_NON_BLOCKING) == 0; }
};

struct CUevent_st {
    CUcontext context;
    bool timed = true;
    bool alive = true;
    std::chrono::steady_clock::time_point time{};  // when it happened last
    Ticket recorded{};
    std::shared_ptr<Capture> capture{};  // the capture it was last recorded in
    std::vector<size_t> tips{};
};

struct Node {
    std::function<void()> run;
    std::vector<size_t> after;
};

struct CUgraph_st {
    std::vector<Node> nodes;
    bool alive = true;
};

struct CUgraphExec_st {
    std::shared_ptr<const std::vector<Node>> nodes;
    bool alive = true;
};

struct CUmod_st {
    CUcontext context;
    std::string image;
    bool alive = true;
    std::map<std::string, CUfunction> functions{};
};

struct CUfunc_st {
    CUmodule module;
    const emulation::Kernel* kernel;
    int max_dynamic_shared;
};

// A sequence of calls that becomes a graph.
struct Capture {
    CUgraph graph = new CUgraph_st;
    CUstream origin = nullptr;
    CUstreamCaptureMode mode{};
    pid_t thread = 0;
    bool invalid = false, ended = false;
    std::vector<CUstream> streams;
};

struct Allocation {
    enum class Kind { device, host, registered } kind;
    CUcontext context;
    size_t bytes;
    char* mapping;  // with guard pages; null for registered memory
    size_t mapping_bytes;
    unsigned long long id;
};

struct Driver {
    std::mutex lock;
    std::condition_variable changed;  // something was submitted or has completed
    pid_t process = 0;                // that called cuInit
    std::vector<CUcontext> primary;   // by device
    std::unordered_set<const void*> contexts, streams, events, graphs, graph_execs, modules, functions;
    std::vector<std::shared_ptr<Capture>> captures;  // begun and not ended
    std::map<uintptr_t, Allocation> memory;          // by first byte
};

// Never destroyed: workers use it until the process is gone.
Driver& driver();

// ---- calls.cpp -----------------------------------------------------------------------------------------------------

enum class Needs { nothing, initialised, context };

// What every function of the driver begins with: counts and traces the call, lets an injected fault happen, checks that
// the driver is initialised and has a current context, takes the lock.
struct Call {
    Call(const char* function, Needs needs);
    std::unique_lock<std::mutex> lock;
    CUcontext context = nullptr;
    CUresult refused = CUDA_SUCCESS;
};

#define ENTER(needs)                   \
    Call call(__func__, Needs::needs); \
    if (call.refused != CUDA_SUCCESS) return call.refused
#define RETURN_IF_REFUSED(expression) \
    if (CUresult refusal = (expression); refusal != CUDA_SUCCESS) return refusal

// Counts something that is no call, as "pageable".
void note(const char* event);

// A whole number from the environment.
long long setting(const char* name, long long otherwise);

// ---- contexts.cpp --------------------------------------------------------------------------------------------------

int device_count();
// The top of this thread's stack.
CUcontext current_context();

// ---- streams.cpp ---------------------------------------------------------------------------------------------------

enum class Use { enqueue, inspect };

// Resolves a handle that a call was given, and refuses what a capture forbids.
CUresult find_stream(CUcontext current, CUstream handle, Use use, CUstream& stream);
CUstream make_stream(CUcontext context, unsigned flags);
// Ends a stream when its work is done.
void close_stream(CUstream stream);
Ticket submit(CUstream stream, std::function<void()> run, std::vector<Ticket> after = {});
// Into the graph if the stream is being captured, else to its worker.
void enqueue(CUstream stream, std::function<void()> run);
bool has_completed(const Ticket& ticket);
void wait_for(std::unique_lock<std::mutex>& lock, const Ticket& ticket);
void wait_for_context(std::unique_lock<std::mutex>& lock, CUcontext context);

// ---- graphs.cpp ----------------------------------------------------------------------------------------------------

// Refuses a call that is not safe while streams are captured, and invalidates the captures.
CUresult refuse_if_unsafe();
void invalidate(Capture& capture);
void add_node(CUstream stream, std::function<void()> run);
// A wait of a captured stream, or for a captured event.
CUresult capture_wait(CUstream stream, CUevent event);

// ---- memory.cpp ----------------------------------------------------------------------------------------------------

void free_memory_of(CUcontext context);
// Ends the process if a kernel is given a pointer to memory of another context than its own: on a device it would fault.
void check_pointers(const emulation::Kernel& kernel, CUcontext context, const void* params);
