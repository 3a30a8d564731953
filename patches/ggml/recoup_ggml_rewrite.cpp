// See recoup_ggml_rewrite.h. Nothing but ggml's public graph functions is needed; inside ggml's
// tree the graph's use counts are kept exact as well, so that backends fuse what they could fuse
// anyway.
#include "recoup_ggml_rewrite.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <unordered_map>
#include <utility>
#include <vector>

#if __has_include("ggml-impl.h")
#include "ggml-impl.h"
#define RECOUP_GGML_COUNT_USES
#endif

namespace recoup_ggml {
namespace {

using Tensor = ggml_tensor;

bool starts_with(const char* text, const char* with) {
  return std::strncmp(text, with, std::strlen(with)) == 0;
}

// One graph under rewrite. Of the forward's tensors, `dropped_` are those that are not to be kept,
// `chosen_` those of them that the backward needs, which get a clone.
class Rewrite {
 public:
  Rewrite(ggml_context* ctx, ggml_cgraph* graph, int n_forward,
          std::unordered_set<const Tensor*> dropped)
      : ctx_(ctx),
        graph_(graph),
        n_forward_(n_forward),
        n_(ggml_graph_n_nodes(graph)),
        nodes_(ggml_graph_nodes(graph)),
        dropped_(std::move(dropped)) {
    drop_views_and_unnamed();
    place();
  }

  // Makes the clones and puts them in; how many, or -1 with a sentence in `error`.
  int apply(char* error, size_t error_size) {
    const int count = static_cast<int>(chosen_.size());
    const int room = ggml_graph_size(graph_) - n_;
    if (room < count) {
      std::snprintf(error, error_size,
                    "recoup: %d operations are to run again, and the graph has room for %d more "
                    "nodes; make it larger (ggml_new_graph_custom)",
                    count, room);
      return -1;
    }
    const size_t bytes = ggml_get_mem_size(ctx_) - ggml_used_mem(ctx_);
    if (bytes < count * ggml_tensor_overhead()) {
      std::snprintf(error, error_size,
                    "recoup: %d tensors are to be added, and the context has room for %zu; make "
                    "its mem_size larger by %zu bytes",
                    count, bytes / ggml_tensor_overhead(), count * ggml_tensor_overhead());
      return -1;
    }
    for (Tensor* t : chosen_) {
      Tensor* c = clone(t);
      clones_[t] = c;
      // Into the graph's hash set, where gradients and schedulers look tensors up; at its end.
      ggml_build_forward_expand(graph_, c);
    }
    for (int i = n_forward_; i < n_; ++i) redirect(nodes_[i], true);
    std::vector<std::vector<Tensor*>> clones_before(n_);
    for (Tensor* t : chosen_) clones_before[place_[t]].push_back(clones_[t]);
    std::vector<Tensor*> order;
    for (int i = n_forward_; i < n_; ++i) {
      order.insert(order.end(), clones_before[i].begin(), clones_before[i].end());
      order.push_back(nodes_[i]);
    }
    std::copy(order.begin(), order.end(), nodes_ + n_forward_);
    return count;
  }

 private:
  // A view of a dropped tensor would keep it, and so would the clone's reading of what nobody named
  // on the way (such as the GEMM under a LoRA's sum): these are dropped as well.
  void drop_views_and_unnamed() {
    for (int i = 0; i < n_forward_; ++i) {
      Tensor* t = nodes_[i];
      if (t->view_src != nullptr && dropped_.count(t->view_src) > 0 && droppable(t)) {
        dropped_.insert(t);
      }
    }
    std::unordered_set<const Tensor*> read_by_dropped, read_by_others;
    for (int i = n_forward_ - 1; i >= 0; --i) {
      Tensor* t = nodes_[i];
      const bool unnamed = t->name[0] == '\0' || starts_with(t->name, "node_");
      if (unnamed && droppable(t) && read_by_dropped.count(t) > 0 && read_by_others.count(t) == 0) {
        dropped_.insert(t);
      }
      auto& readers = dropped_.count(t) > 0 ? read_by_dropped : read_by_others;
      for (const Tensor* source : t->src) {
        if (source != nullptr) readers.insert(source);
      }
    }
  }

  // Chooses what the backward reads, directly or through another clone; a clone's place is before
  // the first node that needs it.
  void place() {
    const auto read_at = [&](const Tensor* reader, int place) {
      const auto one = [&](const Tensor* t) {
        if (t == nullptr || dropped_.count(t) == 0) return;
        auto& known = place_.emplace(t, place).first->second;
        known = std::min(known, place);
      };
      for (const Tensor* source : reader->src) one(source);
      one(reader->view_src);
    };
    for (int i = n_forward_; i < n_; ++i) read_at(nodes_[i], i);
    for (int i = n_forward_ - 1; i >= 0; --i) {
      if (place_.count(nodes_[i]) == 0) continue;
      chosen_.push_back(nodes_[i]);
      read_at(nodes_[i], place_[nodes_[i]]);
    }
    std::reverse(chosen_.begin(), chosen_.end());  // sources before their readers
  }

  Tensor* clone(const Tensor* t) {
    Tensor* c = ggml_new_tensor(ctx_, t->type, GGML_MAX_DIMS, t->ne);
    std::copy(std::begin(t->nb), std::end(t->nb), c->nb);
    std::copy(std::begin(t->op_params), std::end(t->op_params), c->op_params);
    std::copy(std::begin(t->src), std::end(t->src), c->src);
    c->op = t->op;
    // Backends skip a node without this flag, and the gradients are wrong without a word.
    c->flags = t->flags & GGML_TENSOR_FLAG_COMPUTE;
    c->view_src = t->view_src;
    c->view_offs = t->view_offs;
    ggml_format_name(c, "recompute %s", t->name);
    redirect(c, false);
    return c;
  }

  // Makes a node read clones where there are some; `counted`: the graph has counted its reads.
  void redirect(Tensor* node, [[maybe_unused]] bool counted) {
    for (Tensor*& source : node->src) {
      const auto found = source != nullptr ? clones_.find(source) : clones_.end();
      if (found == clones_.end()) continue;
#ifdef RECOUP_GGML_COUNT_USES
      if (counted) {
        --graph_->use_counts[ggml_hash_find(&graph_->visited_hash_set, source)];
        ++graph_->use_counts[ggml_hash_find(&graph_->visited_hash_set, found->second)];
      }
#endif
      source = found->second;
    }
    const auto root = node->view_src != nullptr ? clones_.find(node->view_src) : clones_.end();
    if (root != clones_.end()) node->view_src = root->second;
  }

  ggml_context* ctx_;
  ggml_cgraph* graph_;
  const int n_forward_, n_;
  Tensor** const nodes_;
  std::unordered_set<const Tensor*> dropped_;
  std::unordered_map<const Tensor*, int> place_;
  std::vector<Tensor*> chosen_;  // in forward order
  std::unordered_map<const Tensor*, Tensor*> clones_;
};

}  // namespace

bool droppable(const ggml_tensor* t) {
  constexpr int kept = GGML_TENSOR_FLAG_OUTPUT | GGML_TENSOR_FLAG_PARAM | GGML_TENSOR_FLAG_LOSS;
  return t->op != GGML_OP_NONE && (t->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 &&
         (t->flags & kept) == 0 && t->data == nullptr &&
         (t->view_src == nullptr || t->view_src->data == nullptr);
}

int rewrite(ggml_context* ctx, ggml_cgraph* graph, int n_forward,
            std::unordered_set<const ggml_tensor*> dropped, char* error, size_t error_size) {
  return Rewrite(ctx, graph, n_forward, std::move(dropped)).apply(error, error_size);
}

}  // namespace recoup_ggml
