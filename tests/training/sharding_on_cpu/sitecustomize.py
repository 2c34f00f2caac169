"""Loaded by every Python process whose PYTHONPATH names this folder: FSDP2 and DeepSpeed on CPU, for the tests.

accelerate leaves both out where there is no GPU, although torch's FSDP2 and DeepSpeed run over gloo. Nothing of nlf is
replaced here.
"""

import os

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    start = AcceleratorState.__init__

    def start_sharded(self, *args, fsdp_plugin=None, **kwargs):
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = start_sharded

if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    import torch
    from accelerate.state import PartialState

    prepare = PartialState._prepare_backend
    PartialState._prepare_backend = lambda self, cpu=False, *args, **kwargs: prepare(self, True, *args, **kwargs)
    PartialState.default_device = property(lambda self: torch.device("cpu"))
