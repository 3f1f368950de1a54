// The same through forgetscope.hpp.
#include <array>
#include <cstdio>
#include <forgetscope.hpp>

int main() {
    using namespace forgetscope;
    std::array<float, 4> gradient{3, 0, 0, 4};
    Result<Scope> opened = Scope::open();
    if (!opened) return std::fprintf(stderr, "%s\n", opened.status.message()), 1;
    Scope& scope = opened.value;
    const auto id = scope.add({.name = "weight", .numel = 4});
    bool fine = id && scope.bind(id.value, FGS_GRAD, View(gradient));
    {
        auto task = scope.task("only");
        auto step = scope.step(0);
        fine = step.is_sampled() && step.gradients_ready() && step.end() && fine;
    }
    fine = scope.flush() && fine;
    double norm = 0;
    auto reader = Reader::open(std::string(scope.ring_path()));
    while (const auto record = reader.value.next())
        if (record->level == 1 && reader.value.kind(*record) == "gradient")
            norm = reader.value.value(*record, "norm").value_or(0);
    std::printf("norm %g\n", norm);
    return fine && norm == 5 ? 0 : 1;
}
