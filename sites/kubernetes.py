"""A Kubernetes cluster: a pod for each worker, asked for when steps wait and given back when none do.

    OWF_KUBE_IMAGE=registry/owf:1 OWF_KUBE_VOLUMES=owf-claim:/work python -m openworld_forget.study studies/mine.yaml --site sites/kubernetes.py

To be run in a pod of the cluster itself (the workers connect to it), from the same image, with the same volumes. It needs `pip install kubernetes`
and the right to make and delete pods. Set the variables, or write into a copy of this file. Nobody has run it yet: it was loaded, no more.
"""
import os, shlex, sys
from functools import partial
from pathlib import Path
from parsl import Config, HighThroughputExecutor
from parsl.addresses import address_by_hostname
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.providers import KubernetesProvider

def said(name, default=''): return os.environ.get(f'OWF_KUBE_{name}', default)

IMAGE = said('IMAGE')                               # with what .venv of the project needs (a Python at the same path as here)
if not IMAGE: raise ValueError('it needs an image that the pods run: OWF_KUBE_IMAGE=registry/name:tag')
NAMESPACE = said('NAMESPACE', 'default')
VOLUMES = said('VOLUMES')                           # claim:/where,claim:/where: the project and its results, where they lie here
PODS = int(said('PODS', '4'))                       # at most so many at a time
GPUS = int(said('GPUS', '0'))                       # of a pod: 0 or 1
CPUS = float(said('CPUS', '4'))                     # of a pod
MEMORY = said('MEMORY', '16Gi')                     # of a pod
ADDRESS = said('ADDRESS') or address_by_hostname()  # of this pod, as the others reach it
SILENCE = int(said('SILENCE', '120'))               # seconds without a sign of life until a pod is given up

gpu = {'nvidia.com/gpu': str(GPUS)} if GPUS else None
here = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'         # the project's Python: the same path in every pod

config = Config(
    strategy='simple',                      # ask for pods when steps wait, give them back when none do
    max_idletime=60.,
    executors=[HighThroughputExecutor(
        label='kubernetes', address=ADDRESS,
        available_accelerators=GPUS, max_workers_per_node=1, cores_per_worker=1e-3,
        heartbeat_period=max(1, SILENCE//4), heartbeat_threshold=SILENCE,
        block_error_handler=partial(windowed_error_handler, threshold=PODS + 3),        # only so many failed pods in a row end the study
        provider=KubernetesProvider(
            image=IMAGE, namespace=NAMESPACE, persistent_volumes=[tuple(v.split(':', 1)) for v in VOLUMES.split(',') if v],
            max_cpu=CPUS, init_cpu=CPUS, max_mem=MEMORY, init_mem=MEMORY, extra_requests=gpu, extra_limits=gpu,
            nodes_per_block=1, init_blocks=0, min_blocks=0, max_blocks=PODS,            # a pod that dies takes no other along
            worker_init=here,
        ),
    )],
)
