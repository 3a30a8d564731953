#!/usr/bin/env python3
"""Selective MLP recompute for ggml's trainer (github:ggml-org/ggml, and the copy in llama.cpp): two lines in
ggml_opt_build() hand each backward graph to recoup_ggml_recompute(), whose files are added and compiled in.

    patch_ggml.py apply|revert|status [--dry-run] FOLDER

FOLDER is a checkout of ggml or of llama.cpp (whose ggml/ is meant). Build it as usual; run its trainers with RECOUP_CONFIG=x.yaml and
RECOUP_PLUGIN=.../librecoup_policy.so, or call recoup_ggml_configure() (recoup_ggml.h).
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from applier import FilePatch, Need, Patch, main  # noqa: E402
from line_edits import added_file, edit, include  # noqa: E402

FILES = ["recoup_ggml.h", "recoup_ggml.cpp", "recoup_ggml_rewrite.h", "recoup_ggml_rewrite.cpp"]


def _files(_tree):
    return [
        FilePatch("src/ggml-opt.cpp", [
            include("recoup_ggml.h", "ggml-opt.h"),
            edit("backward graphs through recoup",
                 "ggml_build_backward_expand(opt_ctx->ctx_compute, opt_ctx->gb_grad, opt_ctx->grad_accs.data());",
                 "after", "recoup_ggml_recompute(opt_ctx->ctx_compute, opt_ctx->gb_grad, opt_ctx->gf->n_nodes);\n"),
        ]),
        FilePatch("src/CMakeLists.txt", [
            edit("recoup's files", "set_target_properties(ggml-base PROPERTIES", "before", '''
target_sources(ggml-base PRIVATE recoup/recoup_ggml.cpp recoup/recoup_ggml_rewrite.cpp)
target_include_directories(ggml-base PUBLIC recoup)
target_link_libraries(ggml-base PRIVATE ${CMAKE_DL_LIBS})

'''.lstrip("\n")),
        ]),
        *[added_file(f"src/recoup/{name}", f"patches/ggml/{name}") for name in FILES],
        added_file("src/recoup/recoup/host.h", "plugin/include/recoup/host.h"),
        added_file("src/recoup/recoup/load.h", "plugin/include/recoup/load.h"),
        added_file("src/recoup/recoup/plugin.h", "plugin/include/recoup/plugin.h"),
        added_file("src/recoup/recoup/modules.h", "hooks/include/recoup/modules.h"),
    ]


PATCH = Patch("ggml", _files, anchor="src/ggml-opt.cpp", within=("src",), needs=(
    Need("include/ggml.h", "GGML_TENSOR_FLAG_COMPUTE", "GGML_TENSOR_FLAG_COMPUTE, which clones carry"),
    Need("include/ggml.h", r"\bggml_graph_nodes\b", "ggml_graph_nodes(), which the rewriter reorders"),
))

if __name__ == "__main__":
    sys.exit(main(PATCH))
