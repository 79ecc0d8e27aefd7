"""Methods beside drift correction (anchor, EWC, DCO, OPLoRA, T-LoRA, the rewound update, fewer images), against numbers made by hand."""
import copy
import math
from dataclasses import replace

import pytest
import torch

from openworld_forget.core import ForgetError, content_key, generator, load_tensors
from openworld_forget.training import methods as M
from openworld_forget.training import regularize as R
from openworld_forget.training.adapt import Adaptation, adapt, finished, freeze, layers_of, load_own, rank_at, save_adapted, trainable, trained
from openworld_forget.training.methods import MITIGATIONS, customize, method, run_key, seen
from openworld_forget.worlds.tiny import tiny_subject, tiny_world, tiny_xl_world

FAST = dict(images=2, recipe=dict(steps=3, batch=2, lr=1e-3))
KINDS = ('db', 'lora', 'cd')

@pytest.fixture(scope='module')
def base(): return tiny_world()
@pytest.fixture(scope='module')
def subject(): return tiny_subject()
@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('images')
@pytest.fixture(autouse=True)
def few_images(monkeypatch): monkeypatch.setattr(R.fisher_information, '__defaults__', (2, 0, None))

def shake(params, scale=.05, key=0):
    g = generator(0, 'shake', key)
    with torch.no_grad():
        for p in params.values(): p.add_(scale*torch.randn(p.shape, generator=g).to(p.dtype))
def state(w): return {f'{n}.{k}': v for n, m in (('text', w.text_encoder), ('unet', w.unet)) for k, v in m.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def answer(w, t=(5, 400, 999), prompts=('a x cat', 'a dog', '')):
    z = torch.randn(len(prompts), *w.latent_shape, generator=generator(0, 'probe')).to(w.dtype)
    with torch.no_grad(): return w.predict(z, torch.tensor(t), w.encode_text(list(prompts)))

# ---- anchor and Fisher

def test_the_anchor_is_the_squared_distance_from_the_base(base, subject):
    w, params = adapt(base, Adaptation(kind='cd'), subject.token)
    pull = R.anchor_pull(base, w, params, Adaptation(kind='cd'), subject.token, 10.)
    assert pull() == 0
    k = next(k for k in params if k != 'text.row')
    with torch.no_grad():
        params[k][0, 0] += .3
        params['text.row'][1] -= .4
    assert pull().item() == pytest.approx(10*(.09 + .16), rel=1e-4)
    pull().backward()
    assert params[k].grad[0, 0].item() == pytest.approx(10*2*.3, rel=1e-4) and params[k].grad.count_nonzero() == 1

@pytest.mark.parametrize('world', [tiny_world(), tiny_xl_world()], ids=['sd', 'sdxl'])
def test_the_anchor_of_a_lora_is_that_of_the_weights_it_adds_to(world, subject):
    a = Adaptation(kind='lora', rank=3, alpha=1.5, targets=['to_q', 'conv1', 'ff.net.2'])           # a convolution, too
    w, params = adapt(world, a, subject.token); shake(params)
    far = sum(m.get_delta_weight('default').square().sum() for m in layers_of(w.unet).values())
    assert R.anchor_pull(world, w, params, a, subject.token, 2.)().item() == pytest.approx(2*far.item(), rel=1e-4)

def test_the_fisher_of_the_last_bias_is_the_one_worked_out_by_hand(base, subject, cache):
    """The output is linear in its last bias: dL/db_c = 2/(c h w) sum over pixels of (said - noise). Two parameters make the ratio, the
    mean over all of them is 1."""
    a = Adaptation()
    F = R.fisher_information(base, a, subject, cache=cache)
    captions = R.captions_for(R.provider(base.spec), subject, 2, 0)
    z = R.generated_latents(base, captions, 0, 'generic', cache); mine = 0.
    for i, c in enumerate(captions):
        g = generator(0, 'fisher', i); t = torch.randint(base.timesteps, (1,), generator=g); e = torch.randn((1, *base.latent_shape), generator=g)
        with torch.no_grad(): d = base.predict(base.add_noise(z[i:i+1], e, t), t, base.encode_text([c])) - e
        mine = mine + (2*d.sum((0, 2, 3))/d.numel())**2/2
    assert torch.allclose(F['unet.conv_out.bias']/F['unet.conv_out.bias'][0], mine/mine[0], rtol=1e-3)
    assert sum(f.sum() for f in F.values()).item() == pytest.approx(sum(f.numel() for f in F.values()), rel=1e-3)
    assert all(f.dtype == torch.float32 and (f >= 0).all() for f in F.values())
    pull = R.fisher_pull(base, params := adapt(base, a, 'x')[1], a, subject, 3., cache=cache)
    with torch.no_grad(): params['unet.conv_out.bias'][0] += .5
    assert pull().item() == pytest.approx(3*.25*F['unet.conv_out.bias'][0].item(), rel=1e-4)

def test_the_fisher_is_kept_by_content_and_found_again(base, subject, tmp_path, cache, monkeypatch):
    a = Adaptation(kind='cd')
    first = R.fisher_information(base, a, subject, cache=tmp_path); assert len(list(tmp_path.glob('fisher-*'))) == 1
    monkeypatch.setattr(R, '_squared_gradients', None)
    assert same(first, R.fisher_information(base, a, subject, cache=tmp_path))
    monkeypatch.undo(); monkeypatch.setattr(R.fisher_information, '__defaults__', (2, 0, None))
    R.fisher_information(base, a, subject, seed=1, cache=tmp_path); R.fisher_information(base, Adaptation(), subject, cache=tmp_path)
    assert len(list(tmp_path.glob('fisher-*'))) == 3

@pytest.mark.parametrize('field, kind', [('fisher', 'lora')])
def test_a_regularizer_that_a_kind_has_no_rule_for_is_refused(field, kind):
    with pytest.raises(ForgetError, match=f'Method.{field}: is defined for db, cd, not for {kind}; leave it out'): method(kind, **{field: 1.})

# ---- DCO

def test_preference_by_finite_differences(base, subject):
    w64 = base.but(**{k: copy.deepcopy(getattr(base, k)).double() for k in ('text_encoder', 'vae', 'unet')})
    w, params = adapt(w64, Adaptation(kind='cd'), subject.token); shake(params)
    one, f = replace(subject, images=subject.images[:2]), None
    f = R.Objective(w64, w, one, [], 2, 0, preference=30.)
    f(0)['instance'].backward()
    g = generator(0, 'd'); d = {k: torch.randn(p.shape, generator=g, dtype=torch.float64) for k, p in params.items()}
    slope = sum((p.grad*d[k]).sum().item() for k, p in params.items() if p.grad is not None)
    def at(h):
        with torch.no_grad():
            for k, p in params.items(): p.add_(h*d[k])
            x = f(0)['instance'].item()
            for k, p in params.items(): p.sub_(h*d[k])
        return x
    h = 1e-6; assert slope != 0 and (at(h) - at(-h))/(2*h) == pytest.approx(slope, rel=1e-5)

def gradient(loss, params):
    sum(loss.values()).backward(); out = {k: p.grad.clone() for k, p in params.items() if p.grad is not None}
    for p in params.values(): p.grad = None
    return out

def test_a_small_preference_is_half_of_it_times_the_plain_loss(base, subject):
    w, params = adapt(base, Adaptation(), subject.token); shake(params, .02)
    plain, pref = (gradient(R.Objective(base, w, subject, [], 4, 0, preference=b)(3), params) for b in (0., 1e-3))
    assert all(torch.allclose(pref[k], plain[k]*5e-4, rtol=2e-3, atol=1e-4*pref[k].abs().max()) for k in plain)

def test_a_large_preference_lets_go_of_what_is_better_than_the_base():
    mine, ref = torch.tensor([.1, .3], requires_grad=True), torch.tensor([.2, .2])
    loss = R.preferred(mine, ref, 50.); loss.backward()
    sigmoid = lambda x: 1/(1 + math.exp(-x))
    assert mine.grad.tolist() == pytest.approx([25*sigmoid(-5.), 25*sigmoid(5.)], rel=1e-4)
    assert loss.item() == pytest.approx(-.5*(math.log(sigmoid(5.)) + math.log(sigmoid(-5.))), rel=1e-4)

@pytest.mark.parametrize('text_encoder', [False, True])
def test_the_reference_reads_the_prompt_with_the_bases_encoder(base, subject, text_encoder):
    "At the base the loss is log 2; with another text encoder that is trained, the reference is still the base."
    a = Adaptation(text_encoder=text_encoder); w, params = adapt(base, a, subject.token)
    make = lambda: R.Objective(base, w, subject, [], 2, 0, preference=40.)
    assert make()(0)['instance'].item() == pytest.approx(.693147, abs=1e-5)
    shake({k: p for k, p in params.items() if k.startswith('text' if text_encoder else 'unet')}); f = make(); b = f.draw('instance', 0)
    with torch.no_grad():
        y = base.target(b.z, b.e, b.t); L = [(v.predict(b.x, b.t, c) - y).pow(2).mean((1, 2, 3)) for v, c in
            ((w, w.encode_text([subject.instance_prompt]*2)), (base, base.encode_text([subject.instance_prompt]*2)))]
    assert not torch.equal(*L) and f(0)['instance'].item() == pytest.approx(-torch.sigmoid(-40*(L[0] - L[1])).log().mean().item(), rel=1e-4)

@pytest.mark.parametrize('kind', KINDS)
def test_all_terms_in_one_forward_or_several_are_the_terms_written_down(base, subject, cache, kind):
    "Same loss, same gradient with pulls, a preference, a prior and a correction at once; weight-only terms count once."
    a = Adaptation(kind=kind); w, params = adapt(base, a, subject.token); shake(params)
    m = method(kind + '-dc', anchor=.1, preference=20., images=2, **({} if kind == 'lora' else dict(fisher=.1)))
    terms, pulls = M.terms_of(base, subject, m, cache=cache), M.pulls_of(base, w, params, subject, m, cache=cache); got = []
    how = dict(pulls=pulls, preference=m.preference)
    for f in (R.PlainObjective(base, w, subject, terms, 4, 0, **how), *(R.Objective(base, w, subject, terms, 4, 0, n, **how) for n in (0, 4))):
        out = f(9); parts, sums = [out] if isinstance(out, dict) else out, {}
        for part in parts:
            sum(part.values()).backward()
            for k, v in part.items(): sums[k] = sums.get(k, 0.) + v.item()
        got.append((sums, {k: p.grad for k, p in params.items() if p.grad is not None}))
        for p in params.values(): p.grad = None
    (a, da), *others = got
    for b, db in others:
        assert b == pytest.approx(a, rel=1e-4) and da.keys() == db.keys() and {'instance', 'prior', 'correction', 'anchor'} <= set(b)
        assert all(torch.allclose(da[k], db[k], rtol=1e-3, atol=1e-5*da[k].abs().max()) for k in da)

# ---- OPLoRA

@pytest.mark.parametrize('world', [tiny_world(), tiny_xl_world()], ids=['sd', 'sdxl'])
def test_oplora_keeps_off_the_first_directions_in_training_and_in_the_file(world, subject, tmp_path):
    a = Adaptation(kind='lora', keep=3, targets=['to_q', 'to_v', 'conv1', 'ff.net.2'])
    w, params = adapt(world, a, subject.token); assert torch.equal(answer(w), answer(world)); shake(params, .1)
    def off(w):
        for k, m in layers_of(w.unet).items():
            d = m.get_delta_weight('default').flatten(1); u, _, v = torch.linalg.svd(m.base_layer.weight.flatten(1), full_matrices=False)
            assert (u[:, :3].T @ d).abs().max() < 1e-6 and (d @ v[:3].T).abs().max() < 1e-6, k
            assert min((u.T @ d).abs().max(), (d @ v.T).abs().max()) > 1e-5, k                  # but it is an update
    off(w); before = answer(w)
    finished(w); off(w); assert torch.allclose(before, answer(w), atol=1e-5)
    save_adapted(f := tmp_path/'a.safetensors', world, params, a, subject.token)
    u = load_own(world, f); off(u); assert torch.equal(answer(freeze(w)), answer(u))

def test_diffusers_reads_the_same_oplora(base, subject, tmp_path, cache):
    f = tmp_path/'a.safetensors'
    w, _ = customize(base, subject, method('oplora', **FAST), path=f, cache=cache)
    pipe = base.but(unet=copy.deepcopy(base.unet), text_encoder=copy.deepcopy(base.text_encoder)).pipeline(); pipe.load_lora_weights(str(f))
    assert torch.allclose(answer(base.but(unet=pipe.unet)), answer(w), atol=1e-6) and not torch.equal(answer(w), answer(base))

def test_as_many_directions_as_there_are_is_refused_with_the_layer(base):
    with pytest.raises(ForgetError, match=r'keep: 500 singular directions, but down_blocks.* has only \d+'): adapt(base, Adaptation(kind='lora', keep=500), 'x')

# ---- T-LoRA

def test_rank_by_timestep_is_the_papers():
    for T, lo, hi in ((1000, 2, 8), (50, 1, 4)):
        assert rank_at(torch.arange(T), lo, hi, T).tolist() == [int((T - t)*(hi - lo)/T + 1e-9) + lo for t in range(T)]

@pytest.mark.parametrize('world', [tiny_world(), tiny_xl_world()], ids=['sd', 'sdxl'])
def test_t_lora_at_a_timestep_is_a_lora_of_that_rank(world, subject):
    a = Adaptation(kind='lora', rank=4, least_rank=1, targets=['to_q', 'to_k', 'conv1', 'time_emb_proj'])
    w, params = adapt(world, a, subject.token); shake(params, .2); whole = answer(w, (0, 400, 999))
    for t, r in ((0, 4), (251, 3), (400, 2), (999, 1)):
        v, own = adapt(world, a.but(least_rank=0), subject.token)
        with torch.no_grad():
            for k, p in own.items():
                p.copy_(params[k])
                if 'lora_B' in k: p[:, r:] = 0
        assert torch.allclose(answer(v, (t,)*3), answer(w, (t,)*3), atol=1e-6)
    for i, t in enumerate((0, 400, 999)): assert torch.allclose(answer(w, (t,)*3)[i], whole[i], atol=1e-5)      # a batch is one by one

def test_a_mask_is_kept_by_copies_files_tables_and_pipelines(base, subject, tmp_path, cache):
    m = method('t-lora', **FAST, adaptation=dict(alpha=200.)); f = tmp_path/'a.safetensors'
    w, _ = customize(base, subject, m, path=f, cache=cache)
    full, _ = adapt(base, m.adaptation.but(least_rank=0), 'x')
    with torch.no_grad():
        factors = lambda v: [p for k, p in v.unet.named_parameters() if 'lora_' in k]
        for p, q in zip(factors(full), factors(w)): p.copy_(q)
    assert not torch.allclose(answer(w), answer(full), atol=1e-6)                                   # another reader: another model
    assert torch.equal(answer(load_own(base, f)), answer(w)) and load_tensors(f)[1]['adaptation']['least_rank'] == 1
    assert torch.equal(answer(w.but(unet=copy.deepcopy(w.unet))), answer(w))
    text = w.encode_text(['a x cat', 'a dog']); z = torch.randn(3, *w.latent_shape, generator=generator(0, 'p'))
    t, c = torch.tensor([5, 400, 999]), torch.tensor([0, 1, 1])
    with torch.no_grad():
        with w.remembered(text) as pick: got = w.predict(z, t, pick(c))
        assert torch.allclose(got, w.predict(z, t, text[c]), atol=1e-6)
        assert torch.allclose(w.unet(z, 400, text[c]).sample, w.predict(z, torch.tensor([400]*3), text[c]), atol=1e-6)

# ---- strength and images

@pytest.mark.parametrize('kind', KINDS)
def test_strengths_share_one_training(base, subject, tmp_path, kind, monkeypatch):
    fits, fit = [], M.fit
    monkeypatch.setattr(M, 'fit', lambda *a, **kw: fits.append(1) or fit(*a, **kw))
    runs = {}
    for x in (.5, 0., 1., .25):
        m = method(f'{kind}-plain', strength=x, **FAST).but(name=f'at-{x:g}')
        runs[x] = customize(base, subject, m, path=tmp_path/f'{x}.safetensors', cache=tmp_path/'c')
        meta = load_tensors(tmp_path/f'{x}.safetensors')[1]
        assert (meta['strength'], meta['method']['name']) == (x, m.name)
        assert torch.equal(answer(load_own(base, tmp_path/f'{x}.safetensors')), answer(runs[x][0]))
        again = customize(base, subject, m, path=tmp_path/f'{x}.safetensors', cache=tmp_path/'c'); assert same(state(again[0]), state(runs[x][0]))
    assert len(fits) == 1 and len(list((tmp_path/'c').glob('adapter-*.safetensors'))) == 1 and all(log == runs[1.][1] for _, log in runs.values())
    monkeypatch.undo()
    alone, _ = customize(base, subject, method(f'{kind}-plain', **FAST)); half, _ = customize(base, subject, method(f'{kind}-plain', strength=.5, **FAST))
    assert same(state(alone), state(runs[1.][0])) and same(state(half), state(runs[.5][0]))                 # with or without a cache
    assert torch.equal(answer(runs[0.][0]), answer(base)) and (kind == 'lora' or same(runs[0.][0].unet.state_dict(), base.unet.state_dict()))

@pytest.mark.parametrize('kind', KINDS)
def test_half_a_strength_is_half_the_update(base, subject, kind):
    w, params = adapt(base, Adaptation(kind=kind), subject.token); shake(params)
    read = lambda: {k: m.get_delta_weight('default').clone() for k, m in layers_of(w.unet).items()} if kind == 'lora' else {
        k: (p - R.origins(base, params, 'x')[k]).detach().clone() for k, p in params.items()}
    whole = read(); M.rewound(base, params, Adaptation(kind=kind), 'x', .5); half = read()
    assert all(torch.allclose(half[k], whole[k]/2, atol=1e-6) and whole[k].any() for k in whole)

def test_a_strength_is_applied_before_the_weights_are_rounded(subject, tmp_path):
    "In bfloat16: from the cache and from training come the same bits."
    base = tiny_world().to(dtype=torch.bfloat16)
    a, b = (customize(base, subject, method('db-rewound', **FAST), path=tmp_path/f'{k}.safetensors', cache=tmp_path/'c')[0] for k in 'ab')
    assert same(state(a), state(b)) and same(state(a), state(load_own(base, tmp_path/'a.safetensors'))) and a.dtype == torch.bfloat16
    assert torch.equal(answer(customize(base, subject, method('db-plain', strength=0., **FAST))[0]), answer(base))

def test_a_name_decides_nothing(base, subject):
    m = method('db-l2'); assert run_key(base, subject, m) == run_key(base, subject, m.but(name='mine'))
    changed = [m.but(**{k: v}) for k, v in dict(anchor=.5, fisher=1., preference=3., strength=.5, instances=2).items()]
    assert len({run_key(base, subject, x) for x in (m, *changed)}) == 6

def test_fewer_images_are_the_first_ones(base, subject):
    m = method('db-plain', **FAST); two = replace(subject, images=subject.images[:2])
    a, b = customize(base, subject, m.but(instances=2)), customize(base, two, m)
    assert same(state(a[0]), state(b[0])) and a[1] == b[1] and a[1] != customize(base, subject, m)[1]
    assert seen(subject, m) is subject and content_key(seen(subject, m.but(instances=1)).images) == content_key(subject.images[:1])
    with pytest.raises(ForgetError, match=r'db-plain\.instances: 4, but toy has 3 images'): customize(base, subject, m.but(instances=4))

# ---- all of them

@pytest.mark.parametrize('name, off', [('db-l2', dict(anchor=0)), ('db-ewc', dict(fisher=0)), ('db-dco', dict(preference=0)), ('db-rewound', dict(strength=1)),
                                       ('oplora', dict(adaptation=dict(keep=0))), ('t-lora', dict(adaptation=dict(least_rank=0)))])
def test_a_weight_of_zero_is_no_regularizer(base, subject, cache, name, off):
    m = method(name); plain = method(f'{m.family}-plain', **FAST)
    (a, log), (b, log2) = (customize(base, subject, x, cache=cache) for x in (method(name, **FAST, **off), plain))
    assert same(state(a), state(b)) and log == log2
    changed, _ = customize(base, subject, method(name, **FAST), cache=cache); assert not torch.equal(answer(changed), answer(b))

@pytest.mark.parametrize('name', MITIGATIONS)
@pytest.mark.parametrize('world', [tiny_world('v_prediction'), tiny_world().to(dtype=torch.bfloat16)], ids=['velocity', 'bfloat16'])
def test_other_worlds(subject, cache, name, world):
    w, log = customize(world, subject, method(name, **FAST), cache=cache)
    assert len(log) == 3 and w.dtype == world.dtype and torch.isfinite(answer(w).float()).all() and not torch.equal(answer(w), answer(world))

def test_a_corrected_form_differs_in_the_correction_alone():
    for name in MITIGATIONS:
        m = method(name, correction=3.).but(name='mine')
        assert m.plain == method(name) and m.corrects(method(name)) and not method(name).prior and not method(name).corrected
        assert [x for x in M.METHODS.values() if m.corrects(x)] == [method(name)]
        assert not m.corrects(method(name, instances=1))

def test_what_is_trained_stays_in_float32_until_the_end(subject):
    half = tiny_world().to(dtype=torch.bfloat16); w, params = adapt(half, Adaptation(kind='lora', keep=2), 'x'); trainable(w, params)
    assert {p.dtype for p in params.values()} == {torch.float32}
    trained(finished(w), params, half.dtype); assert {p.dtype for p in w.unet.parameters()} == {torch.bfloat16}
