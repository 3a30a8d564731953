// What each kind of block saves for backward: one table a kind, a row a tensor.
//
// A row says how many elements there are a token (Width, times), of which type, what splits it,
// which recompute frees it, and when it is there at all. Widths are in numbers of the model; see
// width_of in layer.cc. The first row that is wrong for a new operator is the thing to change.
#pragma once

#include "recoup/models/memory.h"

namespace recoup::models {

enum class Width {
  kSelf,      // what a norm is over
  kSelfRows,  // how many rows a norm over kSelf has, a token
  kHidden,
  kQuery,     // heads x head size
  kKeyValue,  // kv heads x head size: of the key, or of the value
  kRepeated,  // what repeating the key for each head adds; nothing where one key serves all heads
              // (a view) or each has its own
  kResult,    // attention's result: heads x the value's size
  kQueryRank,
  kKvRank,
  kMlaKeyValue,  // heads x (nope + value): what latent attention's up-projection makes
  kFfn,
  kHeads,
  kScores,  // heads x sequence
  kMask,    // sequence x sequence for the whole microbatch
  kRotary,  // head size, for the whole microbatch
  kOne,
  kExperts,
  kRouterWeight,  // hidden x experts, for the whole microbatch
  kChosen,        // experts that a token goes to
  kChosenHidden,
  kChosenFfn,
  kChosenWeights,  // hidden x the expert's inner size, for each chosen one
  kSharedFfn,
};
enum class Type {
  kAct,
  kGemm,
  kFp32,
  kByte,
  kInt64
};                                               // kGemm: a GEMM's input, fp8 where that is on
enum class Split { kNone, kTensor, kSequence };  // kSequence: only with sequence parallelism
enum class When {
  kAlways,
  kDropout,
  kNoDropout,
  kAttentionDropout,
  kNoAttentionDropout,
  kOncePerModel,
  kUnfusedQkv,
  kFusedQkv,
  kQueryRank,
  kLowPrecision,
  kFp32Router,
};

struct Row {
  const char* what;
  Width width;
  double times;
  Type type;
  Split split;
  Frees frees;
  When when = When::kAlways;
};

// Norms. Over the hidden state, or over a head of the query or key, or a low rank.

inline constexpr Row kLayerNorm[] = {
    {"its input", Width::kSelf, 1, Type::kAct, Split::kSequence, Frees::kNothing},
    {"its mean and deviation", Width::kSelfRows, 2, Type::kFp32, Split::kSequence, Frees::kNothing},
};
// Megatron's accounting (2205.05198): statistics are left out.
inline constexpr Row kNormMegatron[] = {
    {"its input", Width::kSelf, 1, Type::kAct, Split::kSequence, Frees::kNothing},
};
// Written in Python: the input in fp32, squared, and its scaled value in the input's type.
inline constexpr Row kRmsNormEager[] = {
    {"its input in fp32", Width::kSelf, 1, Type::kFp32, Split::kSequence, Frees::kNothing},
    {"its root mean square", Width::kSelfRows, 1, Type::kFp32, Split::kSequence, Frees::kNothing},
    {"its scaled input", Width::kSelf, 1, Type::kAct, Split::kSequence, Frees::kNothing},
};
// Gemma's: the weight is 1 + w and multiplies in fp32.
inline constexpr Row kRmsNormOnePlus[] = {
    {"its input in fp32", Width::kSelf, 1, Type::kFp32, Split::kSequence, Frees::kNothing},
    {"its root mean square", Width::kSelfRows, 1, Type::kFp32, Split::kSequence, Frees::kNothing},
    {"its scaled input in fp32", Width::kSelf, 1, Type::kFp32, Split::kSequence, Frees::kNothing},
};

// Attention around its core: before, and after.

inline constexpr Row kAttentionInput[] = {
    {"the query, key and value GEMM's input", Width::kHidden, 1, Type::kGemm, Split::kSequence,
     Frees::kLayernorm},
};
inline constexpr Row kAttentionHf[] = {
    {"query, rotated", Width::kQuery, 1, Type::kAct, Split::kTensor, Frees::kNothing},
    {"key, rotated", Width::kKeyValue, 1, Type::kAct, Split::kTensor, Frees::kNothing},
    {"value", Width::kKeyValue, 1, Type::kAct, Split::kTensor, Frees::kNothing, When::kUnfusedQkv},
    {"the GEMM's result that value is a view of", Width::kQuery, 1, Type::kAct, Split::kTensor,
     Frees::kNothing, When::kFusedQkv},
    {"the same, key and value", Width::kKeyValue, 2, Type::kAct, Split::kTensor, Frees::kNothing,
     When::kFusedQkv},
    {"rotary cosines and sines", Width::kRotary, 2, Type::kAct, Split::kNone, Frees::kNothing,
     When::kOncePerModel},
};
// GPT-2's: query, key and value are views of one GEMM's result; no rotary embedding.
inline constexpr Row kAttentionFusedPlain[] = {
    {"query, key and value", Width::kQuery, 1, Type::kAct, Split::kTensor, Frees::kNothing},
    {"the same, key and value", Width::kKeyValue, 2, Type::kAct, Split::kTensor, Frees::kNothing},
};
inline constexpr Row kAttentionMegatron[] = {
    {"query", Width::kQuery, 1, Type::kAct, Split::kTensor, Frees::kNothing},
    {"key and value", Width::kKeyValue, 2, Type::kAct, Split::kTensor, Frees::kNothing},
};
inline constexpr Row kAttentionMla[] = {
    {"query, joined from its parts", Width::kQuery, 1, Type::kAct, Split::kTensor,
     Frees::kMlaUpProj},
    {"key, joined from its parts", Width::kQuery, 1, Type::kAct, Split::kTensor, Frees::kMlaUpProj},
    {"the up-projection that value is a view of", Width::kMlaKeyValue, 1, Type::kAct,
     Split::kTensor, Frees::kMlaUpProj},
    {"the query up-projection's input", Width::kQueryRank, 1, Type::kGemm, Split::kSequence,
     Frees::kMlaUpProj, When::kQueryRank},
    {"the key and value up-projection's input", Width::kKvRank, 1, Type::kGemm, Split::kSequence,
     Frees::kMlaUpProj},
    {"rotary cosines and sines", Width::kRotary, 2, Type::kAct, Split::kNone, Frees::kNothing,
     When::kOncePerModel},
};
inline constexpr Row kAttentionOutput[] = {
    {"the output projection's input", Width::kResult, 1, Type::kGemm, Split::kTensor,
     Frees::kNothing},
    {"attention's dropout mask", Width::kHidden, 1, Type::kByte, Split::kSequence, Frees::kNothing,
     When::kDropout},
};

// Its core: what core_attn recomputes.

inline constexpr Row kCoreFlash[] = {
    {"log-sum-exp of the scores", Width::kHeads, 1, Type::kFp32, Split::kTensor, Frees::kCoreAttn},
};
inline constexpr Row kCoreEagerHf[] = {
    {"softmax's result in fp32", Width::kScores, 1, Type::kFp32, Split::kTensor, Frees::kCoreAttn},
    {"softmax's result", Width::kScores, 1, Type::kAct, Split::kTensor, Frees::kCoreAttn,
     When::kLowPrecision},
    {"dropout's mask", Width::kScores, 1, Type::kByte, Split::kTensor, Frees::kCoreAttn,
     When::kAttentionDropout},
    {"dropout's result", Width::kScores, 1, Type::kAct, Split::kTensor, Frees::kCoreAttn,
     When::kAttentionDropout},
    {"key and value, repeated for each head", Width::kRepeated, 2, Type::kAct, Split::kTensor,
     Frees::kCoreAttn},
};
inline constexpr Row kCoreMegatron[] = {
    {"softmax's result", Width::kScores, 1, Type::kAct, Split::kTensor, Frees::kCoreAttn},
    {"dropout's mask", Width::kScores, 1, Type::kByte, Split::kTensor, Frees::kCoreAttn,
     When::kAttentionDropout},
    {"dropout's result", Width::kScores, 1, Type::kAct, Split::kTensor, Frees::kCoreAttn,
     When::kAttentionDropout},
};

// The dense MLP.

inline constexpr Row kMlpInput[] = {
    {"fc1's input", Width::kHidden, 1, Type::kGemm, Split::kSequence, Frees::kLayernorm},
};
inline constexpr Row kMlpGelu[] = {
    {"fc1's result", Width::kFfn, 1, Type::kAct, Split::kTensor, Frees::kMlpFull},
    {"fc2's input", Width::kFfn, 1, Type::kGemm, Split::kTensor, Frees::kMlpActivation},
};
inline constexpr Row kMlpGeluPython[] = {
    {"fc1's result", Width::kFfn, 1, Type::kAct, Split::kTensor, Frees::kMlpFull},
    {"half of it, the tanh, and one more than that", Width::kFfn, 3, Type::kAct, Split::kTensor,
     Frees::kMlpActivation},
    {"fc2's input", Width::kFfn, 1, Type::kGemm, Split::kTensor, Frees::kMlpActivation},
};
inline constexpr Row kMlpGated[] = {
    {"gate's and up's results", Width::kFfn, 2, Type::kAct, Split::kTensor, Frees::kMlpFull},
    {"the activation's result", Width::kFfn, 1, Type::kAct, Split::kTensor, Frees::kMlpActivation},
    {"the down projection's input", Width::kFfn, 1, Type::kGemm, Split::kTensor,
     Frees::kMlpActivation},
};
// One kernel for activation and product, which keeps its inputs only.
inline constexpr Row kMlpGatedFused[] = {
    {"gate's and up's results", Width::kFfn, 2, Type::kAct, Split::kTensor, Frees::kMlpFull},
    {"the down projection's input", Width::kFfn, 1, Type::kGemm, Split::kTensor,
     Frees::kMlpActivation},
};
inline constexpr Row kMlpOutput[] = {
    {"the MLP's dropout mask", Width::kHidden, 1, Type::kByte, Split::kSequence, Frees::kNothing,
     When::kDropout},
};

// The mixture of experts.

inline constexpr Row kMoeInput[] = {
    {"the router's and the dispatch's input", Width::kHidden, 1, Type::kAct, Split::kSequence,
     Frees::kLayernorm},
};
inline constexpr Row kMoeRouter[] = {
    {"the router's input in fp32", Width::kHidden, 1, Type::kFp32, Split::kSequence, Frees::kMoe,
     When::kFp32Router},
    {"the router's weight in fp32", Width::kRouterWeight, 1, Type::kFp32, Split::kNone, Frees::kMoe,
     When::kFp32Router},
    {"the router's probabilities", Width::kExperts, 1, Type::kFp32, Split::kSequence, Frees::kMoe},
    {"the chosen experts and their places", Width::kChosen, 4, Type::kInt64, Split::kSequence,
     Frees::kMoe},
    {"their weights", Width::kChosen, 2, Type::kFp32, Split::kSequence, Frees::kMoe},
    {"the sum of their weights", Width::kOne, 1, Type::kFp32, Split::kSequence, Frees::kMoe},
};
inline constexpr Row kMoeExperts[] = {
    {"the experts' inputs", Width::kChosenHidden, 1, Type::kGemm, Split::kSequence, Frees::kMoe},
    {"gate's and up's results", Width::kChosenFfn, 2, Type::kAct, Split::kTensor, Frees::kMoe},
    {"the activation's result", Width::kChosenFfn, 1, Type::kAct, Split::kTensor, Frees::kMoeAct},
    {"the down projection's input", Width::kChosenFfn, 1, Type::kGemm, Split::kTensor,
     Frees::kMoeAct},
    {"the experts' results, before they are weighted", Width::kChosenHidden, 1, Type::kAct,
     Split::kSequence, Frees::kMoe},
};
// Beside kMoeExperts: a loop over the experts keeps what it adds to the output, and a batched
// product keeps each row's own copy of its expert's weights.
inline constexpr Row kMoeLoop[] = {
    {"the experts' weighted results", Width::kChosenHidden, 1, Type::kAct, Split::kSequence,
     Frees::kMoe},
};
inline constexpr Row kMoeBatched[] = {
    {"the experts' weights, gathered for each row", Width::kChosenWeights, 3, Type::kAct,
     Split::kTensor, Frees::kMoe},
};
inline constexpr Row kMoeExpertsFused[] = {
    {"the experts' inputs", Width::kChosenHidden, 1, Type::kGemm, Split::kSequence, Frees::kMoe},
    {"gate's and up's results", Width::kChosenFfn, 2, Type::kAct, Split::kTensor, Frees::kMoe},
    {"the down projection's input", Width::kChosenFfn, 1, Type::kGemm, Split::kTensor,
     Frees::kMoeAct},
    {"the experts' results, before they are weighted", Width::kChosenHidden, 1, Type::kAct,
     Split::kSequence, Frees::kMoe},
};
inline constexpr Row kMoeShared[] = {
    {"shared: gate's and up's results", Width::kSharedFfn, 2, Type::kAct, Split::kTensor,
     Frees::kSharedExperts},
    {"shared: the activation's result", Width::kSharedFfn, 1, Type::kAct, Split::kTensor,
     Frees::kSharedExperts},
    {"shared: the down projection's input", Width::kSharedFfn, 1, Type::kGemm, Split::kTensor,
     Frees::kSharedExperts},
};

// examples/gpt, in plain LibTorch operators: GELU, dropout as a scaled mask of the activations'
// type.

inline constexpr Row kLibtorchAttention[] = {
    {"the query, key and value GEMM's input", Width::kHidden, 1, Type::kAct, Split::kNone,
     Frees::kNothing},
    {"query, key and value: copies, or the GEMM's result", Width::kHidden, 3, Type::kAct,
     Split::kTensor, Frees::kNothing},
    {"the causal mask", Width::kMask, 1, Type::kByte, Split::kNone, Frees::kCoreAttn},
    {"softmax's result", Width::kScores, 1, Type::kAct, Split::kTensor, Frees::kCoreAttn},
    {"dropout's mask and result", Width::kScores, 2, Type::kAct, Split::kTensor, Frees::kCoreAttn,
     When::kDropout},
    {"the output projection's input", Width::kHidden, 1, Type::kAct, Split::kTensor,
     Frees::kNothing},
    {"attention's dropout mask", Width::kHidden, 1, Type::kAct, Split::kNone, Frees::kNothing,
     When::kDropout},
};
inline constexpr Row kLibtorchMlp[] = {
    {"fc1's input", Width::kHidden, 1, Type::kAct, Split::kNone, Frees::kNothing},
    {"fc1's result", Width::kFfn, 1, Type::kAct, Split::kTensor, Frees::kMlpFull},
    {"fc2's input", Width::kFfn, 1, Type::kAct, Split::kTensor, Frees::kMlpActivation},
    {"its dropout's mask", Width::kFfn, 1, Type::kAct, Split::kTensor, Frees::kMlpActivation,
     When::kDropout},
    {"the MLP's dropout mask", Width::kHidden, 1, Type::kAct, Split::kNone, Frees::kNothing,
     When::kDropout},
};

}  // namespace recoup::models
