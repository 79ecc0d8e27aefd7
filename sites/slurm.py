"""A Slurm cluster: a job for each node, asked for when steps wait and given back when none do.

    OWF_SLURM_PARTITION=gpu OWF_SLURM_GPUS=4 python -m openworld_forget.study studies/mine.yaml --site sites/slurm.py

To be run on the login node. What must hold there: nbs/howto/02_cluster.ipynb. Set the variables, or write into a copy of this file.
"""
import os, shlex, socket, sys
from functools import partial
from pathlib import Path
import psutil
from parsl import Config, HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SingleNodeLauncher
from parsl.providers import SlurmProvider

def said(name, default=''): return os.environ.get(f'OWF_SLURM_{name}', default)

PARTITION = said('PARTITION') or None               # the cluster's own when empty
ACCOUNT = said('ACCOUNT') or None
WALLTIME = said('WALLTIME', '04:00:00')             # of a job; every step must fit into half of it
NODES = int(said('NODES', '4'))                     # at most so many at a time
GPUS = int(said('GPUS', '0'))                       # of a node: as many steps at a time, each sees one
WORKERS = GPUS or int(said('WORKERS', '1'))         # steps at a time on a node without GPUs
OPTIONS = said('OPTIONS')                           # more for sbatch, apart by semicolons: --mem=32G; --qos=long
INIT = said('INIT')                                 # shell commands before Python: module load cuda
ADDRESS = said('ADDRESS') or None                   # of this machine, as the nodes reach it; all it has are tried when empty
SILENCE = int(said('SILENCE', '120'))               # seconds without a sign of life until a node is given up

hours, minutes, seconds = map(int, WALLTIME.split(':'))
more = ['--no-requeue', *(x.strip() for x in OPTIONS.split(';') if x.strip())]      # a lost job is replaced by a new one, at once
here = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'         # the project's Python: the same path on every node

config = Config(
    strategy='simple',                      # ask for nodes when steps wait, give them back when none do
    max_idletime=60.,
    executors=[HighThroughputExecutor(
        label='slurm', address=ADDRESS or 'all',
        available_accelerators=GPUS, max_workers_per_node=WORKERS, cores_per_worker=1e-3,
        heartbeat_period=max(1, SILENCE//4), heartbeat_threshold=SILENCE,
        drain_period=(3600*hours + 60*minutes + seconds)//2,    # later a node begins no step: its hours would be over before the end
        block_error_handler=partial(windowed_error_handler, threshold=NODES + 3),       # only so many failed jobs in a row end the study
        provider=SlurmProvider(
            partition=PARTITION, account=ACCOUNT, walltime=WALLTIME, gpus_per_node=GPUS or None, exclusive=False,
            nodes_per_block=1, init_blocks=0, min_blocks=0, max_blocks=NODES,           # a node that dies takes no other along
            scheduler_options='\n'.join(f'#SBATCH {x}' for x in more),
            worker_init='\n'.join(filter(None, [INIT, here])),
            launcher=SingleNodeLauncher(), cmd_timeout=60,
        ),
    )],
)
if not ADDRESS:     # all that this machine has are tried (Parsl would, for one more, ask a server on the internet)
    config.executors[0].address = None
    config.executors[0].all_addresses = {a.address for x in psutil.net_if_addrs().values() for a in x if a.family == socket.AF_INET}
