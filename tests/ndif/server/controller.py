"""NDIF 0.1.2's controller with nnsight 0.8.1, which reads `trust_remote_code` from the model's key, not an argument."""

import functools

import ray
from ndif.services.ray.deployments.controller.controller import _ControllerActor


def without_argument(method):
    """A classmethod of nnsight that drops the argument which NDIF still passes."""
    function = method.__func__

    @functools.wraps(function)
    def call(cls, *args, trust_remote_code=None, **kwargs):
        return function(cls, *args, **kwargs)

    return classmethod(call)


class Controller(_ControllerActor):
    """The controller, in whose process nnsight is adapted before it is asked about a checkpoint."""

    def __init__(self, *args, **kwargs):
        from nnsight.modeling.mixins.remotable import Remotable

        for name in ("describe_checkpoint", "max_tp_size", "estimate_bytes"):
            setattr(Remotable, name, without_argument(getattr(Remotable, name)))
        super().__init__(*args, **kwargs)


ControllerActor = ray.remote(num_cpus=1, num_gpus=0, max_restarts=-1, resources={"head": 1})(Controller)
