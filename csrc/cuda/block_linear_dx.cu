// block_linear_dx: the gradient of x, a product with the transposed weight of kept blocks.
//
//   dX[m, k] = sum over n of dY[m, n] W[n, k]                      only kept blocks are visited
//
//   dY [tokens, N]            one column of blocks of W: kept blocks, wherever they are in memory
//     a . b . . c               order    7   1   4        where in values; values are not copied
//     a . b . . c               row_idx  0   2   5        col_ptr: where the column begins
//     a . b . . c
//                             summed dimension: position = block * bn + row
//
// The kernel of block_linear.cu with inputs and outputs exchanged: a thread block computes 128
// tokens x 128, 64, 32 or 16 columns of dX (fewer where the problem is small, as there). A step is 64 rows of blocks (f32: 32), which lie down in
// shared memory and turn on the way to registers: ldmatrix.trans; f32 is read word by word. Rows
// that a thread copies belong to one block, so it reads one index a step, a step ahead.
//
// Sums are float, f32 operands rounded to tf32 (block_tile.cuh); the same result in every run.
// Bounded as block_linear with many tokens.
//
// By tile, 16, 32, 64, 128 columns. Registers on sm_80: 72, 96, 162, 130, f32: 80, 112, 154, 147, no
// spills, no stack. PTX instructions a warp for each mma, step after step, 16-bit: 8.8, 5.3, 3.5,
// 3.2.
//
// Source: as block_linear.cu.
#include "cuda/block_product.cuh"

namespace evoprune::cuda {

void block_linear_dx(const BlockProductArgs& args, cudaStream_t stream) {
  launch_block_product<true>(args, stream);
}

}  // namespace evoprune::cuda
