"""Kill customizations at random points and during checkpoint writes; every rerun must end with the bits of the run that nobody killed.

    python tools/kill_tally.py [--kills 20] [--writes 5] [--methods db-dc lora-dc cd-dc]

Children are forked from one warm process and die by SIGKILL, as from a power cut. A random world in Stable Diffusion's layout serves: exactness does
not depend on what it knows.
"""
import argparse, os, random, signal, sys, tempfile, time
from pathlib import Path

os.environ.setdefault('TQDM_DISABLE', '1')
import torch

from openworld_forget.core import content_key, load_tensors
from openworld_forget.worlds.tiny import tiny_subject
from openworld_forget.training.methods import METHODS, customize, method
from openworld_forget.worlds.tiny import tiny_world

def run(world, subject, m, path, cache):
    customize(world, subject, m, path=path, cache=cache, every=2)

def forked(f):
    "The process number of a child that runs f."
    sys.stdout.flush()
    if pid := os.fork(): return pid
    try: f(); os._exit(0)
    except BaseException as e: print(type(e).__name__, e, file=sys.stderr); os._exit(1)

def ended(pid): p, status = os.waitpid(pid, 0); return status

def writing(folder): return any(p.name.startswith('.') or '.tmp' in p.name for p in folder.iterdir())

def main(argv=None):
    ap = argparse.ArgumentParser()
    ap.add_argument('--kills', type=int, default=20)
    ap.add_argument('--writes', type=int, default=5)
    ap.add_argument('--methods', nargs='+', default=['db-dc', 'lora-dc', 'cd-dc'], choices=list(METHODS))
    a = ap.parse_args(argv)
    torch.set_num_threads(1); r, bad = random.Random(0), 0; world = tiny_world(); subject = tiny_subject()
    for name in a.methods:
        m = method(name, images=2, recipe=dict(steps=30, batch=2, lr=1e-3))
        tally = dict(same=0, different=0, failed=0, before=0, checkpoint=0, after=0, writing=0)
        with tempfile.TemporaryDirectory() as d:
            d = Path(d)
            start = time.time()
            assert ended(forked(lambda: run(world, subject, m, d/'whole/a.safetensors', d/'cache'))) == 0
            length = time.time() - start
            want = load_tensors(d/'whole/a.safetensors')
            want = content_key(want[0], want[1]['log'])
            for k in range(a.kills + a.writes):
                f = d/str(k)/'a.safetensors'; f.parent.mkdir(); pid = forked(lambda: run(world, subject, m, f, d/'cache'))
                if k < a.kills: time.sleep(r.random()*length)
                else:
                    wait = r.randrange(12); seen = 0; was = False
                    while seen <= wait and os.waitpid(pid, os.WNOHANG) == (0, 0):
                        now = writing(f.parent); seen += now and not was; was = now
                try: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
                except (ProcessLookupError, ChildProcessError): pass
                tally[
                    'writing'
                    if writing(f.parent)
                    else 'after'
                    if f.exists()
                    else 'checkpoint'
                    if f.with_suffix('.ckpt.safetensors').exists()
                    else 'before'
                ] += 1
                if ended(forked(lambda: run(world, subject, m, f, d/'cache'))): tally['failed'] += 1; continue
                got = load_tensors(f); tally['same' if content_key(got[0], got[1]['log']) == want else 'different'] += 1
        print(
            f'{name:8s} {a.kills} random kills and {a.writes} in a write: {tally["same"]} reruns bit-identical, {tally["different"]} different, '
            f'{tally["failed"]} failed; killed before the first checkpoint {tally["before"]}, between checkpoints {tally["checkpoint"]}, with a '
            f'half-written file {tally["writing"]}, when done {tally["after"]}',
            flush=True,
        )
        bad += tally['different'] + tally['failed']
    return bool(bad)

if __name__ == '__main__': sys.exit(main())
