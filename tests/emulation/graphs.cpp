// Stream capture and graphs.
//
// While a stream is captured, what it is given becomes nodes of a graph; a wait for an event that was recorded in the
// capture brings another stream into it. A launch replays the nodes in the order in which they were captured, which
// their dependencies allow, with the parameters of then. What the driver forbids meanwhile is refused, and most of it
// invalidates the capture: cuStreamEndCapture then gives no graph.
//
// FGS_OLD_DRIVER leaves out the functions that drivers before CUDA 10.1 lack.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "driver.h"

namespace {

thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

pid_t this_thread() { return static_cast<pid_t>(syscall(SYS_gettid)); }

void leave(Capture& capture) {
    for (CUstream stream : capture.streams) {
        stream->capture = nullptr;
        stream->tips.clear();
    }
    capture.ended = true;
    std::vector<std::shared_ptr<Capture>>& all = driver().captures;
    const auto is_this = [&capture](const auto& other) { return other.get() == &capture; };
    all.erase(std::remove_if(all.begin(), all.end(), is_this), all.end());
}

// Whether all work of a capture comes before the end of the stream that it began with.
bool is_joined(const Capture& capture) {
    const std::vector<Node>& nodes = capture.graph->nodes;
    std::vector<bool> reached(nodes.size());
    for (size_t tip : capture.origin->tips) reached[tip] = true;
    for (size_t i = nodes.size(); i-- > 0;) {
        if (!reached[i]) continue;
        for (size_t earlier : nodes[i].after) reached[earlier] = true;
    }
    for (CUstream stream : capture.streams) {
        for (size_t tip : stream->tips) {
            if (!reached[tip]) return false;
        }
    }
    return true;
}

}  // namespace

void invalidate(Capture& capture) { capture.invalid = true; }

CUresult refuse_if_unsafe() {
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
    bool refused = false;
    for (const auto& capture : driver().captures) {
        const bool own = capture->thread == this_thread() && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        const bool global = thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (!own && !global) continue;
        invalidate(*capture);
        refused = true;
    }
    return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

void add_node(CUstream stream, std::function<void()> run) {
    std::vector<Node>& nodes = stream->capture->graph->nodes;
    nodes.push_back({std::move(run), stream->tips});
    stream->tips = {nodes.size() - 1};
}

CUresult capture_wait(CUstream stream, CUevent event) {
    if (event->capture == nullptr || event->capture->ended) {
        // The capture cannot wait for what happens outside of it.
        if (stream->capture != nullptr) invalidate(*stream->capture);
        return stream->capture != nullptr ? CUDA_ERROR_STREAM_CAPTURE_ISOLATION : CUDA_ERROR_CAPTURED_EVENT;
    }
    if (event->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream->legacy) {
        invalidate(*event->capture);
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    if (stream->capture == nullptr) {
        stream->capture = event->capture;
        stream->tips.clear();
        event->capture->streams.push_back(stream);
    } else if (stream->capture != event->capture) {
        invalidate(*stream->capture);
        invalidate(*event->capture);
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    for (size_t tip : event->tips) {
        if (std::find(stream->tips.begin(), stream->tips.end(), tip) == stream->tips.end()) stream->tips.push_back(tip);
    }
    return CUDA_SUCCESS;
}

#ifndef FGS_OLD_DRIVER
EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    ENTER(initialised);
    if (mode == nullptr || *mode < 0 || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    std::swap(*mode, thread_mode);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    ENTER(context);
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    if (mode < 0 || mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture != nullptr) return CUDA_ERROR_INVALID_VALUE;
    auto capture = std::make_shared<Capture>();
    capture->origin = stream;
    capture->mode = mode;
    capture->thread = this_thread();
    capture->streams = {stream};
    stream->capture = capture;
    stream->tips.clear();
    driver().captures.push_back(capture);
    return CUDA_SUCCESS;
}
#endif

EXPORT CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
    ENTER(context);
    if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *graph = nullptr;
    if (handle == nullptr || driver().streams.count(handle) == 0 || !handle->alive) return CUDA_ERROR_INVALID_HANDLE;
    const std::shared_ptr<Capture> capture = handle->capture;
    if (capture == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != this_thread()) {
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    if (handle != capture->origin) {
        invalidate(*capture);
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    const bool joined = is_joined(*capture);
    leave(*capture);
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!joined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    driver().graphs.insert(capture->graph);
    *graph = capture->graph;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    ENTER(context);
    if (status == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (handle == nullptr || handle == CU_STREAM_LEGACY) {
        // Cannot be captured itself. Asked while a blocking stream is: the driver says so, and leaves the capture alone.
        *status = CU_STREAM_CAPTURE_STATUS_NONE;
        for (CUstream stream : call.context->streams) {
            if (stream->blocking() && stream->capture != nullptr) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
        return CUDA_SUCCESS;
    }
    if (handle != CU_STREAM_PER_THREAD && (driver().streams.count(handle) == 0 || !handle->alive)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    CUstream stream = handle;
    if (handle == CU_STREAM_PER_THREAD) RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    *status = stream->capture == nullptr  ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                         : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long) {
    ENTER(context);
    if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (driver().graphs.count(graph) == 0 || !graph->alive) return CUDA_ERROR_INVALID_VALUE;
    *exec = new CUgraphExec_st{std::make_shared<const std::vector<Node>>(graph->nodes)};
    driver().graph_execs.insert(*exec);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream handle) {
    ENTER(context);
    if (driver().graph_execs.count(exec) == 0 || !exec->alive) return CUDA_ERROR_INVALID_VALUE;
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    // The nodes live on after cuGraphExecDestroy, until the work that was given is done.
    enqueue(stream, [nodes = exec->nodes] {
        for (const Node& node : *nodes) node.run();
    });
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphDestroy(CUgraph graph) {
    ENTER(context);
    if (driver().graphs.count(graph) == 0 || !graph->alive) return CUDA_ERROR_INVALID_VALUE;
    graph->alive = false;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphExecDestroy(CUgraphExec exec) {
    ENTER(context);
    if (driver().graph_execs.count(exec) == 0 || !exec->alive) return CUDA_ERROR_INVALID_VALUE;
    exec->alive = false;
    return CUDA_SUCCESS;
}
