"""Speed and memory of customization steps, as ratios within one run.

    python benchmarks/training.py [--world mini] [--steps 20] [--rounds 3]

The plain loop is written in the style of diffusers' DreamBooth example: it encodes images and prompts at every step and runs instance and prior one after the other.
Times are the least of the rounds; memory counts the bytes of weights, gradients, optimizer state and of what the backward pass keeps.
"""
import argparse, os, time

os.environ.setdefault('TQDM_DISABLE', '1')
import pandas as pd
import torch
import torch.nn.functional as F

from openworld_forget.core import generator
from openworld_forget.customize import adapt
from openworld_forget.generate import generate
from openworld_forget.regularize import correction_terms, method, objective, prior_term, recipe_of
from openworld_forget.train import fit
from openworld_forget.worlds import load_world, provider

def plain_step(world, adapted, params, subject, class_images, batch, opt, step):
    "One step of the plain loop: two encodings, two forwards."
    total, g = 0., generator(0, 'plain', step)
    for images, prompt in ((subject.images, subject.instance_prompt), (class_images, subject.class_prompt)):
        i = torch.randint(len(images), (batch,), generator=g); z = world.encode(images[i].float().to(world.device)/255)
        e = torch.randn(z.shape, generator=g).to(z.device, z.dtype); t = torch.randint(world.timesteps, (batch,), generator=g).to(z.device)
        out = adapted.predict(world.add_noise(z, e, t), t, adapted.encode_text([prompt]*batch)); total = total + F.mse_loss(out.float(), world.target(z, e, t).float())
    total.backward(); torch.nn.utils.clip_grad_norm_(params.values(), 1.); opt.step(); opt.zero_grad(set_to_none=True); return total.item()

def setup(world, subject, name, images=32):
    "Recipe, parameters, adapted world and loss of a method."
    m = method(name); a, params = adapt(world, m.adaptation, subject.token); terms = [prior_term(world, subject, m.prior, images)] if m.prior else []
    if m.correction: terms += correction_terms(world, subject, m.correction, m.source, images)
    r = recipe_of(world, m); return r, params, a, objective(world, a, subject, terms, r.batch, 0)

def least(f, rounds): return min(f() for _ in range(rounds))

def timed(f, steps, device):
    f(2); device.type == 'cuda' and torch.cuda.synchronize(); t = time.perf_counter(); f(steps); device.type == 'cuda' and torch.cuda.synchronize(); return (time.perf_counter() - t)/steps

def memory(params, world, adapted, loss):
    "Bytes that a step holds at the end of its forward."
    kept = {}
    def pack(x): kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(); return x
    weights = {p.data_ptr(): p.numel()*p.element_size() for w in (world, adapted) for m in (w.unet, w.text_encoder, w.vae) for p in m.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x): total = sum(loss(0).values())
    del total; return sum(weights.values()) + sum(b for k, b in kept.items() if k not in weights) + 3*sum(p.numel()*p.element_size() for p in params.values())

def main(argv=None):
    ap = argparse.ArgumentParser(); ap.add_argument('--world', default='mini'); ap.add_argument('--steps', type=int, default=20); ap.add_argument('--rounds', type=int, default=3); a = ap.parse_args(argv)
    w = load_world(a.world); data = provider(w.spec); s = data.subject(data.subjects()[0], w.resolution, w.spec.token); rows = []
    for kind in ('db', 'lora', 'cd'):
        ms, mem = {}, {}
        for name in (kind, f'{kind}-dc'):
            r, params, adapted, loss = setup(w, s, name); mem[name] = memory(params, w, adapted, loss); r = r.but(steps=a.steps)
            ms[name] = least(lambda: timed(lambda n: fit(params, loss, r.but(steps=n)), a.steps, w.device), a.rounds)
        r, params, adapted, _ = setup(w, s, kind); images = generate(w, [s.class_prompt]*32, list(range(32))); opt = torch.optim.AdamW(params.values(), lr=r.lr, weight_decay=r.weight_decay)
        plain = least(lambda: timed(lambda n: [plain_step(w, adapted, params, s, images, r.batch, opt, k) for k in range(n)], a.steps, w.device), a.rounds)
        rows.append({'method': kind, 'plain loop (ms)': plain*1e3, 'with prior (ms)': ms[kind]*1e3, 'times as fast': plain/ms[kind], 'with correction (ms)': ms[f'{kind}-dc']*1e3, 'correction adds (%)': 100*(ms[f'{kind}-dc']/ms[kind] - 1), 'memory of -dc / without': mem[f'{kind}-dc']/mem[kind]})
    t = pd.DataFrame(rows).set_index('method'); print(f'{a.world} on {w.device}, {torch.get_num_threads()} threads, batch {r.batch} + {r.batch}, {a.steps} steps, least of {a.rounds}'); print(t.round(2).to_string()); return t

if __name__ == '__main__': main()
