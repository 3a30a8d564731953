"""What recoup says in a Megatron job: visible by default, on the first rank of each pipeline stage."""
import functools
import logging
import os
import sys

logger = logging.getLogger("recoup")


def _speaks() -> bool:
    """Whether this process speaks for its pipeline stage: the first of its data, tensor and context
    parallel ranks, so that each stage's layers are in the log once."""
    dist = getattr(sys.modules.get("torch"), "distributed", None)
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"  # torchrun's, until the ranks have met
    state = sys.modules.get("megatron.core.parallel_state")
    try:
        return (state.get_data_parallel_rank(with_context_parallel=True) == 0
                and state.get_tensor_model_parallel_rank() == 0)
    except (AttributeError, AssertionError):  # no Megatron groups (yet)
        return dist.get_rank() == 0


def say(line: str, level: int = logging.INFO) -> None:
    """One line of the log."""
    if not _speaks():
        return
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)  # the root's default hides what recoup did
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("recoup: %(levelname)s: %(message)s"))
        logger.addHandler(handler)
    logger.log(level, line)


def warn(line: str) -> None:
    say(line, logging.WARNING)


@functools.lru_cache(maxsize=None)
def once(line: str, level: int = logging.INFO) -> None:
    """A line that is said once in a process, however often it is true."""
    say(line, level)
