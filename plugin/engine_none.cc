// No engine: the host has its own and wants the decisions only.
#include "engine_seam.h"

namespace recoup {

const Engine kEngine = {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};

}  // namespace recoup
