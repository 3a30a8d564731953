// From what a host and the configuration say to a controller that keeps a memory budget.
#pragma once

#include <string>

#include "context.h"

namespace recoup {

// Sets context.controller and context.measure. Precondition: the policy has a budget. A sentence
// where it cannot be kept here, and nothing is set; else empty.
std::string keep_budget(Context& context, const recoup_host_v1& host, const Settings& settings);

}  // namespace recoup
