// block_linear: a linear layer whose weight keeps some of its blocks, on the tensor cores.
//
//   y[m, n] = act(sum over k of x[m, k] W[n, k] + bias[n])         only kept blocks are visited
//
//   x [tokens, K]             one block row of W: kept blocks, side by side in memory
//     a . b . . c               values   | a: bn x bk | b | c |       row after row in each block
//     a . b . . c               col_idx    0            2   5         row_ptr: where the row begins
//     a . b . . c
//                             summed dimension: position = block * bk + column, 128 bytes a step:
//                             64 numbers (f32: 32), so four blocks of 16 columns or half of one of
//                             128; nothing but the pointer of a copy depends on bk
//
//   grid     a thread block for a tile of tokens x outputs (kBlockTiles); tiles of outputs first, so
//            that the weight stays in L2 while x goes by once. The outputs are a block row, or part
//            of one: 128, 64, 32 or 16 with 128 tokens; 16 with 16 tokens. Small problems halve the
//            outputs of a tile, down to 32, while there are fewer tiles than processors
//   block    cp.async pipeline of 3 or 4 stages: x of the tokens, gathered at col_idx * bk, and rows
//            of the block; a thread copies the same 16 bytes of each step for several rows, and
//            reads the index of the step after
//   warp     32 tokens x up to 64 outputs, ldmatrix and mma m16n8k16 (f32: m16n8k8 of tf32). With
//            few tokens four warps take every fourth step, a pipeline each without a barrier, and
//            their sums are added at the end, in the order of the warps: N/16 thread blocks with 8
//            steps under way each, so the weight streams by once at full width
//   lane     sums go through shared memory (block_sums.cuh): a lane stores 16 bytes of a row of y
//
// Sums, bias and activation are float; f32 operands are rounded to tf32 (block_tile.cuh says with
// what error). Every entry of a kept block takes part, no other; the same result in every run, but
// another number of tokens may sum in another order (few tokens: four partial sums). Indices are not
// checked: a column index out of range reads zeros, row_ptr is believed.
//
// Bounded by the weight from memory with few tokens; with many by L2 reads: a tile of T tokens and E
// outputs reads 2 (T + E) bytes for T E products, at full tensor speed of an A100 (16-bit)
// 2048 (1/T + 1/E) bytes a clock of an SM; L2 gives about 47. So blocks of 128 (32 bytes) and 64 (48
// bytes) can run at full speed, 32 at 60 %, 16 at a third of it.
//
// By tile, few tokens, then 16, 32, 64, 128 outputs. Registers on sm_80: 44, 72, 96, 128, 127, f32: 40,
// 72, 96, 131, 127, no spills, no stack. PTX instructions a warp for each mma, step after step,
// 16-bit: 7.7 (16), 4.8 (32), 3.3 (64), 3.0 (128).
//
// Source: Gray et al., "GPU Kernels for Block-Sparse Weights", 2017; the layout of tiles and the
// pipeline as in CUTLASS (multistage GEMM).
#include "cuda/block_product.cuh"

namespace evoprune::cuda {

void block_linear(const BlockProductArgs& args, cudaStream_t stream) {
  launch_block_product<false>(args, stream);
}

}  // namespace evoprune::cuda
