// Device memory, pinned and registered host memory, pointers and copies.
//
// An allocation lies between two pages that may not be touched, as close to the second as the alignment of 256 bytes
// allows; the bytes before and after it on its own pages (its red zones) hold a pattern that is checked when it is freed
// and when the process ends. It is filled with 0xA5, so that nothing is zero by luck. After a free its pages may not be
// touched until the process ends. FGS_FAKE_MEMORY is the memory of each device in bytes (4 GiB).

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace {

constexpr size_t page = 4096, alignment = 256;
constexpr unsigned char filling = 0xa5, red = 0xd7;

size_t up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

size_t capacity() {
    static const size_t bytes = static_cast<size_t>(setting("FGS_FAKE_MEMORY", 4LL << 30));
    return bytes;
}

size_t used(CUdevice device) {
    size_t sum = 0;
    for (const auto& [start, allocation] : driver().memory) {
        const bool counts = allocation.kind == Allocation::Kind::device && allocation.context->device == device;
        sum += counts ? up(allocation.bytes, alignment) : 0;
    }
    return sum;
}

// The allocation that has this byte.
std::pair<const uintptr_t, Allocation>* find(uintptr_t address) {
    auto after = driver().memory.upper_bound(address);
    if (after == driver().memory.begin()) return nullptr;
    auto& entry = *--after;
    return address - entry.first < entry.second.bytes ? &entry : nullptr;
}

// The allocation that has all of a range.
const Allocation* find_range(uintptr_t address, size_t bytes) {
    const auto* entry = find(address);
    return entry != nullptr && bytes <= entry->second.bytes - (address - entry->first) ? &entry->second : nullptr;
}

CUresult allocate(CUcontext context, Allocation::Kind kind, size_t bytes, uintptr_t& start) {
    static unsigned long long next_id = 1;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    const bool device = kind == Allocation::Kind::device;
    if (bytes > (size_t{1} << 46)) return CUDA_ERROR_OUT_OF_MEMORY;
    if (device && up(bytes, alignment) > capacity() - std::min(capacity(), used(context->device))) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const size_t inside = up(bytes, page), mapped = inside + 2 * page;
    void* memory = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    char* mapping = static_cast<char*>(memory);
    if (mprotect(mapping + page, inside, PROT_READ | PROT_WRITE) != 0) {
        munmap(memory, mapped);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    char* first = mapping + page + inside - up(bytes, alignment);
    memset(mapping + page, red, static_cast<size_t>(first - mapping) - page);
    memset(first, filling, bytes);
    memset(first + bytes, red, up(bytes, alignment) - bytes);
    start = reinterpret_cast<uintptr_t>(first);
    driver().memory[start] = {kind, context, bytes, mapping, mapped, next_id++};
    return CUDA_SUCCESS;
}

// Ends the process if something was written beside the allocation.
void check_red_zones(uintptr_t start, const Allocation& allocation) {
    if (allocation.mapping == nullptr) return;
    const char* first = reinterpret_cast<const char*>(start);
    const char* const end = allocation.mapping + allocation.mapping_bytes - page;
    const auto intact = [](char byte) { return static_cast<unsigned char>(byte) == red; };
    const char* before = std::find_if_not(static_cast<const char*>(allocation.mapping + page), first, intact);
    const char* after = std::find_if_not(first + allocation.bytes, end, intact);
    if (before == first && after == end) return;
    const char* hit = before != first ? before : after;
    fprintf(stderr, "libcuda double: %zu bytes at %p: something was written at offset %td\n", allocation.bytes,
            static_cast<const void*>(first), hit - first);
    abort();
}

// The pages stay reserved and closed: a later use crashes instead of reading what came after.
void release(uintptr_t start, const Allocation& allocation) {
    check_red_zones(start, allocation);
    if (allocation.mapping == nullptr) return;
    mmap(allocation.mapping, allocation.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
}

CUresult free_one(Call& call, uintptr_t start, bool host) {
    RETURN_IF_REFUSED(refuse_if_unsafe());
    auto found = driver().memory.find(start);
    const bool right = found != driver().memory.end() && found->second.kind != Allocation::Kind::registered &&
                       (found->second.kind == Allocation::Kind::host) == host;
    if (!right) return CUDA_ERROR_INVALID_VALUE;
    // As the driver: what was given before may still use it.
    wait_for_context(call.lock, found->second.context);
    found = driver().memory.find(start);
    if (found == driver().memory.end()) return CUDA_ERROR_INVALID_VALUE;  // freed by another thread meanwhile
    release(start, found->second);
    driver().memory.erase(found);
    return CUDA_SUCCESS;
}

CUresult attribute_of(uintptr_t address, CUpointer_attribute attribute, void* data, bool& known) {
    auto* entry = find(address);
    known = entry != nullptr;
    const bool device = known && entry->second.kind == Allocation::Kind::device;
    switch (attribute) {
        case CU_POINTER_ATTRIBUTE_CONTEXT: *static_cast<CUcontext*>(data) = known ? entry->second.context : nullptr; break;
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
            *static_cast<unsigned*>(data) = known ? (device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST) : CUmemorytype{};
            break;
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *static_cast<CUdeviceptr*>(data) = known ? address : 0; break;
        case CU_POINTER_ATTRIBUTE_HOST_POINTER:
            *static_cast<void**>(data) = known && !device ? reinterpret_cast<void*>(address) : nullptr;
            if (device) return CUDA_ERROR_INVALID_VALUE;
            break;
        case CU_POINTER_ATTRIBUTE_BUFFER_ID: *static_cast<unsigned long long*>(data) = known ? entry->second.id : 0; break;
        case CU_POINTER_ATTRIBUTE_IS_MANAGED: *static_cast<int*>(data) = 0; break;
        // -2 is what the driver calls no device.
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int*>(data) = known ? entry->second.context->device : -2; break;
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *static_cast<CUdeviceptr*>(data) = known ? entry->first : 0; break;
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *static_cast<size_t*>(data) = known ? entry->second.bytes : 0; break;
        case CU_POINTER_ATTRIBUTE_MAPPED: *static_cast<int*>(data) = known; break;
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

enum class Direction { to_device, to_host, on_device };

// Enqueues a copy. Pageable memory is read inside the call, as the driver stages it; returns a ticket to wait for
// where the driver would wait.
CUresult copy(CUstream stream, uintptr_t to, uintptr_t from, size_t bytes, Direction direction, Ticket& wait) {
    if (bytes == 0) return CUDA_SUCCESS;
    const bool writes_device = direction != Direction::to_host, reads_device = direction != Direction::to_device;
    if (writes_device && find_range(to, bytes) == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (reads_device && find_range(from, bytes) == nullptr) return CUDA_ERROR_INVALID_VALUE;
    void* target = reinterpret_cast<void*>(to);
    const char* source = reinterpret_cast<const char*>(from);
    const bool pageable = (!writes_device && find_range(to, bytes) == nullptr) ||
                          (!reads_device && find_range(from, bytes) == nullptr);
    if (pageable) note("pageable");
    if (stream->capture != nullptr) {
        add_node(stream, [=] { memmove(target, source, bytes); });
    } else if (pageable && direction == Direction::to_device) {
        std::vector<char> staged(source, source + bytes);
        submit(stream, [target, staged = std::move(staged)] { memcpy(target, staged.data(), staged.size()); });
    } else {
        const Ticket ticket = submit(stream, [=] { memmove(target, source, bytes); });
        if (pageable) wait = ticket;
    }
    return CUDA_SUCCESS;
}

CUresult copy_async(Call& call, CUstream handle, uintptr_t to, uintptr_t from, size_t bytes, Direction direction) {
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    Ticket wait;
    RETURN_IF_REFUSED(copy(stream, to, from, bytes, direction, wait));
    wait_for(call.lock, wait);
    return CUDA_SUCCESS;
}

// On the legacy stream, and done when it returns. Not counted as pageable: nobody expects it not to wait.
CUresult copy_now(Call& call, uintptr_t to, uintptr_t from, size_t bytes, Direction direction) {
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, nullptr, Use::inspect, stream));
    RETURN_IF_REFUSED(refuse_if_unsafe());
    if (bytes == 0) return CUDA_SUCCESS;
    if (direction != Direction::to_host && find_range(to, bytes) == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (direction != Direction::to_device && find_range(from, bytes) == nullptr) return CUDA_ERROR_INVALID_VALUE;
    wait_for(call.lock, submit(stream, [=] {
                 memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
             }));
    return CUDA_SUCCESS;
}

CUresult set(CUstream stream, CUdeviceptr to, unsigned char value, size_t bytes) {
    if (bytes == 0) return CUDA_SUCCESS;
    if (find_range(to, bytes) == nullptr) return CUDA_ERROR_INVALID_VALUE;
    enqueue(stream, [=] { memset(reinterpret_cast<void*>(to), value, bytes); });
    return CUDA_SUCCESS;
}

uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

__attribute__((destructor)) void check_all_red_zones() {
    std::unique_lock<std::mutex> lock(driver().lock, std::try_to_lock);
    if (!lock.owns_lock()) return;
    for (const auto& [start, allocation] : driver().memory) check_red_zones(start, allocation);
}

}  // namespace

void free_memory_of(CUcontext context) {
    std::map<uintptr_t, Allocation>& memory = driver().memory;
    for (auto entry = memory.begin(); entry != memory.end();) {
        if (entry->second.context != context) {
            ++entry;
            continue;
        }
        release(entry->first, entry->second);
        entry = memory.erase(entry);
    }
}

// Looks at every word of the parameters that could be a pointer. Tables of pointers in device memory are not followed.
void check_pointers(const emulation::Kernel& kernel, CUcontext context, const void* params) {
    for (size_t i = 0; i + sizeof(uintptr_t) <= kernel.param_bytes; i += sizeof(uintptr_t)) {
        uintptr_t word;
        memcpy(&word, static_cast<const char*>(params) + i, sizeof word);
        const auto* entry = find(word);
        if (entry == nullptr || entry->second.kind != Allocation::Kind::device || entry->second.context == context) continue;
        fprintf(stderr, "libcuda double: kernel %s on device %d is given memory of another context, of device %d (byte %zu "
                        "of its parameters)\n", kernel.name, context->device, entry->second.context->device, i);
        abort();
    }
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    ENTER(initialised);
    if (device < 0 || device >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *bytes = capacity();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetInfo_v2(size_t* available, size_t* total) {
    ENTER(context);
    if (available == nullptr || total == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *total = capacity();
    *available = capacity() - std::min(capacity(), used(call.context->device));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
    ENTER(context);
    if (pointer == nullptr) return CUDA_ERROR_INVALID_VALUE;
    RETURN_IF_REFUSED(refuse_if_unsafe());
    uintptr_t start;
    RETURN_IF_REFUSED(allocate(call.context, Allocation::Kind::device, bytes, start));
    *pointer = start;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr pointer) {
    ENTER(context);
    return pointer == 0 ? CUDA_SUCCESS : free_one(call, pointer, false);
}

EXPORT CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
    ENTER(context);
    if (pointer == nullptr || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    RETURN_IF_REFUSED(refuse_if_unsafe());
    uintptr_t start;
    RETURN_IF_REFUSED(allocate(call.context, Allocation::Kind::host, bytes, start));
    *pointer = reinterpret_cast<void*>(start);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemFreeHost(void* pointer) {
    ENTER(context);
    return pointer == nullptr ? CUDA_SUCCESS : free_one(call, address(pointer), true);
}

EXPORT CUresult cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned) {
    ENTER(context);
    if (pointer == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    RETURN_IF_REFUSED(refuse_if_unsafe());
    const uintptr_t start = address(pointer);
    const auto next = driver().memory.lower_bound(start);
    const bool overlaps = find(start) != nullptr || (next != driver().memory.end() && next->first - start < bytes);
    if (overlaps) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    driver().memory[start] = {Allocation::Kind::registered, call.context, bytes, nullptr, 0, 0};
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemHostUnregister(void* pointer) {
    ENTER(context);
    RETURN_IF_REFUSED(refuse_if_unsafe());
    const auto found = driver().memory.find(address(pointer));
    if (found == driver().memory.end() || found->second.kind != Allocation::Kind::registered) {
        return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    }
    wait_for_context(call.lock, found->second.context);
    driver().memory.erase(address(pointer));
    return CUDA_SUCCESS;
}

// Host memory has one address everywhere, as with unified addressing.
EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* pointer, unsigned flags) {
    ENTER(context);
    if (device == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    const auto* entry = find(address(pointer));
    if (entry == nullptr || entry->second.kind == Allocation::Kind::device) return CUDA_ERROR_INVALID_VALUE;
    *device = address(pointer);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    ENTER(initialised);
    if (data == nullptr || find(pointer) == nullptr) return CUDA_ERROR_INVALID_VALUE;
    bool known;
    return attribute_of(pointer, attribute, data, known);
}

// A pointer that is not CUDA's is no error here: its attributes are 0.
EXPORT CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute* attributes, void** data, CUdeviceptr pointer) {
    ENTER(initialised);
    if (attributes == nullptr || data == nullptr) return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        bool known;
        const CUresult result = attribute_of(pointer, attributes[i], data[i], known);
        // The host's address of device memory is null in a list, and an error alone.
        if (result != CUDA_SUCCESS && attributes[i] != CU_POINTER_ATTRIBUTE_HOST_POINTER) return result;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemsetD8_v2(CUdeviceptr pointer, unsigned char value, size_t bytes) {
    ENTER(context);
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, nullptr, Use::inspect, stream));
    RETURN_IF_REFUSED(refuse_if_unsafe());
    return set(stream, pointer, value, bytes);
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr pointer, unsigned char value, size_t bytes, CUstream handle) {
    ENTER(context);
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    return set(stream, pointer, value, bytes);
}

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    ENTER(context);
    return copy_now(call, to, address(from), bytes, Direction::to_device);
}

EXPORT CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    ENTER(context);
    return copy_now(call, address(to), from, bytes, Direction::to_host);
}

EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER(context);
    return copy_now(call, to, from, bytes, Direction::on_device);
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
    ENTER(context);
    return copy_async(call, handle, to, address(from), bytes, Direction::to_device);
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTER(context);
    return copy_async(call, handle, address(to), from, bytes, Direction::to_host);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTER(context);
    return copy_async(call, handle, to, from, bytes, Direction::on_device);
}
