// What every call of the double begins with; faults that tests inject; counts and traces of calls.
//
//     void fgs_fake_fail(const char* function, int nth, int error)          the nth call from now on fails once
//     void fgs_fake_fail_sticky(const char* function, int nth, int error)   and from then on every call that needs a
//                                                                           context, as after an illegal address
//     void fgs_fake_reset(void)                                             no faults, counts of 0, no trace
//     unsigned long long fgs_fake_count(const char* function)               calls since the start or fgs_fake_reset
//     void fgs_fake_trace_begin(void)
//     size_t fgs_fake_trace_end(char* out, size_t bytes)                    one line a call: name, thread id
//
// `function` is a name with or without _v2, "*" for any. FGS_FAKE_FAIL=function:nth:error[:sticky][,...] does the same
// from outside. "pageable" counts asynchronous copies of memory that is not pinned: the driver accepts and serialises
// them. fgs_fake_trace_end returns how many bytes the whole trace takes, with its final NUL, whatever `bytes` is.

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace {

struct Fault {
    std::string function;
    long nth;
    CUresult error;
    bool sticky;
};

struct Calls {
    std::mutex lock;
    std::map<std::string, unsigned long long> counts;
    std::vector<Fault> faults;
    CUresult sticky = CUDA_SUCCESS;
    bool tracing = false;
    std::string trace;
};

// "cuMemAlloc" of "cuMemAlloc_v2".
std::string plain(const char* function) {
    std::string name = function;
    if (name.size() > 3 && name.compare(name.size() - 3, 3, "_v2") == 0) name.resize(name.size() - 3);
    return name;
}

void read_faults(Calls& calls) {
    const char* text = getenv("FGS_FAKE_FAIL");
    if (text == nullptr) return;
    std::string list = text;
    for (size_t begin = 0; begin < list.size();) {
        const size_t end = std::min(list.find(',', begin), list.size());
        char function[64], sticky[8] = "";
        long nth;
        int error;
        const int fields =
            sscanf(list.substr(begin, end - begin).c_str(), "%63[^:]:%ld:%d:%7s", function, &nth, &error, sticky);
        if (fields < 3 || nth < 1 || (fields == 4 && strcmp(sticky, "sticky") != 0)) {
            fprintf(stderr, "FGS_FAKE_FAIL is function:nth:error[:sticky], with commas between several: %s\n", text);
            abort();
        }
        calls.faults.push_back({plain(function), nth, static_cast<CUresult>(error), fields == 4});
        begin = end + 1;
    }
}

Calls& calls() {
    static Calls& all = [] () -> Calls& {
        Calls* made = new Calls;
        read_faults(*made);
        return *made;
    }();
    return all;
}

void record(Calls& all, const std::string& name) {
    all.counts[name]++;
    if (all.tracing) all.trace += name + " " + std::to_string(syscall(SYS_gettid)) + "\n";
}

// The error that was injected for this call, if any.
CUresult count_and_fail(const char* function, Needs needs) {
    Calls& all = calls();
    std::lock_guard<std::mutex> guard(all.lock);
    const std::string name = plain(function);
    record(all, name);
    if (all.sticky != CUDA_SUCCESS && needs == Needs::context) return all.sticky;
    for (size_t i = 0; i < all.faults.size(); i++) {
        Fault& fault = all.faults[i];
        if ((fault.function != "*" && fault.function != name) || --fault.nth > 0) continue;
        const CUresult error = fault.error;
        if (fault.sticky) all.sticky = error;
        all.faults.erase(all.faults.begin() + static_cast<long>(i));
        return error;
    }
    return CUDA_SUCCESS;
}

void add_fault(const char* function, int nth, int error, bool sticky) {
    Calls& all = calls();
    std::lock_guard<std::mutex> guard(all.lock);
    all.faults.push_back({plain(function), nth < 1 ? 1 : nth, static_cast<CUresult>(error), sticky});
}

}  // namespace

Call::Call(const char* function, Needs needs) {
    refused = count_and_fail(function, needs);
    if (refused != CUDA_SUCCESS || needs == Needs::nothing) return;
    // A child of fork has none of the workers: the driver does not work there either. Its lock may be held for ever.
    if (driver().process != getpid()) {
        refused = CUDA_ERROR_NOT_INITIALIZED;
        return;
    }
    lock = std::unique_lock<std::mutex>(driver().lock);
    context = current_context();
    if (needs != Needs::context) return;
    if (context == nullptr) refused = CUDA_ERROR_INVALID_CONTEXT;
    else if (!context->alive) refused = CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

void note(const char* event) {
    Calls& all = calls();
    std::lock_guard<std::mutex> guard(all.lock);
    record(all, event);
}

long long setting(const char* name, long long otherwise) {
    const char* text = getenv(name);
    if (text == nullptr || *text == '\0') return otherwise;
    char* end;
    const long long value = strtoll(text, &end, 0);
    if (*end != '\0' || value < 0) {
        fprintf(stderr, "%s is a whole number, not %s\n", name, text);
        abort();
    }
    return value;
}

EXPORT void fgs_fake_fail(const char* function, int nth, int error) { add_fault(function, nth, error, false); }

EXPORT void fgs_fake_fail_sticky(const char* function, int nth, int error) { add_fault(function, nth, error, true); }

EXPORT void fgs_fake_reset(void) {
    Calls& all = calls();
    std::lock_guard<std::mutex> guard(all.lock);
    all.counts.clear();
    all.faults.clear();
    all.sticky = CUDA_SUCCESS;
    all.tracing = false;
    all.trace.clear();
}

EXPORT unsigned long long fgs_fake_count(const char* function) {
    Calls& all = calls();
    std::lock_guard<std::mutex> guard(all.lock);
    if (strcmp(function, "*") == 0) {
        unsigned long long sum = 0;
        for (const auto& [name, count] : all.counts) sum += name == "pageable" ? 0 : count;
        return sum;
    }
    const auto found = all.counts.find(plain(function));
    return found == all.counts.end() ? 0 : found->second;
}

EXPORT void fgs_fake_trace_begin(void) {
    Calls& all = calls();
    std::lock_guard<std::mutex> guard(all.lock);
    all.tracing = true;
    all.trace.clear();
}

EXPORT size_t fgs_fake_trace_end(char* out, size_t bytes) {
    Calls& all = calls();
    std::lock_guard<std::mutex> guard(all.lock);
    all.tracing = false;
    if (out != nullptr && bytes > 0) {
        const size_t copied = std::min(bytes - 1, all.trace.size());
        memcpy(out, all.trace.data(), copied);
        out[copied] = '\0';
    }
    return all.trace.size() + 1;
}
