// The plugin's JSON files about a run, for `recoup explain`: RECOUP_TRACE's spans, and what
// RECOUP_PROFILE measured.
#pragma once

#include <string>

namespace recoup::cli {

// Whether `text`, a whole file, is meant to be JSON.
bool is_json(const std::string& text);

// Prints what a trace or a profile shows. A Problem that names `file` where it is neither.
void explain_json(const std::string& text, const std::string& file);

}  // namespace recoup::cli
