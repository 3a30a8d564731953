// The installed header, by the name that the trainer and the tests use.
#pragma once

#include "recoup/checkpoint/activation_meter.h"

using recoup::ActivationMeter;
