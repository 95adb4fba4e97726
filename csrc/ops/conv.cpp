// The driver of the convolutions: x to an image, the image to panels of positions, panels to y.
//
// Panels are filled by the thread that multiplies them, a few at a time, so that they stay in its L2.
// Where there are fewer than two a thread, all are filled first and their products are shared out.
#include "ops/conv.h"

#include "core/caches.h"

namespace evoprune::binding {

namespace {

constexpr int64_t kSlack = 16;  // floats that may be read beyond an image

struct Scratch {  // floats at an address that vectors like
  explicit Scratch(int64_t count)
      : data(static_cast<float*>(operator new(static_cast<size_t>(count) * 4, kAlign))) {}
  ~Scratch() { operator delete(data, kAlign); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  static constexpr std::align_val_t kAlign{64};
  float* data;
};

void check_pair(const std::vector<int64_t>& pair, int64_t least, const char* what) {
  STD_TORCH_CHECK(pair.size() == 2, "expected ", what, " of 2 numbers, got ", pair.size());
  for (const int64_t value : pair)
    STD_TORCH_CHECK(value >= least, "expected ", what, " of at least ", least, ", got ", value);
}

Tensor make_image(const Tensor& x, const ConvShape& shape, const ConvImage& layout) {
  const Tensor dense = x.is_contiguous() ? x : torch::stable::contiguous(x);
  const DType dtype = kernel_dtype(x, "x");
  if (layout.direct && dtype == DType::f32) return dense;
  const int64_t size[] = {shape.images * layout.image + kSlack};
  Tensor image = torch::stable::new_empty(x, {size, 1}, ScalarType::Float);
  float* out = static_cast<float*>(image.mutable_data_ptr());
  std::fill(out + size[0] - kSlack, out + size[0], 0.0f);
  const ConvImageArgs args{dense.const_data_ptr(), dtype, out, shape, layout};
  run(kernels().conv_image, args, shape.images * shape.channels, 1 + 16384 / (layout.plane + 1));
  return image;
}

// y in the memory order of x.
Tensor make_output(const Tensor& x, const ConvShape& s) {
  if (!is_channels_last(x)) {
    const int64_t sizes[] = {s.images, s.out_channels, s.out(0), s.out(1)};
    return torch::stable::new_empty(x, {sizes, 4});
  }
  const int64_t sizes[] = {s.images, s.out(0), s.out(1), s.out_channels};
  return images_view(torch::stable::new_empty(x, {sizes, 4}));
}

struct Job {
  const ConvPanelArgs& panels;
  const ConvProduct& product;
  char* y;
  Planes planes;     // size 0: by token
  int64_t position;  // bytes of y of one position, where by token
};

void fill(const Job& job, int64_t first, int64_t count, float* out, bool share) {
  ConvPanelArgs args = job.panels;
  args.first = first;
  args.count = count;
  args.panels = out;
  const int64_t panels = ceil_div(count, args.width);
  if (share)
    run(kernels().conv_panels, args, panels, 1);
  else
    kernels().conv_panels(args, 0, panels);
}

void multiply(const Job& job, int64_t first, int64_t count, const float* x, int64_t begin,
              int64_t end) {
  const Planes planes{job.planes.size, first};
  void* y = job.planes.size > 0 ? job.y : job.y + first * job.position;
  job.product.run(job.product.self, x, first, count, y, planes, begin, end);
}

int64_t units_of(const ConvProduct& p, int64_t count) {
  return p.by_panel ? p.units * ceil_div(count, p.width) : p.units;
}

// The panels [begin, end), in groups that stay in L2.
void run_panels(const Job& job, int64_t total, int64_t begin, int64_t end) {
  const int64_t width = job.product.width, panel = width * job.product.padded;
  const int64_t group = std::clamp<int64_t>(caches().l2 * 3 / 8 / (panel * 4 + 1), 1, end - begin);
  const Scratch scratch(group * panel);
  for (int64_t p = begin; p < end; p += group) {
    const int64_t first = p * width, last = std::min(std::min(p + group, end) * width, total);
    fill(job, first, last - first, scratch.data, false);
    multiply(job, first, last - first, scratch.data, 0, units_of(job.product, last - first));
  }
}

void run_all(const Job& job, int64_t total) {
  const int64_t panels = ceil_div(total, job.product.width);
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1 || panels >= 2 * threads) {
    torch::stable::parallel_for(
        0, panels, 1, [&](int64_t begin, int64_t end) { run_panels(job, total, begin, end); });
    return;
  }
  const Scratch scratch(panels * job.product.width * job.product.padded);
  fill(job, 0, total, scratch.data, true);
  torch::stable::parallel_for(0, units_of(job.product, total), 1, [&](int64_t begin, int64_t end) {
    multiply(job, 0, total, scratch.data, begin, end);
  });
}

}  // namespace

ConvShape conv_shape(const Tensor& x, const ConvSizes& sizes) {
  STD_TORCH_CHECK(x.dim() == 4, "expected x of 4 dimensions, got ", x.dim());
  STD_TORCH_CHECK(sizes.out_channels >= 0 && sizes.in_channels >= 1,
                  "expected out_channels >= 0 and in_channels >= 1, got ", sizes.out_channels,
                  " and ", sizes.in_channels);
  check_size(x, 1, sizes.in_channels, "the channels of x");
  check_pair(sizes.kernel, 1, "kernel_size");
  check_pair(sizes.stride, 1, "stride");
  check_pair(sizes.padding, 0, "padding");
  check_pair(sizes.dilation, 1, "dilation");
  ConvShape s{x.size(0), x.size(1), x.size(2), x.size(3), sizes.out_channels, {}, {}, {}, {}};
  for (size_t d = 0; d < 2; ++d) {
    s.kernel[d] = sizes.kernel[d];
    s.stride[d] = sizes.stride[d];
    s.padding[d] = sizes.padding[d];
    s.dilation[d] = sizes.dilation[d];
    const int at = static_cast<int>(d);
    const int64_t padded = s.input(at) + 2 * s.padding[d];
    const int64_t reach = s.dilation[d] * (s.kernel[d] - 1) + 1;
    STD_TORCH_CHECK(padded >= reach, "expected an input of at least ", reach,
                    " with its padding, got ", padded, " in dimension ", 2 + at);
  }
  return s;
}

bool is_linear(const ConvShape& s, const Tensor& x) {
  return s.kernel[0] == 1 && s.kernel[1] == 1 && conv_image(s).direct && is_channels_last(x);
}

Tensor tokens_view(const Tensor& x) {
  return torch::stable::transpose(torch::stable::transpose(x, 1, 2), 2, 3);
}

Tensor images_view(const Tensor& tokens) {
  return torch::stable::transpose(torch::stable::transpose(tokens, 2, 3), 1, 2);
}

Tensor conv2d(const Tensor& x, const ConvShape& shape, const ConvProduct& product,
              const uint8_t* used) {
  const Tensor y = make_output(x, shape);
  const int64_t total = shape.images * shape.positions();
  if (total == 0 || shape.out_channels == 0) return y;
  const ConvImage layout = conv_image(shape);
  const Tensor image = make_image(x, shape, layout);
  std::vector<int64_t> offsets(static_cast<size_t>(shape.columns()));
  conv_offsets(shape, layout, offsets.data());
  if (used != nullptr)
    for (size_t k = 0; k < offsets.size(); ++k)
      if (used[k] == 0) offsets[k] = -1;
  ConvPanelArgs panels{};
  panels.image = data_of<float>(image);
  panels.shape = shape;
  panels.layout = layout;
  panels.offsets = offsets.data();
  panels.width = product.width;
  panels.padded = product.padded;
  panels.whole = product.whole;
  panels.loose = image.dim() == 1;  // one of our own, with slack
  const int64_t element = kernel_dtype(x, "x") == DType::f32 ? 4 : 2;
  const Job job{panels,
                product,
                static_cast<char*>(y.mutable_data_ptr()),
                {is_channels_last(x) ? 0 : shape.positions(), 0},
                shape.out_channels * element};
  run_all(job, total);
  return y;
}

}  // namespace evoprune::binding
