// What the compiler's checks for undefined behaviour call when a kernel fails one: a minimal runtime of
// -fsanitize=undefined, which ends the process with the line, the kernel, the block and the thread.
//
// Why: what C++ leaves undefined is where the CPU and the GPU differ silently. A float4 read at an odd address works on
// x86-64 and faults on a GPU; x << 32 is x here and 0 there; a float beyond the range of int converts to INT_MIN here
// and saturates there. With a runtime of our own the double needs no libubsan in the process that loads it.

#include <cstdint>

#include "grid.h"

namespace {

// What the data of every check that is handled here begins with. Laid down by GCC and Clang alike.
struct Source {
    const char* file;
    uint32_t line, column;
};

[[noreturn]] void report(const void* data, const char* what) {
    const Source& source = *static_cast<const Source*>(data);
    emulation::fail("%s:%u:%u: %s", source.file, source.line, source.column, what);
}

}  // namespace

// The checks pass one or two more arguments; only the first is used.
#define HANDLER(name, what) \
    extern "C" [[noreturn]] void __ubsan_handle_##name##_abort(const void* data) { report(data, what); }

HANDLER(type_mismatch_v1, "access through a null pointer, or one that is not aligned for its type")
HANDLER(out_of_bounds, "index beyond the end of an array")
HANDLER(shift_out_of_bounds, "shift by a negative count or by the width of the type or more")
HANDLER(divrem_overflow, "division of an integer by zero")
HANDLER(float_cast_overflow, "a float beyond the range of the integer type it is converted to")
HANDLER(add_overflow, "signed addition overflows")
HANDLER(sub_overflow, "signed subtraction overflows")
HANDLER(mul_overflow, "signed multiplication overflows")
HANDLER(negate_overflow, "signed negation overflows")
