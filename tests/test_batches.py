"""Batches, memory and options: what a device has no room for is done in smaller pieces, with the same numbers; what can never fit is refused before
anything is loaded; options that only save memory leave no trace in keys."""
import json, sys, types

import pytest
import torch

import openworld_forget.batches as B
from openworld_forget.batches import affordable, at_once, free_memory, in_pieces, out_of_memory
from openworld_forget.core import ForgetError, generator, load_tensors
from openworld_forget.metrics.classify import NoisePlan, classify, errors
from openworld_forget.study.engine import trial
from openworld_forget.study.plan import memory_of, plan
from openworld_forget.study.records import Study
from openworld_forget.training.adapt import Adaptation, adapt, trainable
from openworld_forget.training.fit import Recipe, fit
from openworld_forget.training.memory import check_memory, memory
from openworld_forget.training.methods import customize, method, run_key, terms_of
from openworld_forget.training.regularize import Objective
from openworld_forget.worlds.generate import generate
from openworld_forget.worlds.load import clone, load_world
from openworld_forget.worlds.tiny import save_world, tiny_subject, tiny_world, tiny_xl_world
from openworld_forget.worlds.world import Compute, spec_of

X = (torch.rand(7, 3, 64, 64, generator=generator(0, 'x'))*255).to(torch.uint8)
P = ['a dog', 'a cat', 'a fish']
OOM = {
    'GPU': lambda: torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'),
    'CPU': lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    'Windows': lambda: RuntimeError('[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.'),
    'Python': MemoryError,
}

@pytest.fixture(autouse=True)
def fresh(monkeypatch): monkeypatch.setattr(B, 'SHORT', {})

@pytest.fixture(scope='module')
def w(): return tiny_world()

def narrow(w, most, error, seen):
    "The same world on a device that holds `most` images at once."
    def limited(net, f):
        def call(x, *a, **kw):
            seen.append(len(x))
            if len(x) > most: raise error()
            return f(x, *a, **kw)
        return call
    unet, vae, text = clone(w.unet), clone(w.vae), clone(w.text_encoder)
    unet.forward, text.forward = limited(unet, unet.forward), limited(text, text.forward)
    vae.encode, vae.decode = limited(vae, vae.encode), limited(vae, vae.decode)
    return w.but(unet=unet, vae=vae, text_encoder=text)

def close(a, b, rel=1e-4): return torch.allclose(a, b, rtol=rel, atol=rel*float(b.nan_to_num().abs().max()), equal_nan=True)

# ---------------------------------------------------------------- smaller pieces, the same numbers
@pytest.mark.parametrize('most, error', [(1, OOM['GPU']), (2, OOM['CPU']), (5, OOM['Python'])])
def test_a_device_without_room_gives_the_same_latents_and_pictures(w, most, error):
    seen = []
    n = narrow(w, most, error, seen)
    z, lat = w.encode(X), n.encode(X)
    assert close(lat, z) and close(n.decode(z), w.decode(z)) and max(seen) > most
    seen.clear()
    n.encode(X)
    assert max(seen) <= most                                            # it has learned

@pytest.mark.parametrize('most, per_image', [(1, False), (7, True)])
def test_a_device_without_room_gives_the_same_errors(w, most, per_image):
    z, p, seen = w.encode(X[:3]), NoisePlan(steps=3, per_image=per_image), []
    n = narrow(w, most, OOM['GPU'], seen)
    text = w.encode_text(P)
    a, b = errors(w, z, P, p, text=text), errors(n, z, P, p, text=text)
    assert close(b, a) and not b.isnan().any()
    assert sum(k for k in seen if k <= most) == 3*3*3                  # none lost, none doubled
    assert torch.equal(classify(n, z, P, p).predictions, classify(w, z, P, p).predictions)

def test_a_device_without_room_draws_the_same_pictures(w):
    prompts, seeds, seen = [P[i % 3] for i in range(9)], list(range(9)), []
    n = narrow(w, 4, OOM['GPU'], seen)
    n.text_encoder = w.text_encoder
    a, b = generate(w, prompts, seeds, steps=2), generate(n, prompts, seeds, steps=2)
    assert (a.int() - b.int()).abs().max() <= 1 and len(b) == 9
    assert len({x.numpy().tobytes() for x in b}) == 9

def test_the_teacher_answers_in_pieces(w):
    s, m = tiny_subject(), method('db-dc', images=2, recipe=dict(batch=2))
    terms, seen = terms_of(w, s, m), []
    a, params = adapt(w, Adaptation(kind='lora'), s.token)
    with torch.no_grad(): [p.add_(.1) for p in params.values()]
    def answers(base): return list(Objective(base, a, s, terms, 2, 0).answers(3).values())[0]
    small = narrow(w, 3, OOM['GPU'], seen)
    small.vae, small.text_encoder = w.vae, w.text_encoder
    assert close(answers(small), answers(w)) and {k for k in seen if k <= 3} == {2}

@pytest.mark.parametrize('error', OOM.values(), ids=OOM)
def test_one_image_without_room_is_one_error(w, error):
    with pytest.raises(ForgetError, match=r'no memory for a single image.*bfloat16'): narrow(w, 0, error, []).encode(X)

def test_other_errors_are_not_taken_for_a_full_memory(w):
    for e in (RuntimeError('mat1 and mat2 shapes cannot be multiplied'), ValueError('not enough memory'), KeyError('out of memory')):
        assert not out_of_memory(e)
        def f(a, b, e=e): raise e
        with pytest.raises(type(e)): in_pieces(f, 4, 2)

def test_a_training_without_room_says_what_helps_and_keeps_its_checkpoint(w, tmp_path):
    p = {'a': torch.nn.Parameter(torch.ones(3))}
    def loss(k):
        if k == 2: raise OOM['GPU']()
        return p['a'].square().sum()
    with pytest.raises(ForgetError, match=r'step 2.*forward: 1.*gradient_checkpointing'): fit(p, loss, Recipe(steps=4), tmp_path/'c.safetensors', every=1)
    assert load_tensors(tmp_path/'c.safetensors')[1]['step'] == 2

# ---------------------------------------------------------------- how many at once
def test_the_batches_of_small_worlds_are_those_that_are_asked_for(monkeypatch):
    monkeypatch.setattr(B, 'free_memory', lambda d: 2**20)                       # whatever the machine
    for world in (tiny_world(), load_world('mini', 'cpu')):
        side = world.latent_shape[-1]
        for what, net, s, most in (('denoise', world.unet, side, 256), ('decode', world.vae, side, 64), ('encode', world.vae, world.resolution, 64),
                                   ('read', world.text_encoder, world.context, 64)):
            assert at_once(most, net, what, s) == most

def test_a_batch_follows_the_free_memory(w, monkeypatch):
    each, got = 2**28, []
    for free in (2**20, 2**33, 2**35, 2**45):
        monkeypatch.setattr(B, 'free_memory', lambda d, free=free: free)
        monkeypatch.setattr(B, 'part', lambda d: 1.)
        got.append(affordable(256, each))
    assert got == [8, 16, 64, 256]
    monkeypatch.setattr(B, 'SMALL', 0)
    assert affordable(256, 2**60) == 1 and affordable(7, 2**40) == 7
    seen, most = [], 4*B.image_bytes(B.blank(type(w.unet), dict(w.unet.config)), 'denoise', 8)
    monkeypatch.setattr(B, 'free_memory', lambda d: int(most/B.SHARE) + 9)
    errors(narrow(w, 10**9, MemoryError, seen), w.encode(X[:2]), P, NoisePlan(steps=2), text=w.encode_text(P))
    assert set(seen) == {4}                                              # 12 forwards, four at a time

def test_the_count_is_of_what_lives(w):
    "Twice the images need twice the bytes; checkpointing needs less, training more; what was counted is what torch allocates."
    net = B.blank(type(w.unet), dict(w.unet.config))
    one, four = (B.image_bytes(net, 'denoise', 8, n) for n in (1, 4))
    assert 3.9*one < four <= 4.1*one
    args = (torch.zeros(4, 4, 8, 8), torch.zeros(4), torch.zeros(4, 77, 32))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p, torch.no_grad(): w.unet(*args)
    now = most = 0
    for e in sorted((e for e in p.profiler.kineto_results.events() if e.name() == '[memory]'), key=lambda e: e.start_ns()):
        now += e.nbytes(); most = max(most, now)
    assert .5*most < four < 2*most, (most, four)

def test_a_control_group_limits_what_is_free(tmp_path, monkeypatch):
    assert 0 < free_memory() and B._limit() >= 0
    monkeypatch.setattr(B, '_limit', lambda: 5.)
    assert free_memory('cpu') == 5

# ---------------------------------------------------------------- the trial of the estimate
def test_the_trial_takes_the_devices_batch_and_a_slow_world_one_forward(w, monkeypatch):
    import openworld_forget.study.engine as E
    def tried(clock):
        sizes = []
        monkeypatch.setattr(E, '_once', lambda world, n: (sizes.append(n), (clock(n), 0.))[1])
        return trial(w, 1)[0], sizes
    assert tried(lambda n: 9.)[1] == [1]                                  # one forward takes longer than all may
    assert tried(lambda n: n/1000)[1] == [1, 1, 4, 4, 16, 16, 64, 64, 128, 128]
    monkeypatch.setattr(E, 'at_once', lambda *a: 8)
    rate, sizes = tried(lambda n: n/1000)
    assert max(sizes) == 8 and rate == pytest.approx(1000)
    def short(n):
        if n > 4: raise torch.OutOfMemoryError('CUDA out of memory')
        return n/1000
    assert tried(short) == (pytest.approx(1000), [1, 1, 4, 4, 8])
    assert trial(w, 1)[0] > 0

# ---------------------------------------------------------------- options
def options(w, **kw): return w.but(spec=w.spec.but(compute=Compute(**kw)))

@pytest.mark.parametrize('kind', ['db', 'lora', 'cd', 'oft', 'svdiff'])
def test_gradient_checkpointing_gives_the_same_gradients_to_the_bit(w, kind):
    s = tiny_subject()
    terms = terms_of(w, s, method(kind + '-dc', images=2))
    def grads(world):
        a, params = adapt(world, Adaptation(kind=kind), s.token)
        trainable(a, params)
        calls = []
        block = a.unet.up_blocks[-1].resnets[0].conv1
        hook = block.register_forward_hook(lambda *_: calls.append(1))
        sum(Objective(world, a, s, terms, 2, 0)(3).values()).backward()
        hook.remove()
        return {k: p.grad for k, p in params.items()}, len(calls)
    (a, once), (b, twice) = grads(w), grads(options(w, gradient_checkpointing=True))
    assert all(torch.equal(a[k], b[k]) for k in a) and (once, twice) == (1, 2)

def test_options_that_save_memory_alone_are_in_no_key(w):
    s, m = tiny_subject(), method('db-dc', recipe=dict(steps=1))
    key = run_key(w, s, m)
    assert all(run_key(options(w, **c), s, m) == key for c in (dict(gradient_checkpointing=True), dict(device='cpu'), dict(vae_slicing=True)))
    assert len({key, *(run_key(options(w, **c), s, m) for c in (dict(adam_8bit=True), dict(compile=True)))}) == 3
    assert w.but().key != options(w).to(dtype=torch.bfloat16).key; w.to(dtype=torch.float32)

@pytest.mark.parametrize('c, new', [(None, False), (dict(device='cpu'), False), (dict(gradient_checkpointing=True, vae_slicing=True), False),
                                    (dict(dtype='bfloat16'), True), (dict(vae_tiling=True), True), (dict(adam_8bit=True), True)], ids=str)
def test_the_steps_of_a_study_are_keyed_by_what_changes_numbers(c, new):
    base = dict(name='x', world='mini', concepts=['cat-noto'], methods=['db'])
    keys = lambda **kw: [x.key for x in plan(Study.make(**base, **kw))]
    s = Study.make(**base)
    assert 'compute' not in s.model_dump() and 'compute' not in json.dumps(spec_of('mini').model_dump(mode='json'))
    got = plan(Study.make(**base, **({'compute': c} if c else {})))
    assert ([x.key for x in got] != keys()) == new
    if c: assert json.loads(got[0].params['study'])['compute'].items() >= c.items()      # but a step is told all of it

def test_a_study_file_that_says_nonsense_about_computing_is_one_error():
    for bad in (dict(dtype='half'), dict(dtyp='float16'), 'fast', dict(vae_tiling='much')):
        with pytest.raises(ForgetError, match='compute'): Study.make(name='x', compute=bad)

@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('kind', ['db', 'lora', 'cd', 'oft', 'svdiff', 'lokr'])
def test_half_precision_trains_in_float32_and_is_the_same_when_loaded(kind, dtype, tmp_path):
    "Steps far below a half-precision number's spacing add up; the file keeps them; the world is of one dtype again."
    s, m = tiny_subject(), method(f'{kind}-plain', recipe=dict(steps=3, batch=2, lr=1e-3))
    w = options(tiny_world(), dtype=dtype).to(dtype=getattr(torch, dtype))
    a, log = customize(w, s, m, path=tmp_path/'a.safetensors')
    assert len(log) == 3 and {p.dtype for n in (a.unet, a.text_encoder) for p in n.parameters()} == {w.dtype}
    assert {t.dtype for t in load_tensors(tmp_path/'a.safetensors')[0].values()} == {torch.float32}
    b, _ = customize(w, s, m, path=tmp_path/'a.safetensors')
    assert a.key == b.key != w.key
    full, _ = customize(tiny_world(), s, m)
    z, t, c = w.encode(X[:2]), torch.tensor([100, 700]), w.encode_text(P[:2])
    drift = (a.predict(z, t, c).float() - full.predict(z.float(), t, full.encode_text(P[:2]))).abs().max()
    assert drift < .1, drift

def test_a_float16_training_resumes_with_its_scale(tmp_path):
    s, m = tiny_subject(), method('lora-plain', recipe=dict(steps=4, batch=1, lr=1e-3))
    w = tiny_world().to(dtype=torch.float16)
    def train(stops):
        a, params = adapt(w, m.adaptation, s.token)
        trainable(a, params)
        loss = Objective(w, a, s, [], 1, 0)
        for k in stops: log, _ = fit(params, loss, Recipe(steps=4, lr=1e-3), tmp_path/f'{len(stops)}.safetensors', every=1, until=k, scaled=True)
        return params, log
    (p, log), (q, log2) = train([4]), train([2, 4])
    assert log == log2 and all(torch.equal(p[k], q[k]) for k in p)
    assert load_tensors(tmp_path/'1.safetensors')[1]['scaler']['scale'] > 1

def test_a_gradient_that_overflows_in_float16_is_left_out_and_the_scale_halved(tmp_path):
    p = {'a': torch.nn.Parameter(torch.ones(2))}
    big = lambda k: {'loss': (p['a']*(1e36 if k == 1 else 1.)).sum()}       # times 65536: beyond float32
    log, _ = fit(p, big, Recipe(steps=3, lr=.1, weight_decay=0.), tmp_path/'c.safetensors', scaled=True)
    assert log[1]['norm'] == 0 and log[0]['norm'] > 0
    assert load_tensors(tmp_path/'c.safetensors')[1]['scaler']['scale'] == 32768
    q = {'a': torch.nn.Parameter(torch.zeros(2))}                           # in float32 it is an error: the gradient of a root at 0
    with pytest.raises(ForgetError, match='gradient of loss is not finite'): fit(q, lambda k: {'loss': q['a'].abs().sqrt().sum()}, Recipe(steps=1))

def test_8_bit_adam_without_bitsandbytes_is_one_error(w, monkeypatch):
    monkeypatch.setitem(sys.modules, 'bitsandbytes', None)
    with pytest.raises(ForgetError, match='adam_8bit needs bitsandbytes'):
        customize(options(w, adam_8bit=True), tiny_subject(), method('lora-plain', recipe=dict(steps=1, batch=1)))

def test_8_bit_adam_is_that_of_bitsandbytes_and_its_state_is_kept(w, monkeypatch, tmp_path):
    "A stand-in with bitsandbytes' kind of state: bytes, tables of other shapes, a step that is an int."
    class AdamW8bit(torch.optim.Optimizer):
        def __init__(self, params, lr, weight_decay, betas): super().__init__(params, dict(lr=lr))
        @torch.no_grad()
        def step(self):
            for g in self.param_groups:
                for p in g['params']:
                    s = self.state[p]
                    if not s: s |= dict(step=0, state1=torch.zeros_like(p, dtype=torch.uint8), qmap1=torch.linspace(-1, 1, 256))
                    assert type(s['step']) is int and s['state1'].dtype == torch.uint8
                    s['step'] += 1; s['state1'] += 1
                    p -= g['lr']*(p.grad + s['state1'].float()/255)
    monkeypatch.setitem(sys.modules, 'bitsandbytes', types.SimpleNamespace(optim=types.SimpleNamespace(AdamW8bit=AdamW8bit)))
    def train(stops):
        p = {'a': torch.nn.Parameter(torch.ones(4, 3))}
        for k in stops: fit(p, lambda i: p['a'].square().sum(), Recipe(steps=5, lr=.01), tmp_path/f'{stops}.safetensors', every=1, until=k, eight=True)
        return p['a']
    one = train([5])
    p = {'a': torch.nn.Parameter(torch.zeros(4, 3))}
    fit(p, lambda i: p['a'].square().sum()*0, Recipe(steps=5, lr=.01), tmp_path/'[5].safetensors', eight=True)
    assert torch.equal(train([2, 5]), one) and torch.equal(p['a'], one)

def test_slicing_and_tiling_change_pictures_within_their_tolerance(tmp_path):
    save_world(tiny_world(size=16), tmp_path)
    spec = tiny_world().spec.but(source=str(tmp_path))
    plain, sliced, tiled = (load_world(spec.but(compute=Compute(**c)), 'cpu') for c in ({}, dict(vae_slicing=True), dict(vae_tiling=True)))
    z = torch.randn(3, 4, 16, 16, generator=generator(0, 'z'))
    assert close(sliced.decode(z), plain.decode(z)) and sliced.key == plain.key != tiled.key
    tiled.vae.tile_latent_min_size, tiled.vae.tile_sample_min_size = 8, 64
    assert tiled.decode(z).shape == plain.decode(z).shape and (tiled.decode(z) - plain.decode(z)).abs().mean() < .1

def test_a_world_is_loaded_as_its_definition_says(tmp_path):
    save_world(tiny_world(), tmp_path)
    spec = tiny_world().spec.but(source=str(tmp_path), compute=Compute(device='cpu', dtype='bfloat16'))
    assert (load_world(spec).dtype, load_world(spec, dtype=torch.float32).dtype) == (torch.bfloat16, torch.float32)

# ---------------------------------------------------------------- memory before loading
def test_a_study_that_does_not_fit_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    import openworld_forget.study.plan as L
    import openworld_forget.training.memory as M
    save_world(tiny_world(), tmp_path/'w')
    for f in (tmp_path/'w').rglob('*.safetensors'): f.unlink()                  # configurations suffice
    s = Study.make(name='x', world=dict(name='mine', source=str(tmp_path/'w')), concepts=['c'], methods=['db-dc'])
    monkeypatch.setattr(L, 'FEW', 0); monkeypatch.setattr(M, 'ways', lambda spec, m: {'lora instead of db': (spec, method('lora-dc'), None)} if m else {})
    assert memory_of(s, 1, free=2**40).startswith('Memory: customize db-dc: about ')
    with pytest.raises(ForgetError, match=r"'mine', customize db-dc: about .* GiB are free on cpu.*use a larger device"): memory_of(s, 1, free=2**20)
    monkeypatch.setattr(L, 'check_memory', lambda spec, tasks, free: free)
    assert '0.25 GiB are free on cpu for each of 4 workers' in memory_of(s, 4, free=2**30)

def test_nothing_is_counted_for_the_mini_world(monkeypatch):
    import openworld_forget.study.plan as L
    monkeypatch.setattr(L, 'check_memory', None)
    assert memory_of(Study.make(name='x', concepts=['cat-noto'])) == ''

def test_the_memory_of_an_sdxl_layout_counts_both_text_encoders(tmp_path):
    x = tiny_xl_world(); save_world(x, tmp_path)
    need = memory(x.spec.but(source=str(tmp_path)), 'generate')
    assert need.weights == sum(p.nbytes for n in x.networks.values() for p in (*n.parameters(), *n.buffers()))
    assert need.activations > 0 and need.total == memory(x, 'generate').total

def test_memory_counts_every_part(w):
    m = method('db-dc', recipe=dict(batch=2))
    n, unet = memory(w, m), sum(p.numel() for p in w.unet.parameters())
    assert (n.gradients, n.copies, n.optimizer, n.images) == (4*unet, 4*unet, 8*unet, 4)
    assert memory(options(w, adam_8bit=True), m).optimizer == 2*unet
    assert check_memory(w, [m, 'classify'], free=n.total) == n
    with pytest.raises(ForgetError, match='free'): check_memory(w, [m], free=n.total - 1)

# ---------------------------------------------------------------- benchmarks/device.py
@pytest.fixture(scope='module')
def device(pytestconfig):
    import importlib.util
    spec = importlib.util.spec_from_file_location('owf_device', pytestconfig.rootpath/'benchmarks/device.py')
    m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    return m

def test_the_calibration_fills_every_line_of_its_table(device, tmp_path, monkeypatch, capsys):
    import openworld_forget.training.regularize as R
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path)); monkeypatch.setattr(R, 'AHEAD', R.AHEAD)
    args = ['--random', 'tiny', '--rounds', '1', '--batch', '2', '--sampling', '1', '--steps', '1', '--device', 'cpu', '--methods', 'cd-dc']
    assert device.main(args) == 0
    rows = (tmp_path/'benchmarks/device-random-tiny-cpu-float32-64.csv').read_text().splitlines()
    head = rows[0].split(','); at = {k: head.index(k) for k in ('task', 'rate', 'of peak', 'note')}
    got = [r.split(',') for r in rows[1:]]
    assert [r[at['task']] for r in got] == ['classify', 'generate; 1 steps', 'train cd-dc']
    assert all(float(r[at['rate']]) > 0 and float(r[at['of peak']]) > 0 and not r[at['note']] for r in got)
    assert '20.5 million forwards a model' in capsys.readouterr().out

def test_the_calibration_leaves_out_what_does_not_fit(device, w, monkeypatch):
    monkeypatch.setattr(device, 'free_memory', lambda d: 2**20); monkeypatch.setattr(device, 'peak_flops', lambda *a: 1.)
    t = device.table(w, 1, methods=['cd-dc'])
    assert t.note.str.startswith('left out: needs').all() and len(t) == 3 and 'no hours' in device.hours(t)

def test_operations_are_counted_there_and_back(device, w):
    one = device.counted(w.unet, 'denoise', 1)
    assert 2.5*one < device.counted(w.unet, 'denoise', 1, 'db') < 3.5*one
    assert 1.5*one < device.counted(w.unet, 'denoise', 1, 'lora') < 2.5*one
