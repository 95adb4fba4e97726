// Chooses the ISA level when the library is loaded, and lets tests choose another.
#include <atomic>
#include <cstring>

#include "ops/check.h"

namespace evoprune {

namespace baseline {
extern const Kernels table;
}
#if EVOPRUNE_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512vnni {  // the integer kernels alone
void w8a8_quantize(const QuantizeArgs&, int64_t, int64_t);
void w8a8_linear(const W8a8Args&, int64_t, int64_t);
}  // namespace avx512vnni
#endif

namespace {

#if EVOPRUNE_X86
bool avx512_runs() {
  return EVOPRUNE_EMULATED ||
         (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"));
}

// avx512 with the integer kernels of VNNI.
const Kernels kVnni = [] {
  Kernels table = avx512::table;
  table.level = "avx512vnni";
  table.w8a8_quantize = avx512vnni::w8a8_quantize;
  table.w8a8_linear = avx512vnni::w8a8_linear;
  return table;
}();
#endif

struct Level {
  const Kernels* table;
  bool (*runs)();
};

// best first
const Level kLevels[] = {
#if EVOPRUNE_X86
    {&kVnni,
     [] {
       return avx512_runs() && (EVOPRUNE_EMULATED || __builtin_cpu_supports("avx512vnni") > 0);
     }},
    {&avx512::table, avx512_runs},
    {&avx2::table,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") > 0; }},
#endif
    {&baseline::table, [] { return true; }},
};

const Level* find(const char* level) {
  for (const Level& l : kLevels)
    if (std::strcmp(l.table->level, level) == 0) return &l;
  return nullptr;
}

const Kernels* best() {
  for (const Level& l : kLevels)
    if (l.runs()) return l.table;
  return &baseline::table;
}

std::atomic<const Kernels*> current{best()};

std::string level_in_use() {
  return kernels().level;
}

std::string runnable_levels() {  // best first, separated by commas
  std::string names;
  for (const Level& l : kLevels)
    if (l.runs()) names += (names.empty() ? "" : ",") + std::string(l.table->level);
  return names;
}

void use_level(std::string level) {
  STD_TORCH_CHECK(set_level(level.c_str()), "ISA level '", level,
                  "' does not run on this machine; runnable: ", runnable_levels());
}

}  // namespace

const Kernels& kernels() {
  return *current.load(std::memory_order_relaxed);
}
bool level_runs(const char* level) {
  const Level* l = find(level);
  return l != nullptr && l->runs();
}
bool set_level(const char* level) {
  if (!level_runs(level)) return false;
  current = find(level)->table;
  return true;
}

}  // namespace evoprune

STABLE_TORCH_LIBRARY(evoprune_raw, m) {
  m.def("isa_level() -> str");
  m.def("isa_levels() -> str");
  m.def("set_isa_level(str level) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(evoprune_raw, CompositeExplicitAutograd, m) {
  m.impl("isa_level", TORCH_BOX(&evoprune::level_in_use));
  m.impl("isa_levels", TORCH_BOX(&evoprune::runnable_levels));
  m.impl("set_isa_level", TORCH_BOX(&evoprune::use_level));
}
