"""Speed and memory of customization steps, as ratios within one run.

    python benchmarks/training.py [--world mini] [--steps 16] [--rounds 3]

The plain loop is written in the style of diffusers' DreamBooth example: it encodes images and prompts at every step and runs instance and prior one
after the other, on weights in their default memory layout, with the default AdamW.
Times are the least of the rounds. Memory is that of all weights plus the peak of what a first step allocates (activations, gradients, optimizer
state), as the allocator reports it.
"""
import argparse, itertools, os, time

os.environ.setdefault('TQDM_DISABLE', '1')
import pandas as pd
import torch
import torch.nn.functional as F

from openworld_forget.core import generator
from openworld_forget.training.adapt import adapt
from openworld_forget.worlds.generate import generate
from openworld_forget.training.methods import METHODS, customize, method, recipe_of, terms_of
from openworld_forget.training.regularize import Objective
from openworld_forget.training.fit import fit
from openworld_forget.worlds.world import World, provider
from openworld_forget.worlds.load import clone, default_device, load_world

def plain_step(world, adapted, params, subject, class_images, batch, opt, step):
    "One step of the plain loop: two encodings, two forwards."
    total, g = 0., generator(0, 'plain', step)
    for images, prompt in ((subject.images, subject.instance_prompt), (class_images, subject.class_prompt)):
        i = torch.randint(len(images), (batch,), generator=g); z = world.encode(images[i].float().to(world.device)/255)
        e = torch.randn(z.shape, generator=g).to(z.device, z.dtype); t = torch.randint(world.timesteps, (batch,), generator=g).to(z.device)
        out = adapted.predict(world.add_noise(z, e, t), t, adapted.encode_text([prompt]*batch))
        total = total + F.mse_loss(out.float(), world.target(z, e, t).float())
    total.backward(); torch.nn.utils.clip_grad_norm_(params.values(), 1.); opt.step(); opt.zero_grad(set_to_none=True); return total.item()

def setup(world, subject, name, images=32):
    "Recipe, parameters, adapted world and loss of a method."
    m = method(name, images=images); a, params = adapt(world, m.adaptation, subject.token); r = recipe_of(world, m)
    return r, params, a, Objective(world, a, subject, terms_of(world, subject, m), r.batch, 0, r.forward)

def trainer(params, loss, r):
    "n -> n steps never seen before, so that no answer of the base is left over from the warm-up."
    first = itertools.count(0, 8000)
    def run(n): f = next(first); fit(params, lambda k: loss(f + k), r.but(steps=n))
    return run

def timed(f, steps, device):
    "Seconds per step."
    f(1)
    device.type == 'cuda' and torch.cuda.synchronize()
    t = time.perf_counter()
    f(steps)
    device.type == 'cuda' and torch.cuda.synchronize()
    return (time.perf_counter() - t)/steps

def live(*modules): return sum({p.data_ptr(): p.numel()*p.element_size() for m in modules for p in (*m.parameters(), *m.buffers())}.values())

def peak(f, device):
    "Largest number of bytes that f holds beyond what was held before it."
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        f()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p: f()
    now = most = 0
    for e in sorted((e for e in p.profiler.kineto_results.events() if e.name() == '[memory]'), key=lambda e: e.start_ns()):
        now += e.nbytes()
        most = max(most, now)
    return most

def compare(world: World, adaptation: str, steps: int, rounds: int, n: int=32) -> dict:
    "The plain loop, prior preservation and drift correction on one adaptation: rounds alternate, so a slow minute of the machine hits all three."
    data = provider(world.spec)
    subject = data.subject(data.subjects()[0], world.resolution, world.spec.token)
    images = generate(world, [subject.class_prompt]*n, list(range(n)))
    todo, memory = {}, {}
    base = world.but(**{k: clone(getattr(world, k)).to(memory_format=torch.contiguous_format) for k in ('unet', 'vae', 'text_encoder')})
    r, params, adapted, _ = setup(base, subject, adaptation, 2)
    opt = torch.optim.AdamW(params.values(), lr=r.lr, weight_decay=r.weight_decay)
    todo['plain'] = lambda n, params=params, adapted=adapted: [plain_step(base, adapted, params, subject, images, r.batch, opt, k) for k in range(n)]
    for form in ('', '-dc'):
        r, params, adapted, loss = setup(world, subject, adaptation + form, n)
        todo[form] = trainer(params, loss, r)
        memory[form] = live(world.unet, world.vae, world.text_encoder, adapted.unet, adapted.text_encoder) + peak(
            lambda f=todo[form]: f(1), world.device
        )
    took = {k: min(ts) for k, ts in zip(todo, zip(*[[timed(f, steps, world.device) for f in todo.values()] for _ in range(rounds)]))}
    return {
        'method': adaptation,
        'batch': r.batch,
        'plain loop (ms)': took['plain'] * 1e3,
        'prior preservation (ms)': took[''] * 1e3,
        'drift correction (ms)': took['-dc'] * 1e3,
        'prior: times as fast as plain': took['plain'] / took[''],
        'correction adds (%)': 100 * (took['-dc'] / took[''] - 1),
        'peak memory, correction / prior': memory['-dc'] / memory[''],
    }

def table(world: str='mini', steps: int=16, rounds: int=3, images: int=32) -> pd.DataFrame:
    "The three ratios of the paper's adaptations, measured now."
    w = load_world(world); return pd.DataFrame([compare(w, k, steps, rounds, images) for k in ('db', 'lora', 'cd')]).set_index('method')

def costs(world: str='mini', steps: int=4, rounds: int=2, images: int=8, names=None) -> pd.DataFrame:
    "Every method that trains: how many numbers, and a step of it in multiples of a plain step of DreamBooth; rounds go through all of them."
    w = load_world(world)
    data = provider(w.spec)
    subject = data.subject(data.subjects()[0], w.resolution, w.spec.token)
    took, sizes = {}, {}
    names = list(dict.fromkeys(['db-plain', *(names or [k for k, m in METHODS.items() if m.trains])]))
    for k in [k for _ in range(rounds) for k in names]:
        r, params, _, loss = setup(w, subject, k, images)
        sizes[k] = sum(p.numel() for p in params.values())
        took[k] = min(took.get(k, float('inf')), timed(trainer(params, loss, r), steps, w.device))
    of = lambda k: {'parameters': sizes[k], 'step (ms)': took[k]*1e3, 'of db-plain': took[k]/took['db-plain']}
    rows = [{'method': k, 'adaptation': method(k).family, **of(k)} for k in names]
    return pd.DataFrame(rows).set_index('method')

@torch.no_grad()
def reading(world: str='mini', batch: int=64, rounds: int=3) -> pd.DataFrame:
    "A method that trains nothing and looks at a subject's images: a forward in multiples of a plain one, after the pass over the images."
    w = load_world(world)
    data = provider(w.spec)
    subject = data.subject(data.subjects()[0], w.resolution, w.spec.token)
    worlds = {'base': w, **{k: customize(w, subject, m)[0] for k, m in METHODS.items() if not m.trains}}
    g, took = generator(0, 'reading'), {}
    z = torch.randn(batch, *w.latent_shape, generator=g).to(w.device, w.dtype)
    t, c = torch.full((batch,), w.timesteps//2, device=w.device), w.encode_text(['a photo']).expand(batch, -1, -1)
    for k in [k for _ in range(rounds) for k in worlds]:
        def forward(n, a=worlds[k]): return [a.predict(z, t, c) for _ in range(n)]
        took[k] = min(took.get(k, float('inf')), timed(forward, 4, w.device))
    rows = [{'method': k, 'images': len(subject.images)*(k != 'base'), 'forward (ms)': took[k]*1e3, 'of a plain one': took[k]/took['base']} for k in worlds]
    return pd.DataFrame(rows).set_index('method')

def main(argv=None):
    ap = argparse.ArgumentParser()
    ap.add_argument('--world', default='mini')
    ap.add_argument('--steps', type=int, default=16)
    ap.add_argument('--rounds', type=int, default=3)
    a = ap.parse_args(argv)
    t = table(a.world, a.steps, a.rounds)
    print(f'{a.world} on {default_device()}, {torch.get_num_threads()} threads, least of {a.rounds} rounds of {a.steps} steps')
    print(t.round(2).T.to_string())

if __name__ == '__main__': main()
