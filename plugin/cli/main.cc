// The program `recoup`: everything around a configuration that needs neither a trainer nor
// LibTorch.
#include <cstdio>
#include <limits>

#include "command.h"
#include "recoup/plugin.h"
#include "text.h"

int main(int argc, char** argv) {
  CLI::App app("Per-layer activation recompute: what a configuration does, needs and frees.",
               "recoup");
  app.require_subcommand(1);
  app.set_version_flag("--version", "recoup " RECOUP_VERSION ", plugin contract " +
                                        std::to_string(RECOUP_ABI_VERSION) + "\n");
  recoup::cli::add_check(app);
  recoup::cli::add_estimate(app);
  recoup::cli::add_plan(app);
  recoup::cli::add_explain(app);
  recoup::cli::add_report(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  } catch (const std::exception& e) {
    std::fflush(stdout);
    // What came from a file may be no text.
    const auto text = recoup::text::printable(e.what(), std::numeric_limits<std::size_t>::max());
    std::fprintf(stderr, "recoup: %s\n", text.c_str());
    return 1;
  }
  if (std::fflush(stdout) != 0) {
    std::fprintf(stderr, "recoup: standard output cannot be written\n");
    return 1;
  }
  return 0;
}
