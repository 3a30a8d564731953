// The flags that this version's examples define.
#include "gflags/gflags.h"
DEFINE_string(activation_recompute, "false", "");
DEFINE_string(recompute_granularity, "full", "none|full|selective");
DEFINE_string(recompute_method, "none", "");
DEFINE_string(recompute_num_layers, "0", "");
