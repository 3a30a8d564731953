// What a model file and the program's flags can set, by one set of keys.
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <sstream>

#include "recoup/models/model.h"
#include "values.h"

namespace recoup::models {

Result<std::int64_t> to_integer(const std::string& text, std::int64_t least, std::int64_t most) {
  char* end = nullptr;
  errno = 0;
  const auto n = std::strtoll(text.c_str(), &end, 10);
  const bool plain = !text.empty() && text.find_first_not_of("0123456789-") == std::string::npos;
  if (!plain || *end != '\0' || errno != 0 || n < least || n > most) {
    return Error{"must be an integer from " + std::to_string(least) + " to " +
                 std::to_string(most) + ", not \"" + text.substr(0, 40) + "\""};
  }
  return static_cast<std::int64_t>(n);
}

Result<double> to_number(const std::string& text, double least, double most) {
  char* end = nullptr;
  const double n = std::strtod(text.c_str(), &end);
  const bool plain =
      !text.empty() && text.find_first_not_of("0123456789.eE+-") == std::string::npos;
  if (!plain || *end != '\0' || !std::isfinite(n) || n < least || n > most) {
    std::ostringstream range;
    range << "must be a number from " << least << " to " << most << ", not \"" << text.substr(0, 40)
          << "\"";
    return Error{range.str()};
  }
  return n;
}

Result<bool> to_bool(const std::string& text) {
  if (text == "true" || text == "True") return true;
  if (text == "false" || text == "False") return false;
  return Error{"must be true or false, not \"" + text.substr(0, 40) + "\""};
}

namespace {

using Setter = std::function<std::string(Described&, const std::string&)>;

struct Option {
  OptionRow row;
  Setter set;  // returns what is wrong, or empty
};

Setter integer(std::int64_t Parallel::*field, std::int64_t least = 1) {
  return [field, least](Described& d, const std::string& value) {
    const auto n = to_integer(value, least, kMostSize);
    if (!n.ok()) return n.error().text;
    d.parallel.*field = n.value();
    return std::string();
  };
}

Setter flag(bool Parallel::*field) {
  return [field](Described& d, const std::string& value) {
    const auto b = to_bool(value);
    if (!b.ok()) return b.error().text;
    d.parallel.*field = b.value();
    return std::string();
  };
}

Setter number(double Parallel::*field) {
  return [field](Described& d, const std::string& value) {
    // Below, one layer's recompute would take hours, and its nanoseconds would not fit a sum.
    const auto n = to_number(value, 1e9, 1e18);
    if (!n.ok()) return n.error().text;
    d.parallel.*field = n.value();
    return std::string();
  };
}

Setter word(std::vector<std::string> allowed,
            std::function<void(Described&, const std::string&)> set) {
  return
      [allowed = std::move(allowed), set = std::move(set)](Described& d, const std::string& value) {
        std::string list;
        for (const auto& a : allowed) {
          if (a == value) {
            set(d, value);
            return std::string();
          }
          list += (list.empty() ? "" : ", ") + a;
        }
        return "must be one of " + list + ", not \"" + value.substr(0, 40) + "\"";
      };
}

// "7,8x14,7"
std::string set_stages(Described& d, const std::string& value) {
  std::vector<std::int64_t> stages;
  std::istringstream in(value);
  std::string term;
  while (std::getline(in, term, ',')) {
    const auto x = term.find('x');
    const auto layers = to_integer(term.substr(0, x), 0, kMostLayers);
    const auto times = x == std::string::npos ? Result<std::int64_t>(1)
                                              : to_integer(term.substr(x + 1), 1, kMostLayers);
    if (!layers.ok() || !times.ok()) {
      return "must be layers a stage such as 8,8,7 or 7,8x14,7, not \"" + value.substr(0, 40) +
             "\"";
    }
    stages.insert(stages.end(), static_cast<std::size_t>(times.value()), layers.value());
    if (stages.size() > kMostLayers)
      return "has more than " + std::to_string(kMostLayers) + " stages";
  }
  if (stages.empty()) return "must be layers a stage such as 8,8,7";
  d.parallel.stages = stages;
  d.parallel.pipeline = static_cast<std::int64_t>(stages.size());
  return {};
}

const std::vector<Option>& options() {
  static const std::vector<Option> all = {
      {{"sequence", "tokens in a sequence"}, integer(&Parallel::sequence)},
      {{"microbatch", "sequences in a microbatch"}, integer(&Parallel::microbatch)},
      {{"microbatches", "microbatches a step of one data-parallel rank"},
       integer(&Parallel::microbatches)},
      {{"tensor_parallel", "ranks that share each layer"}, integer(&Parallel::tensor)},
      {{"sequence_parallel", "true: norms and dropouts are split by tensor_parallel too"},
       flag(&Parallel::sequence_parallel)},
      {{"context_parallel", "ranks that share each sequence"}, integer(&Parallel::context)},
      {{"expert_parallel", "ranks that share the experts"}, integer(&Parallel::expert)},
      {{"data_parallel", "replicas"}, integer(&Parallel::data)},
      {{"zero", "0 to 3: optimizer (1), gradients (2), weights (3) split over the replicas"},
       [](Described& d, const std::string& value) {
         const auto n = to_integer(value, 0, 3);
         if (!n.ok()) return n.error().text;
         d.parallel.zero = n.value();
         return std::string();
       }},
      {{"pipeline_parallel", "pipeline stages"}, integer(&Parallel::pipeline)},
      {{"virtual_stages", "chunks of layers a stage, for the interleaved schedule"},
       [](Described& d, const std::string& value) {
         const auto n = to_integer(value, 1, kMostLayers);
         if (!n.ok()) return n.error().text;
         d.parallel.virtual_stages = n.value();
         if (n.value() > 1) d.parallel.schedule = "interleaved";
         return std::string();
       }},
      {{"stages", "layers of each stage: 7,8x14,7"}, set_stages},
      {{"first_stage", "layers of the first stage; 0: as the others"},
       integer(&Parallel::first_stage, 0)},
      {{"last_stage", "layers of the last stage; 0: as the others"},
       integer(&Parallel::last_stage, 0)},
      {{"schedule", "1f1b, interleaved, gpipe or zero-bubble"},
       word({"1f1b", "interleaved", "gpipe", "zero-bubble"},
            [](Described& d, const std::string& v) { d.parallel.schedule = v; })},
      {{"fp32_gradients", "true: gradients are kept and accumulated in fp32"},
       flag(&Parallel::fp32_gradients)},
      {{"optimizer", "adam, sgd or none"},
       word({"adam", "sgd", "none"},
            [](Described& d, const std::string& v) { d.parallel.optimizer = v; })},
      {{"precision", "bf16, fp16, fp32 or fp8 (GEMM inputs in fp8)"},
       word({"bf16", "fp16", "fp32", "fp8"},
            [](Described& d, const std::string& v) {
              d.model.act_bytes = v == "fp32" ? 4 : 2;
              d.model.weight_bytes = v == "fp32" ? 4 : 2;
              // A byte, and an fp32 scale for each 128.
              d.model.gemm_bytes = v == "fp8" ? 1 + 4.0 / 128 : d.model.act_bytes;
            })},
      {{"attention", "flash (also SDPA) or eager"},
       word({"flash", "eager"},
            [](Described& d, const std::string& v) {
              d.model.attention = v == "flash" ? Attention::kFlash : Attention::kEager;
            })},
      {{"experts",
        "how they run: grouped (one product), loop (eager), or batched (gathered weights)"},
       word({"grouped", "loop", "batched"},
            [](Described& d, const std::string& v) {
              d.model.experts_by = v == "grouped" ? Experts::kGrouped
                                   : v == "loop"  ? Experts::kLoop
                                                  : Experts::kBatched;
            })},
      {{"flops_per_second", "what the device's GEMMs reach"}, number(&Parallel::flops_per_second)},
      {{"bytes_per_second", "what its memory reaches"}, number(&Parallel::bytes_per_second)},
  };
  return all;
}

}  // namespace

Result<bool> set_option(Described& d, const std::string& key, const std::string& value) {
  for (const auto& option : options()) {
    if (key != option.row.key) continue;
    const auto wrong = option.set(d, value);
    if (!wrong.empty()) return Error{key + ": " + wrong};
    return true;
  }
  std::string known;
  for (const auto& option : options())
    known += (known.empty() ? "" : ", ") + std::string(option.row.key);
  return Error{key + ": unknown key; allowed: " + known};
}

const std::vector<OptionRow>& option_keys() {
  static const auto rows = [] {
    std::vector<OptionRow> all;
    for (const auto& option : options()) all.push_back(option.row);
    return all;
  }();
  return rows;
}

}  // namespace recoup::models
