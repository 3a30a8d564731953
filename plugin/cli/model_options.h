// The flags by which a command takes a model and how it is spread: --model and one for each key of
// models::option_keys().
#pragma once

#include <map>
#include <string>
#include <vector>

#include "command.h"
#include "hosts.h"
#include "recoup/models/step.h"

namespace recoup::cli {

struct ModelOptions {
  std::string model, host = kHosts[0].name;
  std::map<std::string, std::string> set;  // by key of models::option_keys()
  std::vector<std::string> modules;        // what may be recomputed; empty: mlp
  std::string levels = "both";             // of the MLP: full, activation or both

  // Adds the flags to a command. The object must live as long as the command.
  void add_to(CLI::App& command, bool required);

  // Reads the model; what the flags say wins over the file. Prints what was assumed to standard
  // error.
  models::Described read() const;

  // What the host and the flags allow to be recomputed; `dropped` names what the host cannot.
  models::Recomputable recomputable() const;
};

// All stages of the model of `file`. A Problem where it cannot be spread so.
std::vector<models::Stage> stages_of(const std::string& file, const models::Described& described,
                                     models::Recomputable which);

}  // namespace recoup::cli
