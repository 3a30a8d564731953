/* The modules of a transformer layer that can be recomputed: the one table that the configuration,
 * the plugin's contract and every host take them from. Plain C, below all of them. Names are
 * Megatron-LM's.
 *
 * A new module is one line here. Its bit is part of the contract: a bit is never changed or used
 * again (hosts compiled earlier go on saying it), and bit 7 is taken by RECOUP_MLP_ACTIVATION. */
#ifndef RECOUP_MODULES_H_
#define RECOUP_MODULES_H_

/* Which layers have a module. */
typedef enum recoup_layer_kind {
  RECOUP_EVERY_LAYER = 0,
  RECOUP_DENSE_LAYER = 1, /* layers whose MLP is no mixture of experts */
  RECOUP_MOE_LAYER = 2
} recoup_layer_kind;

/* X(C name, C++ name, name, bit, which layers have it, meaning) */
#define RECOUP_MODULES(X)                                                                          \
  X(CORE_ATTN, kCoreAttn, "core_attn", 0, RECOUP_EVERY_LAYER, "attention without its projections") \
  X(MLP, kMlp, "mlp", 1, RECOUP_DENSE_LAYER, "the MLP of a layer without experts")                 \
  X(LAYERNORM, kLayernorm, "layernorm", 2, RECOUP_EVERY_LAYER, "both norms before their blocks")   \
  X(MOE_ACT, kMoeAct, "moe_act", 3, RECOUP_MOE_LAYER, "the experts' activation function")          \
  X(MOE, kMoe, "moe", 4, RECOUP_MOE_LAYER, "router, dispatch, experts and combine")                \
  X(SHARED_EXPERTS, kSharedExperts, "shared_experts", 5, RECOUP_MOE_LAYER, "the shared experts")   \
  X(MLA_UP_PROJ, kMlaUpProj, "mla_up_proj", 6, RECOUP_EVERY_LAYER,                                 \
    "latent attention's up-projections and rotary embedding")                                      \
  X(GDN_NORM_OUT, kGdnNormOut, "gdn_norm_out", 8, RECOUP_EVERY_LAYER,                              \
    "the gated output norm of a gated delta net")                                                  \
  X(GDP_IN_PROJ, kGdpInProj, "gdp_in_proj", 9, RECOUP_EVERY_LAYER,                                 \
    "the input projection of a gated delta product")                                               \
  X(GDP_QKV, kGdpQkv, "gdp_qkv", 10, RECOUP_EVERY_LAYER,                                           \
    "what a gated delta product makes of its input projection")                                    \
  X(MHC, kMhc, "mhc", 11, RECOUP_EVERY_LAYER, "the residual streams of manifold hyper-connections")

/* The modules as bits. */
typedef enum recoup_module {
#define RECOUP_MODULE_BIT(c_name, cc_name, name, bit, layers, meaning) RECOUP_##c_name = 1 << bit,
  RECOUP_MODULES(RECOUP_MODULE_BIT)
#undef RECOUP_MODULE_BIT
      RECOUP_MLP_ACTIVATION = 1 << 7 /* no module: the MLP from fc1's output on */
} recoup_module;

#endif /* RECOUP_MODULES_H_ */
