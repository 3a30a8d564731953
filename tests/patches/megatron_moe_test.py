"""MoE layers expert-parallel on two ranks over Gloo, by recoup's engine; megatron_versions.py has four too."""
import megatron_versions as megatron


def test_two_ranks():
    results = megatron.moe_jobs(megatron.VERSIONS[-1], 2, "seq_aux_loss and z_loss", "expert bias, allgather")
    assert len(results) == 2 and [name for name, passed in results.items() if passed is not True] == []
