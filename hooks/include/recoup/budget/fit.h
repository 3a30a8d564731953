// A step of a size that was not measured, such as another sequence length, from three that were.
#pragma once

#include <cstdint>
#include <vector>

#include "recoup/budget/timeline.h"
#include "recoup/result.h"

namespace recoup::budget {

struct Sized {
  std::int64_t size = 0;
  const Timeline* timeline = nullptr;  // not null
};

// Each number of the timeline as a + b size + c size^2 through three measured sizes: a product of
// a size with itself (attention's scores) is the most that a transformer's tensors have. A line
// through two would promise too little, by half at four times the length. An error with fewer than
// three sizes, or where the steps are not made of the same events.
Result<Timeline> fit(std::vector<Sized> measured, std::int64_t size);

}  // namespace recoup::budget
