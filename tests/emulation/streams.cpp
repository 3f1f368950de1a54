// Streams, each with a worker thread that does its work in order, and events.
//
// The legacy (NULL) stream is ordered with the context's blocking streams, as the driver does it: its work waits for
// theirs given before, and theirs for its. FGS_FAKE_DELAY_US=n makes every worker wait so long before each operation,
// so that a program which relies on work being done by luck fails.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cfenv>
#include <map>
#include <thread>

#include "crash.h"
#include "driver.h"

namespace {

void work(CUstream stream) {
    // A trainer may have changed how its threads round, and threads inherit that.
    fesetenv(FE_DFL_ENV);
    emulation::give_signal_stack();
    static const auto delay = std::chrono::microseconds(setting("FGS_FAKE_DELAY_US", 0));
    std::unique_lock<std::mutex> lock(driver().lock);
    for (;;) {
        driver().changed.wait(lock, [stream] {
            if (stream->queue.empty()) return !stream->alive;
            const std::vector<Ticket>& after = stream->queue.front().after;
            return std::all_of(after.begin(), after.end(), has_completed);
        });
        if (stream->queue.empty()) return;
        Operation operation = std::move(stream->queue.front());
        stream->queue.pop_front();
        lock.unlock();
        if (delay.count() > 0) std::this_thread::sleep_for(delay);
        if (operation.run) operation.run();
        lock.lock();
        stream->completed++;
        driver().changed.notify_all();
    }
}

// The stream of this thread that CU_STREAM_PER_THREAD stands for. Never destroyed, as the stack of contexts.
CUstream per_thread_stream(CUcontext context) {
    static thread_local auto* const own = new std::map<CUcontext, CUstream>;
    CUstream& stream = (*own)[context];
    if (stream == nullptr || !stream->alive) stream = make_stream(context, 0);
    return stream;
}

// A blocking stream of the context that is being captured: the legacy stream would have to wait for it.
CUstream captured_and_blocking(CUcontext context) {
    for (CUstream stream : context->streams) {
        if (stream->alive && stream->blocking() && stream->capture != nullptr) return stream;
    }
    return nullptr;
}

CUresult find_event(CUevent event) {
    return driver().events.count(event) == 0 || !event->alive ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

// Of an event that the host asks about. One that was recorded in a capture never happens by itself.
CUresult refuse_captured(CUevent event) {
    RETURN_IF_REFUSED(find_event(event));
    if (event->capture != nullptr && !event->capture->ended) {
        invalidate(*event->capture);
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (event->capture != nullptr) return CUDA_ERROR_CAPTURED_EVENT;
    return refuse_if_unsafe();
}

}  // namespace

CUstream make_stream(CUcontext context, unsigned flags) {
    CUstream stream = new CUstream_st{context, flags};
    driver().streams.insert(stream);
    if (context->legacy != nullptr && context->legacy->alive) context->streams.push_back(stream);
    std::thread(work, stream).detach();
    return stream;
}

void close_stream(CUstream stream) {
    stream->alive = false;
    driver().changed.notify_all();
}

CUresult find_stream(CUcontext current, CUstream handle, Use use, CUstream& stream) {
    stream = handle == nullptr || handle == CU_STREAM_LEGACY ? current->legacy
             : handle == CU_STREAM_PER_THREAD                ? per_thread_stream(current)
                                                             : handle;
    if (driver().streams.count(stream) == 0) return CUDA_ERROR_INVALID_HANDLE;
    if (!stream->alive) return stream->context->alive ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (stream->legacy) {
        if (CUstream captured = captured_and_blocking(stream->context)) {
            invalidate(*captured->capture);
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    }
    if (stream->capture == nullptr) return CUDA_SUCCESS;
    if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (use == Use::enqueue) return CUDA_SUCCESS;
    invalidate(*stream->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

Ticket submit(CUstream stream, std::function<void()> run, std::vector<Ticket> after) {
    const CUcontext context = stream->context;
    if (stream->legacy) {
        for (CUstream other : context->streams) {
            if (other->blocking() && other->completed < other->submitted) after.push_back({other, other->submitted});
        }
    } else if (stream->blocking() && context->legacy->completed < context->legacy->submitted) {
        after.push_back({context->legacy, context->legacy->submitted});
    }
    stream->queue.push_back({std::move(run), std::move(after)});
    driver().changed.notify_all();
    return {stream, ++stream->submitted};
}

void enqueue(CUstream stream, std::function<void()> run) {
    if (stream->capture != nullptr) add_node(stream, std::move(run));
    else submit(stream, std::move(run));
}

bool has_completed(const Ticket& ticket) { return ticket.stream == nullptr || ticket.stream->completed >= ticket.number; }

void wait_for(std::unique_lock<std::mutex>& lock, const Ticket& ticket) {
    driver().changed.wait(lock, [&ticket] { return has_completed(ticket); });
}

void wait_for_context(std::unique_lock<std::mutex>& lock, CUcontext context) {
    const std::vector<CUstream> streams = context->streams;  // others may be added while this waits
    for (CUstream stream : streams) wait_for(lock, {stream, stream->submitted});
    wait_for(lock, {context->legacy, context->legacy->submitted});
}

EXPORT CUresult cuCtxSynchronize(void) {
    ENTER(context);
    for (const auto& capture : driver().captures) {
        if (capture->origin->context != call.context) continue;
        invalidate(*capture);
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    RETURN_IF_REFUSED(refuse_if_unsafe());
    wait_for_context(call.lock, call.context);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamCreate(CUstream* handle, unsigned flags) {
    ENTER(context);
    if (handle == nullptr || (flags & ~static_cast<unsigned>(CU_STREAM_NON_BLOCKING)) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *handle = make_stream(call.context, flags);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamCreateWithPriority(CUstream* handle, unsigned flags, int) {
    ENTER(context);
    if (handle == nullptr || (flags & ~static_cast<unsigned>(CU_STREAM_NON_BLOCKING)) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *handle = make_stream(call.context, flags);
    return CUDA_SUCCESS;
}

// Work that was given goes on; the handle is gone.
EXPORT CUresult cuStreamDestroy_v2(CUstream handle) {
    ENTER(context);
    if (driver().streams.count(handle) == 0 || !handle->alive || handle->legacy) return CUDA_ERROR_INVALID_HANDLE;
    if (handle->capture != nullptr) invalidate(*handle->capture);
    close_stream(handle);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
    ENTER(context);
    if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    *context = stream->context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
    ENTER(context);
    if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    *flags = stream->flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamQuery(CUstream handle) {
    ENTER(context);
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::inspect, stream));
    RETURN_IF_REFUSED(refuse_if_unsafe());
    return stream->completed < stream->submitted ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream handle) {
    ENTER(context);
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::inspect, stream));
    RETURN_IF_REFUSED(refuse_if_unsafe());
    // The legacy stream is empty only when what it is ordered after is done too.
    wait_for(call.lock, stream->legacy ? submit(stream, nullptr) : Ticket{stream, stream->submitted});
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
    ENTER(context);
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    RETURN_IF_REFUSED(find_event(event));
    if (stream->capture != nullptr || event->capture != nullptr) return capture_wait(stream, event);
    if (event->recorded.stream != nullptr) submit(stream, nullptr, {event->recorded});
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
    ENTER(context);
    if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    enqueue(stream, [function, data] { function(data); });
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventCreate(CUevent* event, unsigned flags) {
    ENTER(context);
    if (event == nullptr || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    *event = new CUevent_st{call.context, (flags & CU_EVENT_DISABLE_TIMING) == 0};
    driver().events.insert(*event);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    ENTER(context);
    RETURN_IF_REFUSED(find_event(event));
    event->alive = false;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream handle) {
    ENTER(context);
    RETURN_IF_REFUSED(find_event(event));
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    if (event->context != stream->context) return CUDA_ERROR_INVALID_HANDLE;
    event->capture = stream->capture;
    if (stream->capture != nullptr) event->tips = stream->tips;
    else event->recorded = submit(stream, [event] { event->time = std::chrono::steady_clock::now(); });
    return CUDA_SUCCESS;
}

// An event that was never recorded has happened.
EXPORT CUresult cuEventQuery(CUevent event) {
    ENTER(context);
    RETURN_IF_REFUSED(refuse_captured(event));
    return has_completed(event->recorded) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuEventSynchronize(CUevent event) {
    ENTER(context);
    RETURN_IF_REFUSED(refuse_captured(event));
    wait_for(call.lock, Ticket(event->recorded));
    return CUDA_SUCCESS;
}

// The time is the CPU's: it says in which order things happened, and nothing of how long they take on a GPU.
EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    ENTER(context);
    if (milliseconds == nullptr) return CUDA_ERROR_INVALID_VALUE;
    for (CUevent event : {start, end}) {
        RETURN_IF_REFUSED(refuse_captured(event));
        if (!event->timed || event->recorded.stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    }
    if (!has_completed(start->recorded) || !has_completed(end->recorded)) return CUDA_ERROR_NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return CUDA_SUCCESS;
}
