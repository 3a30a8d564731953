// A trainer of our own with the sites that patch_llmc.py looks for in llm.c's train_gpt2.c, no more:
// residual blocks x + fcproj(gelu(fc(ln(x)))), mean squared error, plain gradient descent. Buffers
// are laid out and gradients accumulate as in llm.c. It prints the bytes of the activations, and for
// each step the loss and a hash of all gradients.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "llmc/dataloader.h"

typedef struct { int num_layers, channels; } GPT2Config;

enum { NUM_PARAMETERS = 6, NUM_ACTIVATIONS = 15 };
typedef struct { float *ln2w, *ln2b, *fcw, *fcb, *fcprojw, *fcprojb; } ParameterTensors;
typedef struct { float *encoded, *ln2, *ln2_mean, *ln2_rstd, *fch, *fch_gelu, *fcproj, *residual3; } ActivationTensors;

typedef struct {
    GPT2Config config;
    ParameterTensors params, grads;
    float *params_memory, *grads_memory;
    size_t num_parameters;
    ActivationTensors acts, grads_acts;
    size_t act_sizes[NUM_ACTIVATIONS];
    float *acts_memory, *grads_acts_memory;
    size_t num_activations;
    int batch_size, seq_len;
    float mean_loss;
} GPT2;

void matmul_forward(float* out, const float* inp, const float* weight, const float* bias, int B, int T, int C, int OC) {
    for (int r = 0; r < B * T; r++) for (int o = 0; o < OC; o++) {
        float sum = bias[o];
        for (int i = 0; i < C; i++) sum += inp[r * C + i] * weight[o * C + i];
        out[r * OC + o] = sum;
    }
}

void matmul_backward(float* dinp, float* dweight, float* dbias, const float* dout, const float* inp, const float* weight,
                     int B, int T, int C, int OC) {
    for (int r = 0; r < B * T; r++) for (int o = 0; o < OC; o++) {
        const float d = dout[r * OC + o];
        for (int i = 0; i < C; i++) {
            dinp[r * C + i] += weight[o * C + i] * d;
            dweight[o * C + i] += inp[r * C + i] * d;
        }
        dbias[o] += d;
    }
}

#define SCALE 0.7978845608f
void gelu_forward(float* out, const float* inp, int N) {
    for (int i = 0; i < N; i++) {
        const float x = inp[i];
        out[i] = 0.5f * x * (1.0f + tanhf(SCALE * (x + 0.044715f * x * x * x)));
    }
}

void gelu_backward(float* dinp, const float* inp, const float* dout, int N) {
    for (int i = 0; i < N; i++) {
        const float x = inp[i], t = tanhf(SCALE * (x + 0.044715f * x * x * x));
        dinp[i] += (0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * SCALE * (1.0f + 0.134145f * x * x)) * dout[i];
    }
}

void layernorm_forward(float* out, float* mean, float* rstd, const float* inp, const float* w, const float* b, int B, int T, int C) {
    for (int r = 0; r < B * T; r++) {
        float m = 0, v = 0;
        for (int i = 0; i < C; i++) m += inp[r * C + i] / C;
        for (int i = 0; i < C; i++) v += (inp[r * C + i] - m) * (inp[r * C + i] - m) / C;
        mean[r] = m;
        rstd[r] = 1.0f / sqrtf(v + 1e-5f);
        for (int i = 0; i < C; i++) out[r * C + i] = (inp[r * C + i] - m) * rstd[r] * w[i] + b[i];
    }
}

void layernorm_backward(float* dinp, float* dw, float* db, const float* dout, const float* inp, const float* w,
                        const float* mean, const float* rstd, int B, int T, int C) {
    for (int r = 0; r < B * T; r++) {
        float sum = 0, dot = 0;
        for (int i = 0; i < C; i++) {
            const float n = (inp[r * C + i] - mean[r]) * rstd[r], d = dout[r * C + i];
            sum += w[i] * d / C;
            dot += w[i] * d * n / C;
            dw[i] += d * n;
            db[i] += d;
        }
        for (int i = 0; i < C; i++) {
            const float n = (inp[r * C + i] - mean[r]) * rstd[r];
            dinp[r * C + i] += (w[i] * dout[r * C + i] - sum - n * dot) * rstd[r];
        }
    }
}

void fill_in_activation_sizes(size_t* act_sizes, GPT2Config config, int B, int T) {
    size_t L = config.num_layers, C = config.channels;
    memset(act_sizes, 0, NUM_ACTIVATIONS * sizeof(size_t));
    act_sizes[0] = (size_t)B * T * C;     // encoded
    act_sizes[1] = L * B * T * C;         // ln2
    act_sizes[2] = L * B * T;             // ln2_mean
    act_sizes[3] = L * B * T;             // ln2_rstd
    act_sizes[4] = L * B * T * C;         // fcproj
    act_sizes[5] = L * B * T * C;         // residual3
    act_sizes[13] = L * B * T * 4 * C; // fch
    act_sizes[14] = L * B * T * 4 * C; // fch_gelu
}

float* malloc_and_point_activations(ActivationTensors* a, const size_t* sizes, size_t* count) {
    float** ptrs[NUM_ACTIVATIONS] = {&a->encoded, &a->ln2, &a->ln2_mean, &a->ln2_rstd, &a->fcproj, &a->residual3,
                                     NULL, NULL, NULL, NULL, NULL, NULL, NULL, &a->fch, &a->fch_gelu};
    *count = 0;
    for (int i = 0; i < NUM_ACTIVATIONS; i++) *count += sizes[i];
    float* memory = (float*)calloc(*count, sizeof(float));
    float* at = memory;
    for (int i = 0; i < NUM_ACTIVATIONS; i++) {
        if (ptrs[i] != NULL) *ptrs[i] = at;
        at += sizes[i];
    }
    return memory;
}

float* malloc_and_point_parameters(ParameterTensors* p, GPT2Config config, size_t* count) {
    size_t L = config.num_layers, C = config.channels;
    float** ptrs[NUM_PARAMETERS] = {&p->ln2w, &p->ln2b, &p->fcw, &p->fcb, &p->fcprojw, &p->fcprojb};
    size_t sizes[NUM_PARAMETERS] = {L * C, L * C, L * 4 * C * C, L * 4 * C, L * 4 * C * C, L * C};
    *count = 0;
    for (int i = 0; i < NUM_PARAMETERS; i++) *count += sizes[i];
    float* memory = (float*)calloc(*count, sizeof(float));
    float* at = memory;
    for (int i = 0; i < NUM_PARAMETERS; i++) { *ptrs[i] = at; at += sizes[i]; }
    return memory;
}

static float next_random(uint32_t* state) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) / 8388608.0f - 1.0f;
}

void gpt2_forward(GPT2 *model, const float* inputs, const float* targets, size_t B, size_t T) {
    size_t L = model->config.num_layers, C = model->config.channels;
    if (model->acts_memory == NULL) {
        model->batch_size = B;
        model->seq_len = T;
        fill_in_activation_sizes(model->act_sizes, model->config, B, T);
        model->acts_memory = malloc_and_point_activations(&model->acts, model->act_sizes, &model->num_activations);
    }
    ParameterTensors params = model->params;
    ActivationTensors acts = model->acts;
    memcpy(acts.encoded, inputs, B * T * C * sizeof(float));
    for (size_t l = 0; l < L; l++) {
        float* residual = l == 0 ? acts.encoded : acts.residual3 + (l-1) * B * T * C;
        float* l_fcw = params.fcw + l * 4*C * C;
        float* l_fcb = params.fcb + l * 4*C;
        float* l_ln2 = acts.ln2 + l * B * T * C;
        float* l_fch = acts.fch + l * B * T * 4*C;
        float* l_fch_gelu = acts.fch_gelu + l * B * T * 4*C;
        float* l_fcproj = acts.fcproj + l * B * T * C;
        layernorm_forward(l_ln2, acts.ln2_mean + l * B * T, acts.ln2_rstd + l * B * T, residual, params.ln2w + l * C, params.ln2b + l * C, B, T, C);
        matmul_forward(l_fch, l_ln2, l_fcw, l_fcb, B, T, C, 4*C);
        gelu_forward(l_fch_gelu, l_fch, B*T*4*C);
        matmul_forward(l_fcproj, l_fch_gelu, params.fcprojw + l * C * 4*C, params.fcprojb + l * C, B, T, 4*C, C);
        for (size_t i = 0; i < B * T * C; i++) acts.residual3[l * B * T * C + i] = residual[i] + l_fcproj[i];
    }
    const float* out = acts.residual3 + (L-1) * B * T * C;
    float loss = 0;
    for (size_t i = 0; i < B * T * C; i++) loss += (out[i] - targets[i]) * (out[i] - targets[i]) / (B * T * C);
    model->mean_loss = loss;
}

void gpt2_backward(GPT2 *model, const float* targets) {
    size_t B = model->batch_size, T = model->seq_len, L = model->config.num_layers, C = model->config.channels;
    size_t count;
    if (model->grads_acts_memory == NULL) {
        model->grads_acts_memory = malloc_and_point_activations(&model->grads_acts, model->act_sizes, &count);
    }
    memset(model->grads_acts_memory, 0, model->num_activations * sizeof(float));
    memset(model->grads_memory, 0, model->num_parameters * sizeof(float));
    ParameterTensors params = model->params, grads = model->grads;
    ActivationTensors acts = model->acts, grads_acts = model->grads_acts;
    for (size_t i = 0, last = (L-1) * B * T * C; i < B * T * C; i++) {
        grads_acts.residual3[last + i] = 2 * (acts.residual3[last + i] - targets[i]) / (B * T * C);
    }
    for (int l = (int)L - 1; l >= 0; l--) {
        float* residual = l == 0 ? acts.encoded : acts.residual3 + (l-1) * B * T * C;
        float* dresidual = l == 0 ? grads_acts.encoded : grads_acts.residual3 + (l-1) * B * T * C;
        float* l_fcw = params.fcw + l * 4*C * C;
        float* l_fcprojw = params.fcprojw + l * C * 4*C;
        float* dl_fcw = grads.fcw + l * 4*C * C;
        float* dl_fcb = grads.fcb + l * 4*C;
        float* dl_fcprojw = grads.fcprojw + l * C * 4*C;
        float* dl_fcprojb = grads.fcprojb + l * C;
        float* l_ln2 = acts.ln2 + l * B * T * C;
        float* l_fch = acts.fch + l * B * T * 4*C;
        float* l_fch_gelu = acts.fch_gelu + l * B * T * 4*C;
        float* dl_ln2 = grads_acts.ln2 + l * B * T * C;
        float* dl_fch = grads_acts.fch + l * B * T * 4*C;
        float* dl_fch_gelu = grads_acts.fch_gelu + l * B * T * 4*C;
        float* dl_fcproj = grads_acts.fcproj + l * B * T * C;
        float* dl_residual3 = grads_acts.residual3 + l * B * T * C;
        for (size_t i = 0; i < B * T * C; i++) { dresidual[i] += dl_residual3[i]; dl_fcproj[i] += dl_residual3[i]; }
        matmul_backward(dl_fch_gelu, dl_fcprojw, dl_fcprojb, dl_fcproj, l_fch_gelu, l_fcprojw, B, T, 4*C, C);
        gelu_backward(dl_fch, l_fch, dl_fch_gelu, B*T*4*C);
        matmul_backward(dl_ln2, dl_fcw, dl_fcb, dl_fch, l_ln2, l_fcw, B, T, C, 4*C);
        layernorm_backward(dresidual, grads.ln2w + l * C, grads.ln2b + l * C, dl_ln2, residual, params.ln2w + l * C,
                           acts.ln2_mean + l * B * T, acts.ln2_rstd + l * B * T, B, T, C);
    }
}

int main() {
    enum { L = 6, C = 12, B = 2, T = 5 };
    GPT2 model;
    memset(&model, 0, sizeof(model));
    model.config = (GPT2Config){L, C};
    model.params_memory = malloc_and_point_parameters(&model.params, model.config, &model.num_parameters);
    model.grads_memory = malloc_and_point_parameters(&model.grads, model.config, &model.num_parameters);
    uint32_t state = 1;
    for (size_t i = 0; i < model.num_parameters; i++) model.params_memory[i] = 0.3f * next_random(&state);
    float inputs[B * T * C], targets[B * T * C];
    for (int i = 0; i < B * T * C; i++) { inputs[i] = next_random(&state); targets[i] = next_random(&state); }
    for (int step = 0; step < 4; step++) {
        gpt2_forward(&model, inputs, targets, B, T);
        if (step == 0) printf("activations %zu bytes\n", model.num_activations * sizeof(float));
        gpt2_backward(&model, targets);
        uint64_t hash = 1469598103934665603ull;
        for (size_t i = 0; i < model.num_parameters * sizeof(float); i++) {
            hash = (hash ^ ((unsigned char*)model.grads_memory)[i]) * 1099511628211ull;
        }
        printf("step %d: loss %.9g, gradients %016llx\n", step, model.mean_loss, (unsigned long long)hash);
        for (size_t i = 0; i < model.num_parameters; i++) model.params_memory[i] -= 0.5f * model.grads_memory[i];
    }
    return 0;
}
