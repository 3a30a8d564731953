#include "fingerprint.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <sstream>

namespace recoup {
namespace {

constexpr std::int64_t kBlock = 4096;

bool comparable(const at::Tensor& t) {
  return t.layout() == at::kStrided && !t.is_nested() && !t.is_quantized() && !t.is_meta() &&
         !t.unsafeGetTensorImpl()->is_python_dispatch();
}

// The elements in order, as integers of the same width.
at::Tensor bits(const at::Tensor& t) {
  auto flat = t.detach().resolve_conj().resolve_neg().contiguous().reshape({-1});
  if (flat.is_complex()) flat = at::view_as_real(flat).reshape({-1});
  switch (flat.element_size()) {
    case 1:
      return flat.view(at::kByte);
    case 2:
      return flat.view(at::kShort);
    case 4:
      return flat.view(at::kInt);
    default:
      return flat.view(at::kLong);
  }
}

at::Tensor block_sums(const at::Tensor& t) {
  auto values = bits(t).to(at::kLong);
  const auto blocks = (values.numel() + kBlock - 1) / kBlock;
  values = at::constant_pad_nd(values, {0, blocks * kBlock - values.numel()});
  // Weighted by position, odd weights: a swap of two elements shows.
  const auto weights = at::arange(1, 2 * kBlock, 2, values.options());
  return (values.view({blocks, kBlock}) * weights).sum(1);
}

std::string index_text(const at::Tensor& t, std::int64_t flat) {
  std::string text = "]";
  for (auto dim = t.dim() - 1; dim >= 0; --dim) {
    text = (dim > 0 ? ", " : "") + std::to_string(flat % t.size(dim)) + text;
    flat /= t.size(dim);
  }
  return "[" + text;
}

}  // namespace

void Fingerprint::take(const at::Tensor& t, bool copy) {
  if (!comparable(t)) return;
  const at::NoGradGuard no_grad;
  if (copy) {
    copy_ = t.detach().clone();
  } else {
    sums_ = block_sums(t);
  }
}

std::string Fingerprint::differs(const at::Tensor& t) const {
  if ((!sums_.defined() && !copy_.defined()) || !comparable(t)) return {};
  const at::NoGradGuard no_grad;
  std::ostringstream text;
  if (copy_.defined()) {
    if (copy_.is_complex()) return at::equal(copy_, t) ? "" : "its values differ";
    const auto where = bits(copy_).ne(bits(t)).nonzero().view({-1});
    if (where.numel() == 0) return {};
    const auto first = where[0].item<std::int64_t>();
    text << where.numel() << " of its " << t.numel() << " values differ, the first at "
         << index_text(t, first) << ": " << copy_.reshape({-1})[first].item() << " in the forward, "
         << t.reshape({-1})[first].item() << " in the recompute";
    return text.str();
  }
  const auto now = block_sums(t);
  const auto where = now.ne(sums_).nonzero().view({-1}).to(at::kCPU);
  if (where.numel() == 0) return {};
  text << where.numel() << " of its " << now.numel() << " blocks of " << kBlock
       << " values differ (block";
  for (std::int64_t i = 0; i < std::min<std::int64_t>(where.numel(), 5); ++i) {
    text << (i > 0 ? ", " : " ") << where[i].item<std::int64_t>();
  }
  text << (where.numel() > 5 ? ", ...)" : ")");
  return text.str();
}

}  // namespace recoup
