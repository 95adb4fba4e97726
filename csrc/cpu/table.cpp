// Fills the kernel table of one ISA level; compiled once per level. A new kernel adds one
// declaration and one entry.
#include "cpu/kernels.h"
#include "cpu/simd.h"

#define EVOPRUNE_STRING_(x) #x
#define EVOPRUNE_STRING(x) EVOPRUNE_STRING_(x)

namespace evoprune::EVOPRUNE_ISA {

void select_nm(const SelectNmArgs&, int64_t, int64_t);
void pack_rows(const PackRowsArgs&, int64_t, int64_t);
void nm_pack(const NmPackArgs&, int64_t, int64_t);
void nm_unpack(const NmUnpackArgs&, int64_t, int64_t);
void nm_prepare(const NmPrepareArgs&, int64_t, int64_t);
void nm_linear(const NmLinearArgs&, int64_t, int64_t);
void nm_linear_tokens(const NmLinearArgs&, int64_t, int64_t);
void pack_panels(const PanelArgs&, int64_t, int64_t);
void block_linear(const StripArgs&, int64_t, int64_t);
void bitmask_linear(const StripArgs&, int64_t, int64_t);
void conv_image(const ConvImageArgs&, int64_t, int64_t);
void conv_panels(const ConvPanelArgs&, int64_t, int64_t);
void strip_panels(const StripArgs&, int64_t, int64_t);
void w8a8_quantize(const QuantizeArgs&, int64_t, int64_t);
void w8a8_linear(const W8a8Args&, int64_t, int64_t);

void adamw_step(const AdamwStepArgs&, int64_t, int64_t);
void sgd_step(const SgdStepArgs&, int64_t, int64_t);

void channel_gate(const ChannelGateArgs&, int64_t, int64_t);
void channel_gate_backward(const ChannelGateBackwardArgs&, int64_t, int64_t);
void channel_sizes(const ChannelSizesArgs&, int64_t, int64_t);
void topk_channels(const TopkChannelsArgs&, int64_t, int64_t);
void move_channels(const MoveChannelsArgs&, int64_t, int64_t);
void gate_statistics(const GateStatisticsArgs&, int64_t, int64_t);
void gate_norm(const GateNormArgs&, int64_t, int64_t);
void gate_norm_sums(const GateNormSumsArgs&, int64_t, int64_t);
void gate_norm_grad(const GateNormGradArgs&, int64_t, int64_t);

void probe_read(const ProbeReadArgs&, int64_t, int64_t);
void probe_fma(const ProbeFmaArgs&, int64_t, int64_t);
void probe_stream(const ProbeStreamArgs&, int64_t, int64_t);

extern const Kernels table;
const Kernels table = {
    .level = EVOPRUNE_STRING(EVOPRUNE_ISA),
    .lanes = kLanes,
    .select_nm = select_nm,
    .pack_rows = pack_rows,
    .nm_pack = nm_pack,
    .nm_unpack = nm_unpack,
    .nm_prepare = nm_prepare,
    .nm_linear = nm_linear,
    .nm_linear_tokens = nm_linear_tokens,
    .adamw_step = adamw_step,
    .sgd_step = sgd_step,
    .pack_panels = pack_panels,
    .block_linear = block_linear,
    .bitmask_linear = bitmask_linear,
    .conv_image = conv_image,
    .conv_panels = conv_panels,
    .strip_panels = strip_panels,
    .probe_read = probe_read,
    .probe_fma = probe_fma,
    .probe_stream = probe_stream,
    .w8a8_quantize = w8a8_quantize,
    .w8a8_linear = w8a8_linear,
    .channels =
        {
            .gate = channel_gate,
            .gate_backward = channel_gate_backward,
            .sizes = channel_sizes,
            .topk = topk_channels,
            .move = move_channels,
            .statistics = gate_statistics,
            .norm = gate_norm,
            .norm_sums = gate_norm_sums,
            .norm_grad = gate_norm_grad,
        },
};

}  // namespace evoprune::EVOPRUNE_ISA
