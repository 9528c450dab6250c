"""What a trainer's DataParallel would do, which the methods here cannot have."""

from infer_kit.errors import InferKitError


def refuse_replicas(n_gpu: int, of: str) -> None:
    """Whether a process has one device.

    Args:
        n_gpu: of a trainer's arguments. of: what replicas there would be of, for the message.

    Raises:
        InferKitError: it has several GPUs.
    """
    if n_gpu > 1:
        raise InferKitError(
            f"One process sees {n_gpu} GPUs and would train on replicas of the {of} alone.",
            "Start it with torchrun or accelerate launch, or make one GPU visible.",
        )
