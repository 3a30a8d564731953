#!/usr/bin/env python3
"""Selective MLP recompute for llm.c (github:karpathy/llm.c): fc1's output and the GELU get one slot for each
layer that keeps its own and one shared by all that recompute; in backward fc1 and the GELU run again there.

    patch_llmc.py apply|revert|status [--dry-run] FOLDER

FOLDER is a checkout. Build it as usual; run train_gpt2 or train_gpt2cu with -rc N and -rp .../librecoup_policy.so,
with -ry x.yaml, or with RECOUP_CONFIG and RECOUP_PLUGIN in the environment.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from applier import FilePatch, Patch, PatchError, main  # noqa: E402
from line_edits import added_file, edit, include  # noqa: E402

FORWARD, BACKWARD = r"^void gpt2_forward\(", r"^void gpt2_backward"

CPU = [
    include("recoup/recoup_llmc.h", "llmc/dataloader.h"),
    edit("slots of fc1's output", "act_sizes[13] = L * B * T * 4 * C; // fch", "instead",
         "act_sizes[13] = recoup_fch_slots() * B * T * 4 * C; // fch\n"),
    edit("slots of the GELU", "act_sizes[14] = L * B * T * 4 * C; // fch_gelu", "instead",
         "act_sizes[14] = recoup_gelu_slots() * B * T * 4 * C; // fch_gelu\n"),
    edit("the layers ask recoup", "fill_in_activation_sizes(model->act_sizes, model->config, B, T);", "before",
         "recoup_start(L, 0);\n"),
    edit("fc1's slot in the forward", "float* l_fch = acts.fch + l * B * T * 4*C;", "instead",
         "float* l_fch = acts.fch + recoup_fch(l) * B * T * 4*C; // written here\n", FORWARD),
    edit("the GELU's slot in the forward", "float* l_fch_gelu = acts.fch_gelu + l * B * T * 4*C;", "instead",
         "float* l_fch_gelu = acts.fch_gelu + recoup_gelu(l) * B * T * 4*C; // written here\n", FORWARD),
    edit("fc1's slot in the backward", "float* l_fch = acts.fch + l * B * T * 4*C;", "instead",
         "float* l_fch = acts.fch + recoup_fch(l) * B * T * 4*C; // read here\n", BACKWARD),
    edit("the GELU's slot in the backward", "float* l_fch_gelu = acts.fch_gelu + l * B * T * 4*C;", "instead",
         "float* l_fch_gelu = acts.fch_gelu + recoup_gelu(l) * B * T * 4*C; // read here\n", BACKWARD),
    edit("the slot of fc1's gradient", "float* dl_fch = grads_acts.fch + l * B * T * 4*C;", "instead",
         "float* dl_fch = grads_acts.fch + recoup_fch(l) * B * T * 4*C;\n"),
    edit("the slot of the GELU's gradient", "float* dl_fch_gelu = grads_acts.fch_gelu + l * B * T * 4*C;", "instead",
         "float* dl_fch_gelu = grads_acts.fch_gelu + recoup_gelu(l) * B * T * 4*C;\n"),
    edit("the recompute",
         "matmul_backward(dl_fch_gelu, dl_fcprojw, dl_fcprojb, dl_fcproj, l_fch_gelu, l_fcprojw, B, T, 4*C, C);",
         "before", '''
// recoup: what this layer did not keep is computed again; a shared buffer of gradients starts at zero
if (recoup_fc1_again(l)) {
    matmul_forward(l_fch, l_ln2, l_fcw, params.fcb + l * 4*C, B, T, C, 4*C);
    memset(dl_fch, 0, B * T * 4*C * sizeof(float));
}
if (recoup_gelu_again(l)) {
    gelu_forward(l_fch_gelu, l_fch, B*T*4*C);
    memset(dl_fch_gelu, 0, B * T * 4*C * sizeof(float));
}
'''.lstrip("\n")),
    edit("flags", "int main() {", "instead", '''
int main(int argc, char *argv[]) {
    recoup_flags(argc, argv);
'''.lstrip("\n")),
]

CUDA = [
    include("recoup/recoup_llmc.h", "llmc/dataloader.h"),
    edit("slots of fc1's output", "tensors[10] = TENSOR_SPEC(data->fch, L * B * T * 4*C);", "instead",
         "tensors[10] = TENSOR_SPEC(data->fch, recoup_fch_slots() * B * T * 4*C);\n"),
    edit("slots of the GELU",
         "tensors[11] = TENSOR_SPEC(data->fch_gelu, (recompute < 1) ? L * B * T * 4*C : B * T * 4*C);", "instead",
         "tensors[11] = TENSOR_SPEC(data->fch_gelu, (recompute < 1) ? recoup_gelu_slots() * B * T * 4*C"
         " : B * T * 4*C);\n"),
    edit("the layers ask recoup",
         "fill_in_activation_sizes(&model->acts, model->acts_specs, B, T, model->config, model->recompute);", "before",
         "recoup_start(model->config.num_layers, multi_gpu_config.process_rank);\n"),
    edit("fc1's slot in the forward", "floatX* l_fch = acts.fch + l * B * T * 4*C;", "instead",
         "floatX* l_fch = acts.fch + recoup_fch(l) * B * T * 4*C;\n"),
    edit("the GELU's slot in the forward",
         "floatX* l_fch_gelu = (model->recompute < 1) ? acts.fch_gelu + l * B * T * 4*C : acts.fch_gelu;", "instead",
         "floatX* l_fch_gelu = (model->recompute < 1) ? acts.fch_gelu + recoup_gelu(l) * B * T * 4*C"
         " : acts.fch_gelu; // written here\n", FORWARD),
    edit("fc1's slot in the backward", "floatX* l_fch_pre_gelu = acts.fch + l * B * T * 4*C;", "instead",
         "floatX* l_fch_pre_gelu = acts.fch + recoup_fch(l) * B * T * 4*C;\n"),
    edit("the GELU's slot in the backward",
         "floatX* l_fch_gelu = (model->recompute < 1) ? acts.fch_gelu + l * B * T * 4*C : acts.fch_gelu;", "instead",
         "floatX* l_fch_gelu = (model->recompute < 1) ? acts.fch_gelu + recoup_gelu(l) * B * T * 4*C"
         " : acts.fch_gelu; // read here\n", BACKWARD),
    edit("the recompute", "// start the backward pass for this layer", "after", '''
// recoup: what this layer did not keep is computed again, fc1's input first where -r 2 makes a buffer of it
if (recoup_fc1_again(l)) {
    if (model->recompute >= 2) {
        layernorm_forward(l_ln2, l_ln2_mean, l_ln2_rstd, l_residual2, l_ln2w, l_ln2b, B, T, C, main_stream);
    }
    matmul_forward_cublaslt(l_fch_gelu, l_ln2, l_fcw, params.fcb + l * 4*C, B, T, C, 4*C, main_stream, l_fch_pre_gelu, model->gelu_fusion);
} else if (recoup_gelu_again(l) && model->recompute < 1) {
    gelu_forward(l_fch_gelu, l_fch_pre_gelu, B*T*4*C, main_stream);
}
'''.lstrip("\n")),
    edit("no second GELU", "if(model->recompute >= 1) {", "instead",
         "if(model->recompute >= 1 && !recoup_fc1_again(l)) {\n"),
    edit("no second layernorm", "if(model->recompute >= 2) {", "instead",
         "if(model->recompute >= 2 && !recoup_fc1_again(l)) {\n", r"^ *matmul_backward\(dl_bt4c, dl_fcprojw"),
    edit("flags", "else if (argv[i][1] == 'r') { recompute = atoi(argv[i+1]); }", "before",
         "else if (recoup_flag(argv[i], argv[i+1])) { }\n"),
    edit("flags in the usage", "// multi-node settings", "before",
         'fprintf(stderr, RECOUP_LLMC_USAGE);\n', r"^void error_usage\("),
]


def _files(tree):
    if not any(os.path.exists(os.path.join(tree, name)) for name in ("train_gpt2.c", "train_gpt2.cu")):
        raise PatchError(f"{tree}: has neither train_gpt2.c nor train_gpt2.cu; give the folder of llm.c. "
                         "Nothing was written.")
    return [
        FilePatch("train_gpt2.c", CPU, optional=True),
        FilePatch("train_gpt2.cu", CUDA, optional=True),
        added_file("recoup/recoup_llmc.h", "patches/llmc/recoup_llmc.h", flat=True),
        added_file("recoup/host.h", "plugin/include/recoup/host.h", flat=True),
        added_file("recoup/load.h", "plugin/include/recoup/load.h", flat=True),
        added_file("recoup/plugin.h", "plugin/include/recoup/plugin.h", flat=True),
        added_file("recoup/modules.h", "hooks/include/recoup/modules.h", flat=True),
    ]


PATCH = Patch("llm.c", _files, anchor="train_gpt2.c")

if __name__ == "__main__":
    sys.exit(main(PATCH))
