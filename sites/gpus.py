"""The GPUs of this machine: one worker each, whose steps see that GPU alone.

    python -m openworld_forget.study studies/mine.yaml --site sites/gpus.py

Without a site file a study takes all GPUs of the machine, too; this one takes those that you name: OWF_GPUS=0,2.
"""
import os
import torch
from parsl import Config, HighThroughputExecutor
from parsl.providers import LocalProvider

GPUS = os.environ.get('OWF_GPUS', ','.join(map(str, range(torch.cuda.device_count()))))     # their numbers: 0,1,2,3
if not GPUS: raise ValueError('this machine has no GPU that torch sees; name those that it has: OWF_GPUS=0,1')

config = Config(
    strategy='none',                        # the workers are there from the beginning to the end
    executors=[HighThroughputExecutor(
        label='gpus', address='127.0.0.1', loopback_address='127.0.0.1',
        available_accelerators=GPUS.split(','),                 # one worker each (CUDA_VISIBLE_DEVICES)
        max_workers_per_node=len(GPUS.split(',')),
        cores_per_worker=1e-3,                                  # as many workers as GPUs, however few the cores
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )],
)
