// What a host offers, as the policy takes it.
#pragma once

#include <string>

#include "recoup/plugin.h"
#include "recoup/policy/policy.h"

namespace recoup {

Model model_of(const recoup_host_v1& host);

// For a host of version 1.0, which cannot say what else it can: what is asked of it all the same,
// as a sentence for the log, or empty.
std::string unconfirmed(const recoup_host_v1& host, const Config& config);

}  // namespace recoup
