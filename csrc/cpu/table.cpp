// Fills the kernel table of one ISA level; compiled once per level. A new kernel adds one
// declaration and one entry.
#include "cpu/kernels.h"
#include "cpu/simd.h"

#define EVOPRUNE_STRING_(x) #x
#define EVOPRUNE_STRING(x) EVOPRUNE_STRING_(x)

namespace evoprune::EVOPRUNE_ISA {

void select_nm(const SelectNmArgs&, int64_t, int64_t);
void pack_panels(const PanelArgs&, int64_t, int64_t);
void block_linear(const StripArgs&, int64_t, int64_t);
void bitmask_linear(const StripArgs&, int64_t, int64_t);

void adamw_step(const AdamwStepArgs&, int64_t, int64_t);
void sgd_step(const SgdStepArgs&, int64_t, int64_t);

extern const Kernels table;
const Kernels table = {
    .level = EVOPRUNE_STRING(EVOPRUNE_ISA),
    .lanes = kLanes,
    .select_nm = select_nm,
    .adamw_step = adamw_step,
    .sgd_step = sgd_step,
    .pack_panels = pack_panels,
    .block_linear = block_linear,
    .bitmask_linear = bitmask_linear,
};

}  // namespace evoprune::EVOPRUNE_ISA
