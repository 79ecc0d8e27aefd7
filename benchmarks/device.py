"""How fast a device is: forwards, training steps and images a second, which part of its peak that is, and hours for the paper's table.

    python benchmarks/device.py --world mini
    python benchmarks/device.py --random sd15 [--size 512] [--dtype bfloat16] [--device cuda]

A world is given by name or folder, or its weights are random at the true size of Stable Diffusion v1.5 (`--random sd15`): times do not depend on the
values. Every line is the least of the rounds, after one that is not counted. Operations are counted by torch's FlopCounterMode on shapes (a training
step: forward and backward of the adapted denoiser, and the base's answers), the peak is that of a large matrix product in the same dtype on the same
device. What does not fit the free memory is left out, and said so. Results: printed, and a CSV file below outputs/benchmarks.
"""
import argparse, itertools, os, sys, time

os.environ.setdefault('TQDM_DISABLE', '1')
import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from openworld_forget.batches import at_once, blank, free_memory, inputs
from openworld_forget.core import ForgetError, generator, outputs, write_text
from openworld_forget.metrics.classify import NoisePlan, errors
from openworld_forget.training.adapt import adapt, trainable
from openworld_forget.training.fit import fit
from openworld_forget.training.memory import gib, groups_of, memory
from openworld_forget.training.methods import method, recipe_of
from openworld_forget.training.regularize import Objective, Term
import openworld_forget.training.regularize as regularize
from openworld_forget.worlds.data import Subject
from openworld_forget.worlds.generate import generate
from openworld_forget.worlds.load import default_device, equipped, load_world, made_ready
from openworld_forget.worlds.tiny import sd_schedule, tiny_world
from openworld_forget.worlds.world import Compute, World, spec_of

PAPER = 20.5e6              # denoiser forwards a model in the published Diffusion Classifier, seven datasets (derived: arXiv 2410.14159 and 2303.16203)
ROWS = 6                    # trained rows of the paper's table, ten concepts each, and the base
METHODS = ('db', 'lora-dc', 'cd-dc')

# configurations of random worlds: parts that differ from the libraries' defaults
SIZES = {
    'sd15': dict(
        unet=dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        vae=dict(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            down_block_types=('DownEncoderBlock2D',)*4, up_block_types=('UpDecoderBlock2D',)*4),
        text=dict(vocab_size=514, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                  max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513)),
    'tiny': None,
}

def random_world(kind: str, compute: Compute, size: int|None=None) -> World:
    "A world of random weights, at true size or tiny; `size`: pixels a side."
    w = tiny_world()
    spec = w.spec.but(name=f'random {kind}', recipes=spec_of('sd15').recipes, compute=compute)
    if SIZES[kind]:
        c = SIZES[kind]; latents = (size or 512)//8
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parts = dict(unet=UNet2DConditionModel(**{**c['unet'], 'sample_size': latents}), vae=AutoencoderKL(**c['vae']),
                         text_encoder=CLIPTextModel(CLIPTextConfig(**c['text'])))
        w = World(spec, w.tokenizer, scheduler=sd_schedule(), **{k: made_ready(m) for k, m in parts.items()})
    return equipped(w.but(spec=spec).to(compute.device or default_device(), compute.type))

def least(f, rounds: int, device) -> float:
    "Seconds of one call: the least of the rounds, after one that warms up."
    took = []
    for k in range(rounds + 1):
        device.type == 'cuda' and torch.cuda.synchronize()
        t = time.perf_counter(); f(); device.type == 'cuda' and torch.cuda.synchronize()
        took.append(time.perf_counter() - t)
    return min(took[1:])

def peak_flops(device, dtype, side: int=0) -> float:
    "Operations a second of a large matrix product, two for a multiplication and addition."
    n = side or (8192 if device.type == 'cuda' else 1024)
    a = torch.randn(n, n, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(0))
    return 2*n**3/least(lambda: a @ a, 3, device)

def counted(unet, what: str, n: int, train: str='', side: int|None=None) -> float:
    "Operations of a network for n images, counted on shapes; with `train` there and back, of db with the gradients of all weights."
    net = blank(type(unet), dict(unet.config)); args, more = inputs(net, what, side or unet.config.sample_size, n)
    with FlopCounterMode(display=False) as c:
        if not train:
            with torch.no_grad(): (net.decode if what == 'decode' else net)(*args, **more)
        else:
            args[0].requires_grad_(True)
            for p in net.parameters(): p.requires_grad_(train == 'db')
            try: torch.autograd.backward(net(*args, **more).sample.float().mean())
            finally:
                for p in net.parameters(): p.requires_grad_(False); p.grad = None
    return c.get_total_flops()

def room(w: World, task, free: int) -> tuple[str, str]:
    "(what is needed, '' or why it is left out)"
    need = memory(w, task, copies=False); total = need.total - need.weights          # the base is there already
    return gib(need.total), '' if total <= free else f'left out: needs {gib(total)} GiB more, {gib(free)} are free'

def forwards(w: World, rounds: int, batch: int) -> dict:
    "Classification: denoiser forwards a second."
    n = at_once(batch, w.unet, 'denoise', w.latent_shape[-1])
    z = torch.randn(n, *w.latent_shape, generator=generator(0, 'device'))
    text, prompts, plan = w.encode_text(['a', 'b']), ['a', 'b'], NoisePlan(steps=1)
    one = [[0] for _ in range(n)]
    s = least(lambda: errors(w, z, prompts, plan, which=one, batch=n, text=text), rounds, w.device)
    return dict(task='classify', unit='forwards', batch=n, seconds=s, rate=n/s, flops=counted(w.unet, 'denoise', n)/s)

def images(w: World, rounds: int, batch: int, steps: int) -> dict:
    "Pictures with guidance: a second each, as many steps as the world's own are worth."
    n = at_once(batch, w.unet, 'denoise', w.latent_shape[-1], 2)
    s = least(lambda: generate(w, ['a']*n, list(range(n)), steps=steps, guidance=7.5, batch=n), rounds, w.device)
    ops = 2*steps*counted(w.unet, 'denoise', n) + counted(w.vae, 'decode', n, side=w.latent_shape[-1])
    return dict(task=f'generate; {steps} steps', unit='images', batch=n, seconds=s, rate=n/s, flops=ops/s)

def steps(w: World, name: str, rounds: int, each: int) -> dict:
    "Optimizer steps a second of a method, its images random; `each` steps a round, for which the base answers at once."
    m = method(name); r = recipe_of(w, m).but(steps=each); regularize.AHEAD = each
    x = (torch.rand(2, 3, w.resolution, w.resolution, generator=generator(0, 'device'))*255).to(torch.uint8)
    s, z = Subject('toy', 'cat', x, 'x'), torch.randn(4, *w.latent_shape, generator=generator(1, 'device')).to(w.device, w.dtype)
    prior = Term('prior', m.prior, z, [s.class_prompt]*4)
    dc = [Term('correction', m.correction, z, [s.class_prompt]*4, teacher=True, stream='prior')] if m.corrected else []
    a, params = adapt(w, m.adaptation, s.token); trainable(a, params)
    loss, first = Objective(w, a, s, [prior, *dc], r.batch, 0, r.forward), itertools.count(0, each)
    scaled = w.dtype == torch.float16
    def run():
        k = next(first); fit(params, lambda i: loss(k + i), r, eight=w.spec.compute.adam_8bit, scaled=scaled)
    took = least(run, rounds, w.device)/each
    shown = sum(groups_of(m, r))
    ops = counted(w.unet, 'denoise', shown, m.adaptation.kind) + (counted(w.unet, 'denoise', r.batch) if m.corrected else 0)
    return dict(task=f'train {name}', unit='steps', batch=shown, seconds=took, rate=1/took, flops=ops/took)

def table(w: World, rounds: int=3, batch: int=256, sampling: int=4, methods=METHODS, each: int=8) -> pd.DataFrame:
    "Every rate of a world on its device, with the fraction of the device's peak."
    peak, rows = peak_flops(w.device, w.dtype), []
    jobs = [('classify', lambda: forwards(w, rounds, batch)), ('generate', lambda: images(w, rounds, min(50, batch), sampling)),
            *((method(k), lambda k=k: steps(w, k, rounds, each)) for k in methods)]
    for task, job in jobs:
        need, why = room(w, task, free_memory(w.device))
        row = dict(task=task) if isinstance(task, str) else dict(task=f'train {task.name}')
        if not why: row |= job()
        if w.device.type == 'cuda': torch.cuda.empty_cache()
        rows.append({**row, 'needs (GiB)': need, 'note': why})
    t = pd.DataFrame(rows)
    if 'flops' in t: t['of peak'] = t.pop('flops')/peak
    return t.assign(device=str(w.device), dtype=str(w.dtype).removeprefix('torch.'), **{'peak (TFLOP/s)': peak/1e12})

def hours(t: pd.DataFrame) -> str:
    "By arithmetic from the rate: the paper's table by the published procedure."
    r = t[(t.task == 'classify') & (t.note == '')]
    if r.empty: return 'No rate of forwards, so no hours.'
    rate, models = float(r.rate.iloc[0]), 10*ROWS + 1
    return (f'The published procedure makes {PAPER/1e6:.1f} million forwards a model: {PAPER/rate/3600:,.1f} hours here, {models*PAPER/rate/3600:,.0f} for '
            f'the {models} models of the paper\'s table (ten concepts, {ROWS} rows, and the base). '
            f'Ours: the forwards that the plan of a study says, by {rate:.3g} a second.')

def main(argv=None) -> int:
    ap = argparse.ArgumentParser(prog='benchmarks/device.py', description='Speed of a device on a world.')
    which = ap.add_mutually_exclusive_group()
    which.add_argument('--world', default='mini', help='a name, or a folder in diffusers layout')
    which.add_argument('--random', choices=list(SIZES), help='random weights of this size')
    ap.add_argument('--device'); ap.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16', 'float16'])
    ap.add_argument('--size', type=int, help='pixels a side (random sd15)'); ap.add_argument('--rounds', type=int, default=3)
    ap.add_argument('--batch', type=int, default=256); ap.add_argument('--sampling', type=int, default=4, help='DDIM steps')
    ap.add_argument('--steps', type=int, default=8, help='training steps a round')
    ap.add_argument('--methods', nargs='*', default=list(METHODS)); ap.add_argument('--gradient-checkpointing', action='store_true')
    ap.add_argument('--compile', action='store_true')
    a = ap.parse_args(argv)
    compute = Compute(device=a.device, dtype=a.dtype, gradient_checkpointing=a.gradient_checkpointing, compile=a.compile)
    try:
        if a.random: w = random_world(a.random, compute, a.size)
        else:
            folder = os.path.isdir(a.world)
            w = load_world(spec_of(dict(name='mine', source=os.path.abspath(a.world)) if folder else a.world).but(compute=compute))
        t = table(w, a.rounds, a.batch, a.sampling, a.methods, a.steps)
    except ForgetError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    print(f'{w.spec.name}, {w.resolution} px, {w.dtype}, {w.device}, {torch.get_num_threads()} threads, least of {a.rounds} rounds')
    print(t.round(4).to_string(index=False)); print(hours(t))
    f = outputs()/'benchmarks'/f'device-{w.spec.name.replace(" ", "-")}-{w.device.type}-{a.dtype}-{w.resolution}.csv'
    write_text(f, t.to_csv(index=False)); print(f)
    return 0

if __name__ == '__main__': sys.exit(main())
