#pragma once
namespace infini_train::nn::parallel::global {
inline thread_local int thread_global_rank = 0;
inline int data_parallel_size = 1;
// Ranks of one stage come first.
inline void GetCoordOf(int rank, int& dp, int& tp, int& pp) {
  dp = rank % data_parallel_size;
  tp = 0;
  pp = rank / data_parallel_size;
}
}  // namespace infini_train::nn::parallel::global
