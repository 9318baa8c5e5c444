"""A model actor of NDIF 0.1.2 that computes on the CPU; NDIF's own one moves models to CUDA devices."""

import gc
import os

import ray
import torch
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel


class CPUDeployment(BaseModelDeployment):
    """One model in main memory; it is never set aside for another one."""

    CACHEABLE = False

    def __init__(self, *args, **kwargs):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        super().__init__(*args, **kwargs)

    def load_from_disk(self):
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, device="cpu", dtype=self.dtype_name, **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    async def to_cache(self):
        raise RuntimeError("a model on the CPU is not set aside")

    def cleanup(self):
        self.kill_switch.clear()
        self.kill_reason = self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


@ray.remote(num_cpus=1, max_restarts=-1)
class CPUActor(CPUDeployment):
    """What NDIF deploys."""
